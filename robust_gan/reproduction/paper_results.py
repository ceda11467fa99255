"""Results of Wang and Yu as cited by others; none was checked against the paper, which was not available."""

REFERENCE = (
    "Wang and Yu, ICLR 2019, as cited by others: the paper was not available. The released code evaluates with batch "
    "statistics, which overestimates robustness; the numbers of images and seeds are unknown"
)

WHITE_BOX: dict[str, dict[str, dict[str, float]]] = {
    "cifar10": {
        "generator": {"clean": 91.32, "fgsm": 73.77, "pgd10": 49.55},
        "pgd": {"clean": 83.50, "fgsm": 67.92, "pgd10": 60.15},
    },
    "svhn": {"generator": {"pgd10": 37.97}, "pgd": {"pgd10": 42.96}},
}
"""White-box accuracy in % by data set, method and attack."""

BLACK_BOX: dict[str, dict[str, dict[str, float]]] = {
    "cifar10": {"generator": {"fgsm": 77.23, "pgd10": 74.04}, "pgd": {"fgsm": 57.73, "pgd10": 55.72}},
    "svhn": {"generator": {"pgd10": 81.68}, "pgd": {"pgd10": 83.23}},
}
"""Black-box accuracy in %. The values for PGD training are lower than its white-box ones, which is implausible."""

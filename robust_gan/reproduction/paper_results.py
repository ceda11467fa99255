"""Figures of Wang and Yu as others cite them: the paper's text was not at hand, and none was checked against it."""

REFERENCE = (
    "Wang and Yu, ICLR 2019, as others cite it: the paper's text was not at hand. The released code normalises its "
    "classifier by batch statistics at test, which is lenient; the numbers of images and of seeds are not known"
)

WHITE_BOX: dict[str, dict[str, dict[str, float]]] = {
    "cifar10": {
        "generator": {"clean": 91.32, "fgsm": 73.77, "pgd10": 49.55},
        "pgd": {"clean": 83.50, "fgsm": 67.92, "pgd10": 60.15},
    },
    "svhn": {"generator": {"pgd10": 37.97}, "pgd": {"pgd10": 42.96}},
}
"""Accuracy in % by data set, method and attack, attacked in the open."""

BLACK_BOX: dict[str, dict[str, dict[str, float]]] = {
    "cifar10": {"generator": {"fgsm": 77.23, "pgd10": 74.04}, "pgd": {"fgsm": 57.73, "pgd10": 55.72}},
    "svhn": {"generator": {"pgd10": 81.68}, "pgd": {"pgd10": 83.23}},
}
"""The same from another trained model. That PGD training should fare worse there than in the open is suspect."""

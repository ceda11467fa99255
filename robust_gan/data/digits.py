"""The 8x8 digits of scikit-learn: real images for a first run, without a download."""

import numpy as np

from robust_gan.data.order import permutation
from robust_gan.data.parsing import Contents, Examples

_SPLIT = 1


def read_digits() -> Contents:
    """Returns the 1,797 digits, 1,437 for training and 360 for test.

    The values 0..16 become `round(value * 255 / 16)`, in 0..255. The split is fixed and stratified: every fifth image
    of each class, in a fixed random order, is a test image.

    Returns:
        The splits `train` and `test`, with images uint8 `[N, 8, 8, 1]`, and the names of the labels.

    References:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
        https://doi.org/10.24432/C50P49

    >>> contents = read_digits()
    >>> contents.splits["train"]().images.shape, contents.splits["test"]().images.shape
    ((1437, 8, 8, 1), (360, 8, 8, 1))
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    ranks = np.empty(len(labels), np.int32)
    ranks[permutation(len(labels), seed=0, purpose=_SPLIT)] = np.arange(len(labels))
    by_class = np.lexsort((ranks, labels))
    test = np.zeros(len(labels), bool)
    test[by_class[::5]] = True
    return Contents(
        splits={
            "train": lambda: Examples(images[~test], {"label": labels[~test]}),
            "test": lambda: Examples(images[test], {"label": labels[test]}),
        },
        names={"label": [str(digit) for digit in range(10)]},
    )

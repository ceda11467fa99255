"""Adversarial images that another program made, as an attack."""

import os
from typing import Any, NamedTuple

import numpy as np

from robust_gan.attacks._checks import find_violation
from robust_gan.data.array_files import check_names, read_npz, take
from robust_gan.errors import DataError
from robust_gan.types import ThreatModel

_ROWS = 1000
"""Images that are compared at once."""


class ExternalImages(NamedTuple):
    """Adversarial images of a file, in the order of the images that are evaluated.

    Attributes:
        path: The file.
        images: uint8, or float in [0, 1], `[N, H, W, C]`.
        labels: `[N]`, the true classes; None where the file has none.
    """

    path: str
    images: np.ndarray
    labels: np.ndarray | None

    @property
    def name(self) -> str:
        """The file's name without its ending: the name of the attack in tables."""
        return os.path.basename(self.path).removesuffix(".npz")

    def __call__(self, logits_fn: Any, key: Any, images: Any, labels: Any, threat: Any) -> Any:
        """Raises `TypeError`: images of a file are looked up by position, not computed."""
        raise TypeError(f"{self.path} holds images, not an attack")

    def at(self, indices: np.ndarray) -> np.ndarray:
        """Returns the images at some positions, float32 in [0, 1]."""
        return take(self.images, np.asarray(indices))


def load_external(path: str) -> ExternalImages:
    """Reads the arrays `images` and, where there is one, `labels` of an `.npz` file.

    Args:
        path: The file.

    Raises:
        DataError: There is no such file, or no images in it.

    >>> path = getfixture("tmp_path") / "theirs.npz"
    >>> np.savez(path, images=np.zeros((2, 4, 4, 1), np.uint8))
    >>> load_external(str(path)).name
    'theirs'
    """
    arrays = read_npz(path, "adversarial images to --adversarial")
    check_names(path, arrays, "images")
    images = arrays["images"]
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"the images of {path} are {images.dtype}: give floats in [0, 1], or uint8")
    return ExternalImages(path, images, arrays.get("labels"))


def check_external(external: ExternalImages, images: np.ndarray, labels: np.ndarray, threat: ThreatModel) -> None:
    """Refuses adversarial images that are not of the evaluated images, or not inside the threat model.

    Args:
        external: The adversarial images.
        images: The evaluated images, uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        threat: The threat model.

    Raises:
        DataError: Their number, shape or labels differ, or an image leaves the ball or the range.

    >>> from robust_gan import LinfThreat
    >>> external = ExternalImages("theirs.npz", np.full((1, 2, 2, 1), 0.9, np.float32), None)
    >>> check_external(external, np.full((1, 2, 2, 1), 0.5, np.float32), np.zeros(1, int), LinfThreat(0.1))
    Traceback (most recent call last):
    robust_gan.errors.DataError: an image of theirs.npz leaves the ball: a perturbation has size 0.4, and epsilon is \
0.1: give images made from the evaluated ones, in their order
    """
    path = external.path
    if external.images.shape != images.shape:
        raise DataError(
            f"the images of {path} have shape {external.images.shape}, but {images.shape} are evaluated: give one for "
            "each, in their order"
        )
    if external.labels is not None and not np.array_equal(external.labels, labels):
        raise DataError(f"the labels of {path} are not those of the evaluated images: give images of the same set")
    for start in range(0, len(images), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(images)))
        raw = external.images[rows]
        found = external.at(rows) if raw.dtype == np.uint8 else raw  # Before they are clipped to the range.
        if why := find_violation(found, take(images, rows), threat):
            raise DataError(f"an image of {path} {why}: give images made from the evaluated ones, in their order")

"""Arrays of images and labels in files of the user's own: what is wrong with them, and reading them in parts."""

import collections
import functools
import hashlib
import math
import mmap
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from robust_gan.data.streaming import StreamedImages
from robust_gan.errors import DataError
from robust_gan.storage import files

_IGNORED = (-1, -100)
"""Labels that often stand for no class in other libraries."""


class Arrays(NamedTuple):
    """Images and labels of a file.

    Attributes:
        images: uint8, or float in [0, 1], `[N, H, W, C]`.
        labels: int32 `[N]`.
    """

    images: np.ndarray
    labels: np.ndarray


def read_npz(path: str, content: str, *, largest: int | None = None) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file of the user's; nothing is unpickled.

    Args:
        path: The file.
        content: What it should hold, for the sentence.
        largest: Most bytes that it may unpack to; None for any number.

    Raises:
        DataError: There is no such file, or it holds something other than plain arrays.

    >>> read_npz("nosuch.npz", "images and labels")
    Traceback (most recent call last):
    robust_gan.errors.DataError: there is no file nosuch.npz: give an .npz of images and labels
    """
    try:
        return files.read_arrays(path, largest=largest)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}: give an .npz of {content}") from error
    except files.UnreadableError as error:
        raise DataError(f"{path} is no .npz of plain arrays ({error})") from error


def check_names(path: str, arrays: dict[str, np.ndarray], *names: str) -> None:
    """Refuses arrays of a file that lack one of several names.

    >>> check_names("a.npz", {"x": np.zeros(1)}, "images")
    Traceback (most recent call last):
    robust_gan.errors.DataError: a.npz lacks the array images: it has x
    """
    if missing := [name for name in names if name not in arrays]:
        raise DataError(f"{path} lacks the array {missing[0]}: it has {', '.join(arrays) or 'none'}")


def check_arrays(path: epath.PathLike, images: np.ndarray, labels: np.ndarray, channels: str = "") -> Arrays:
    """Refuses arrays that cannot be images and class numbers, and says how to make such of them.

    Args:
        path: Their file, for the sentence.
        images: `[N, H, W, C]`, perhaps memory-mapped.
        labels: `[N]`.
        channels: `last` to take images of a shape that looks like channels first as they are.

    Raises:
        DataError: The labels are no class numbers, or the images are of another type, unit or layout.

    >>> check_arrays("a.npz", np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1])).labels.tolist()
    [0, 1]
    """
    _check_labels(path, labels)
    if np.issubdtype(images.dtype, np.integer) and images.dtype != np.uint8:
        raise DataError(f"the images of {path} are {images.dtype}: give uint8 in 0..255, or floats in [0, 1]")
    if images.dtype == np.uint8:  # The first bright pixel ends the search.
        largest = 2.0 if any(part.max(initial=0) > 1 for part in chunks(images)) else float(images.any())
    else:
        largest = pixel_range(images)[1] if images.size and images.dtype.kind == "f" else 0.0
    if images.dtype == np.uint8 and 0 < largest <= 1:
        raise DataError(
            f"the images of {path} are uint8 in 0..1, all but black: give 0..255, 255 * images, or floats in [0, 1]"
        )
    if np.issubdtype(images.dtype, np.floating) and 0 < largest <= 1.001 / 255:
        raise DataError(
            f"the images of {path} are all but black, at most {largest:.3g}: they were divided by 255 twice"
        )
    if channels != "last" and _looks_channels_first(images.shape):
        raise DataError(
            f"the images of {path} have shape {images.shape}, channels first: give [N, H, W, C], "
            "images.transpose(0, 2, 3, 1); an evaluation takes --channels=last where the channels are last already"
        )
    native = images.dtype.newbyteorder("=")  # JAX takes no other byte order.
    return Arrays(images.astype(native, copy=False), labels.astype(labels.dtype.newbyteorder("="), copy=False))


def _looks_channels_first(shape: tuple[int, ...]) -> bool:
    """Tells pictures of colour, or of grey, that are stored as PyTorch has them.

    Signals of one row, `[N, 1, T, C]`, and other narrow images are none.
    """
    if len(shape) != 4:
        return False
    _, channels, height, width = shape
    square = height == width and height > 4
    return channels in (1, 3) and width not in (1, 2, 3, 4) and (square or (channels == 3 and min(height, width) >= 16))


def _check_labels(path: epath.PathLike, labels: np.ndarray) -> None:
    """Refuses labels that are no class numbers, and says how to make such of them."""
    if labels.dtype.kind not in "iufb":
        hint = ", numpy.unique(labels, return_inverse=True)[1]" if labels.dtype.kind in "US" else ""
        raise DataError(f"the labels of {path} are {labels.dtype}: give class numbers from 0{hint}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        raise DataError(f"the labels of {path} have shape {labels.shape}: give one number per image, labels[:, 0]")
    if labels.ndim == 2 and len(labels) and np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all():
        raise DataError(f"the labels of {path} are one-hot: give class numbers, labels.argmax(-1)")
    if labels.ndim == 2 and labels.dtype.kind == "f" and np.allclose(labels.sum(-1), 1, atol=1e-3):
        raise DataError(f"the labels of {path} are probabilities: give class numbers, labels.argmax(-1)")
    if labels.ndim == 2 and np.isin(labels, (0, 1)).all():
        raise DataError(f"the labels of {path} name several classes of an image, or none: give one class number each")
    if labels.ndim == 1 and labels.dtype.kind == "f" and len(labels):
        whole = bool(np.isfinite(labels).all() and (labels == np.rint(labels)).all())
        remedy = "labels.astype(int)" if whole else "class numbers from 0"
        raise DataError(f"labels must be integers, but those of {path} are {labels.dtype}: give {remedy}")
    if labels.ndim == 1 and len(labels) and labels.min() in _IGNORED and (labels[labels != labels.min()] >= 0).all():
        raise DataError(
            f"{(labels == labels.min()).sum()} labels of {path} are {labels.min()}, which often stands for 'ignore': "
            f"leave these images out, images[labels != {labels.min()}]; class numbers start from 0"
        )


def check_images(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Refuses images and labels on which a figure would mean nothing.

    Args:
        images: uint8 or float `[N, H, W, C]`.
        labels: Integers `[N]`.
        num_classes: K.

    Raises:
        DataError: An empty set, a wrong shape or type, pixels that are not finite or outside [0, 1] by more than
            1e-6, labels outside 0..K-1.

    >>> check_images(np.zeros((1, 2, 2, 1)), np.array([10]), 10)
    Traceback (most recent call last):
    robust_gan.errors.DataError: labels must be in 0..9, but range from 10 to 10
    """
    if images.ndim != 4 or not len(images):
        raise DataError(f"images must be a non-empty array [N, H, W, C], not of shape {images.shape}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"images must be uint8 or float in [0, 1], not {images.dtype}")
    if images.dtype != np.uint8:
        low, high = pixel_range(images)
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError("images must be finite, but hold NaN or infinite pixels")
        if low < -1e-6 or high > 1 + 1e-6:
            remedy = "normalise inside the model" if low < -1e-6 else "divide by 255, or store them as uint8"
            raise DataError(f"pixels must be in [0, 1], but range from {low:g} to {high:g}: {remedy}")
    if labels.shape != images.shape[:1]:
        raise DataError(f"labels must have shape {images.shape[:1]}, one per image, not {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels must be integers, not {labels.dtype}")
    if labels.min() < 0:
        raise DataError(f"labels must be class numbers from 0, but one is {labels.min()}")
    if labels.min() == 1 and labels.max() == num_classes:
        raise DataError(f"labels run from 1 to {num_classes}: number the classes from 0")
    if labels.max() >= num_classes:
        raise DataError(f"labels must be in 0..{num_classes - 1}, but range from {labels.min()} to {labels.max()}")


def to_unit(images: np.ndarray) -> np.ndarray:
    """Returns images `[N, H, W, C]` as float32 in [0, 1]; uint8 is divided by 255.

    >>> to_unit(np.array([0, 255], np.uint8)).tolist()
    [0.0, 1.0]
    """
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return np.clip(images.astype(np.float32), 0, 1)


def take(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns some of the images as `to_unit` does; of a memory-mapped file nothing stays in memory.

    >>> take(np.array([[0], [255]], np.uint8), np.array([1])).tolist()
    [[1.0]]
    """
    check_size(images)
    taken = to_unit(images[indices])
    release(images)
    return taken


def chunks(images: Any, size: int = 2**25) -> Iterator[np.ndarray]:
    """Yields the images in parts of at most some bytes; of those in a file one part at a time is in memory.

    Args:
        images: `[N, ...]`: an array, a memory-mapped one for instance, or another object with a length and slices.
        size: The bytes.

    >>> [len(part) for part in chunks(np.zeros((5, 2), np.uint8), size=4)]
    [2, 2, 1]
    """
    rows = max(1, size // max(1, math.prod(images.shape[1:]) * images.dtype.itemsize))
    for start in range(0, len(images), rows):
        check_size(images)
        yield images[start : start + rows]
        release(images)


def pixel_range(images: np.ndarray) -> tuple[float, float]:
    """Returns the smallest and the largest pixel; NaN where a pixel is NaN.

    >>> pixel_range(np.array([[1], [3]], np.uint8))
    (1.0, 3.0)
    """
    ends = np.array([(part.min(), part.max()) for part in chunks(images)], np.float64)
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def release(images: np.ndarray) -> None:
    """Drops the pages of a file that is mapped for reading from this process's memory.

    >>> release(np.zeros(2))
    """
    mapping = _find_mapping(images)
    if mapping is not None and not images.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def check_size(images: np.ndarray) -> None:
    """Checks that a mapped file is as long as when it was opened: to read beyond its end kills the process.

    Raises:
        DataError: It became shorter.

    >>> check_size(np.zeros(2))
    """
    mapping = _find_mapping(images)
    if mapping is not None and mapping.size() < len(mapping):
        raise DataError(
            f"{getattr(images, 'filename', 'a file of images')} became shorter while it was read: it has "
            f"{mapping.size():,} bytes of {len(mapping):,}; write it anew, and do not change it during a run"
        )


def _find_mapping(images: np.ndarray) -> mmap.mmap | None:
    base: object = images
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def stream(images: np.ndarray, positions: np.ndarray) -> StreamedImages:
    """Returns some of the images of a memory-mapped file, `[N, H, W, C]`, to be read when they are indexed.

    >>> stream(np.arange(6, dtype=np.uint8).reshape(3, 1, 2, 1), np.array([0, 2]))[1:].ravel().tolist()
    [4, 5]
    """
    return StreamedImages(functools.partial(_read, images), positions, images.shape[1:])


def _read(images: np.ndarray, positions: np.ndarray) -> np.ndarray:
    check_size(images)
    read = to_bytes(images[positions])
    release(images)
    return read


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Returns images as uint8; floats in [0, 1] are rounded to 8 bits.

    >>> to_bytes(np.array([0.0, 1.0])).tolist()
    [0, 255]
    """
    return images if images.dtype == np.uint8 else np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)


def count_shared(images: np.ndarray | StreamedImages, others: np.ndarray | StreamedImages) -> int:
    """Returns how many of the other images are among the images; in memory are hashes of the others.

    >>> count_shared(np.zeros((2, 4, 4, 1)), np.array([[[[0.0]]], [[[1.0]]]]) * np.ones((1, 4, 4, 1)))
    1
    """
    counts = collections.Counter(_hashes(others))
    found = {known for known in _hashes(images) if known in counts}
    return sum(counts[known] for known in found)


def _hashes(images: np.ndarray | StreamedImages) -> Iterator[bytes]:
    for part in chunks(images):
        yield from (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in part)

"""Reads images and labels from `.npz` files and memory-mapped `.npy` files, part by part where they are large."""

import mmap
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from robust_gan.errors import DataError, one_line
from robust_gan.storage import files

_MAX_UNPACKED = 32_000_000_000
"""Bytes that the arrays of a file may have."""
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


def load_arrays(path: epath.PathLike, *, channels: str = "") -> Arrays:
    """Reads the arrays `images` and `labels` of an `.npz` file; nothing in it is unpickled.

    Args:
        path: The file.
        channels: `last` to take images of a shape that looks like channels first as they are.

    Raises:
        DataError: It is no such file, lacks an array, its labels are not class numbers, or its images look like
            channels first.

    >>> path = getfixture("tmp_path") / "a.npz"
    >>> np.savez(path, images=np.zeros((2, 4, 4, 1), np.uint8), labels=np.array([0, 1]))
    >>> load_arrays(path).labels.tolist()
    [0, 1]
    """
    try:
        arrays = files.read_arrays(path, largest=_MAX_UNPACKED)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}: give an .npz of images and labels") from error
    except files.UnreadableError as error:
        raise DataError(f"{path} is no .npz of plain arrays ({error})") from error
    missing = [name for name in ("images", "labels") if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks the array {missing[0]}: it has {', '.join(arrays) or 'none'}")
    return _check_arrays(path, arrays["images"], arrays["labels"], channels)


def map_arrays(images: str, labels: str, *, channels: str = "") -> Arrays:
    """Opens images and labels that lie in two `.npy` files; images are read from the file when they are used.

    Args:
        images: File of the images, `[N, H, W, C]`, on this machine.
        labels: File of the labels, `[N]`.
        channels: As in `load_arrays`.

    Raises:
        DataError: As for `load_arrays`.

    >>> folder = getfixture("tmp_path")
    >>> np.save(folder / "x.npy", np.zeros((2, 4, 4, 1), np.uint8)), np.save(folder / "y.npy", np.array([0, 1]))
    (None, None)
    >>> map_arrays(str(folder / "x.npy"), str(folder / "y.npy")).images.shape
    (2, 4, 4, 1)
    """
    opened = []
    for path in (images, labels):
        try:
            opened.append(np.lib.format.open_memmap(path, mode="r"))
        except FileNotFoundError as error:
            raise DataError(f"there is no file {path}: give IMAGES.npy,LABELS.npy") from error
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise DataError(f"{path} is no .npy of a plain array ({one_line(error)})") from error
    return _check_arrays(images, opened[0], np.array(opened[1]), channels)


def _check_arrays(path: epath.PathLike, images: np.ndarray, labels: np.ndarray, channels: str) -> Arrays:
    _check_labels(path, labels)
    if np.issubdtype(images.dtype, np.integer) and images.dtype != np.uint8:
        raise DataError(f"the images of {path} are {images.dtype}: give uint8 in 0..255, or floats in [0, 1]")
    largest = pixel_range(images)[1] if images.size and images.dtype.kind in "uf" else 0.0
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
            "images.transpose(0, 2, 3, 1); or --channels=last where the channels are last already"
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
        raise DataError(f"the labels of {path} are {labels.dtype}: give class numbers from 0")
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
    taken = to_unit(images[indices])
    _release(images)
    return taken


def chunks(images: np.ndarray, size: int = 2**25) -> Iterator[np.ndarray]:
    """Yields the images in parts of at most some bytes; of a memory-mapped file one part at a time is in memory.

    >>> [len(part) for part in chunks(np.zeros((5, 2), np.uint8), size=4)]
    [2, 2, 1]
    """
    rows = max(1, size // max(1, images[:1].nbytes))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]
        _release(images)


def pixel_range(images: np.ndarray) -> tuple[float, float]:
    """Returns the smallest and the largest pixel; NaN where a pixel is NaN.

    >>> pixel_range(np.array([[1], [3]], np.uint8))
    (1.0, 3.0)
    """
    ends = np.array([(part.min(), part.max()) for part in chunks(images)], np.float64)
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def _release(images):
    """Drops the pages of a file that is mapped for reading from this process's memory."""
    base = images
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and not images.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)

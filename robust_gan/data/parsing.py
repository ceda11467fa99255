"""Parses the published files of MNIST, CIFAR and SVHN."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robust_gan.errors import DataError, one_line


class Examples(NamedTuple):
    """The images of one split with their labels.

    Attributes:
        images: uint8 `[N, H, W, C]`.
        labels: The labels `[N]` by the name of their feature.
    """

    images: np.ndarray
    labels: Mapping[str, np.ndarray]


class Contents(NamedTuple):
    """The content of a data set.

    Attributes:
        splits: By name, a function that reads the split; large splits are never in memory together.
        names: The names of the classes by the name of the label feature, if published.
    """

    splits: Mapping[str, Callable[[], Examples]]
    names: Mapping[str, Sequence[str]]


def parse_idx(data: bytes, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an MNIST file: big-endian header, then one byte per pixel or label.

    Args:
        data: The unpacked file.
        name: Name of the file in errors.
        shape: The expected shape.

    Returns:
        uint8 of that shape.

    Raises:
        DataError: Header or length do not match.

    References:
        Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST database of handwritten digits",
        http://yann.lecun.com/exdb/mnist/

    >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), "labels", (2,)).tolist()
    [7, 9]
    """
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    if data[:4] != header[:4]:
        raise DataError(f"{name} must begin with the bytes {header[:4].hex()}, but begins with {data[:4].hex()!r}")
    if data[: len(header)] != header:
        found = np.frombuffer(data[4 : len(header)].ljust(4 * len(shape), b"\0"), ">u4").tolist()
        raise DataError(f"{name} must hold an array of shape {shape}, but says that its shape is {tuple(found)}")
    expected = len(header) + int(np.prod(shape))
    if len(data) != expected:
        raise DataError(f"{name} has {len(data):,} bytes when unpacked, and must have {expected:,}")
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


def parse_cifar(data: bytes, name: str, count: int, num_classes: Mapping[str, int]) -> Examples:
    """Reads a CIFAR binary file: records of the labels and 3,072 bytes of red, green and blue 32x32 planes.

    Args:
        data: The file.
        name: Name of the file in errors.
        count: The expected number of records.
        num_classes: The number of classes by the name of the label feature, in the order of the record.

    Returns:
        The examples, images uint8 `[count, 32, 32, 3]`.

    Raises:
        DataError: The length differs, or a label is out of range.

    References:
        A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009,
        https://www.cs.toronto.edu/~kriz/cifar.html

    >>> parse_cifar(bytes([3]) + bytes(3072), "batch", 1, {"label": 10}).labels["label"].tolist()
    [3]
    """
    size = len(num_classes) + 3 * 32 * 32
    if len(data) != count * size:
        raise DataError(
            f"{name} has {len(data):,} bytes, and must have {count * size:,}: {count:,} records of {size:,} bytes"
        )
    records = np.frombuffer(data, np.uint8).reshape(count, size)
    labels = {key: records[:, column].astype(np.int32) for column, key in enumerate(num_classes)}
    for key, values in labels.items():
        check_labels(values, num_classes[key], name)
    images = records[:, len(num_classes) :].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(images, labels)


def read_svhn(path: Path, count: int) -> Examples:
    """Reads an SVHN file of format 2 (cropped digits), in which the label 10 means the digit 0.

    Args:
        path: The `.mat` file.
        count: The expected number of images.

    Returns:
        The examples, images uint8 `[count, 32, 32, 3]`, labels 0..9.

    Raises:
        DataError: The format or the number of images differs, or a label is not in 1..10.

    References:
        Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011,
        http://ufldl.stanford.edu/housenumbers/
    """
    from scipy.io import loadmat

    try:
        contents = loadmat(path, variable_names=("X", "y"))
    # scipy raises many kinds of exceptions for damaged files.
    except Exception as error:
        raise DataError(f"{path} is damaged or no MATLAB 5 file: {one_line(error)}") from error
    images, labels = contents.get("X"), contents.get("y")
    if images is None or labels is None:
        raise DataError(f"{path} must hold the arrays X and y, but lacks {'X' if images is None else 'y'}")
    if images.shape != (32, 32, 3, count) or images.dtype != np.uint8:
        raise DataError(
            f"{path} must hold {count:,} images as uint8 of shape {(32, 32, 3, count)}, "
            f"but X is {images.dtype} of shape {images.shape}"
        )
    if labels.size != count or labels.dtype.kind not in "iu" or labels.min() < 1 or labels.max() > 10:
        raise DataError(f"{path} must hold {count:,} labels 1..10, 10 for the digit 0, but y does not")
    return Examples(np.moveaxis(images, -1, 0), {"label": labels.reshape(-1).astype(np.int32) % 10})


def parse_names(data: bytes, name: str, num_classes: int) -> list[str]:
    r"""Reads the names of the classes, one a line.

    Args:
        data: The file.
        name: Name of the file in errors.
        num_classes: K.

    Returns:
        K different names.

    Raises:
        DataError: There are not K different names.

    >>> parse_names(b"cat\ndog\n\n", "names", 2)
    ['cat', 'dog']
    """
    names = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise DataError(f"{name} must name {num_classes} different classes, but names {len(set(names))}")
    return names


def check_labels(labels: np.ndarray, num_classes: int, name: str) -> None:
    """Checks that labels are in 0..K-1.

    Args:
        labels: Integers `[N]`.
        num_classes: K.
        name: Their origin in errors.

    Raises:
        DataError: A label is out of range; the message names the first one and its position.

    >>> check_labels(np.array([0, 9]), 10, "labels")
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise DataError(
            f"{name} has the label {labels[wrong[0]]} at image {wrong[0]:,}, and labels must be in 0..{num_classes - 1}"
        )

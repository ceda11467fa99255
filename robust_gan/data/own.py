"""Images and labels of the user's own: an `.npz` file, a pair of `.npy` files, or a folder with a folder per class."""

import os
from typing import NamedTuple

import numpy as np
from etils import epath

from robust_gan.data.array_files import Arrays, check_arrays, check_names, read_npz
from robust_gan.data.folder import read_folder
from robust_gan.data.locations import KNOWN
from robust_gan.errors import DataError, one_line
from robust_gan.storage import paths

FORMS = "a data set such as mnist, an .npz of images and labels, IMAGES.npy,LABELS.npy, or a folder with one per class"
"""What stands for data, in sentences."""

_MAX_UNPACKED = 32_000_000_000
"""Bytes that the arrays of a file may have."""
_NO_DATA = (".npy", ".pt", ".pth", ".pkl", ".csv", ".zip", ".tar", ".gz", ".h5", ".mat", ".parquet")
"""What people take for data."""


class OwnData(NamedTuple):
    """Data of the user's own.

    Attributes:
        name: Of the file or folder.
        train: All images, or those to train on where there are others to test on.
        test: The images to test on; None where the files do not separate them.
        label_names: Names of the K classes; of a file their numbers.
    """

    name: str
    train: Arrays
    test: Arrays | None
    label_names: tuple[str, ...]


def locate(name: str) -> str:
    """Returns the absolute path of data of the user's own; empty for the name of a prepared data set.

    Args:
        name: A data set; or `FILE.npz`, `IMAGES.npy,LABELS.npy`, the same with `,TEST_IMAGES.npy,TEST_LABELS.npy`, or
            a folder.

    Raises:
        DataError: It is a file of another kind.

    >>> locate("mnist"), locate("/data/MINE.NPZ"), locate("/data/x.npy,/data/y.npy")
    ('', '/data/MINE.NPZ', '/data/x.npy,/data/y.npy')
    """
    if not name:
        raise DataError(f"--data is missing: give {FORMS}")
    parts = [part.strip() for part in name.split(",")]
    suffixes = {os.path.splitext(part)[1].lower() for part in parts}
    if (len(parts) in (2, 4) and suffixes == {".npy"}) or (len(parts) == 1 and suffixes == {".npz"}):
        return ",".join(os.fspath(paths.locate(part)) for part in parts)
    if len(parts) > 1 or suffixes & set(_NO_DATA):
        raise DataError(f"--data is {FORMS}, not {name}")
    path = os.path.abspath(os.path.expanduser(name))
    return path if name not in KNOWN and (os.path.isabs(os.path.expanduser(name)) or os.path.isdir(name)) else ""


def read(location: str, *, image_size: int = 0, channels: str = "") -> OwnData:
    """Reads data of the user's own; nothing is unpickled. Images of an `.npy` are read when they are used.

    Args:
        location: As `locate` returned it. An `.npz` has the arrays `images` and `labels`, and perhaps `test_images` and
            `test_labels`.
        image_size: Height and width to which the images of a folder are resized and cropped; 0 for as they are.
        channels: `last` to take images of a shape that looks like channels first as they are.

    Raises:
        DataError: There is no such file, lacks an array, its labels are not class numbers, or its images look like
            channels first or differ in size.

    >>> path = getfixture("tmp_path") / "a.npz"
    >>> np.savez(path, images=np.zeros((2, 4, 4, 1), np.uint8), labels=np.array([0, 1]))
    >>> read(str(path)).train.labels.tolist()
    [0, 1]
    """
    parts = location.split(",")
    if len(parts) > 1:
        return _map_pairs(parts, channels)
    if location.lower().endswith(".npz"):
        return _read_npz(location, channels)
    return OwnData(os.path.basename(location), *read_folder(location, image_size))


def _read_npz(path: str, channels: str) -> OwnData:
    arrays = read_npz(path, "images and labels", largest=_MAX_UNPACKED)
    has_test = "test_images" in arrays or "test_labels" in arrays
    check_names(path, arrays, "images", "labels", *(("test_images", "test_labels") if has_test else ()))
    train = check_arrays(path, arrays["images"], arrays["labels"], channels)
    test = check_arrays(path, arrays["test_images"], arrays["test_labels"], channels) if has_test else None
    return _numbered(path, train, test)


def _map_pairs(parts: list[str], channels: str) -> OwnData:
    opened = []
    for path in parts:
        try:
            opened.append(np.lib.format.open_memmap(path, mode="r"))
        except FileNotFoundError as error:
            raise DataError(f"there is no file {path}: give IMAGES.npy,LABELS.npy") from error
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise DataError(f"{path} is no .npy of a plain array ({one_line(error)})") from error
    pairs = [
        check_arrays(parts[start], opened[start], np.array(opened[start + 1]), channels)
        for start in range(0, len(parts), 2)
    ]
    return _numbered(parts[0], pairs[0], pairs[1] if len(pairs) > 1 else None)


def _numbered(path: str, train: Arrays, test: Arrays | None) -> OwnData:
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        raise DataError(
            f"all images must have one shape, but those of {path} have {train.images.shape[1:]} and those to test on "
            f"{test.images.shape[1:]}"
        )
    largest = max(
        (int(part.labels.max()) for part in (train, test) if part is not None and part.labels.size), default=-1
    )
    return OwnData(epath.Path(path).name, train, test, tuple(map(str, range(largest + 1))))

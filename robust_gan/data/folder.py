"""Images in a folder with a folder for each class, as torchvision's ImageFolder reads them."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from robust_gan.data.array_files import Arrays
from robust_gan.data.streaming import StreamedImages, is_large, threads
from robust_gan.errors import DataError, one_line

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files with another ending are no images."""

_GREY = ("1", "L", "LA")
"""Modes of Pillow."""
_TEST = ("test", "val", "validation")


def read_folder(folder: str, image_size: int = 0) -> tuple[Arrays, Arrays | None, tuple[str, ...]]:
    """Reads FOLDER/CLASS/*.png, or FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png; classes in order of names.

    Args:
        folder: The folder.
        image_size: Height and width to which images are cropped in their middle and resized; 0 for as they are.

    Returns:
        The images, those to test on or None, and the names of the classes. They have one channel where all of the
        folder are grey, otherwise three.

    Raises:
        DataError: A folder is missing or empty, files cannot be read as images, or the images differ in size.

    >>> folder = getfixture("tmp_path")
    >>> for name in ("cat", "dog"):
    ...     (folder / name).mkdir()
    ...     PIL.Image.new("L", (6, 4)).save(folder / name / "1.png")
    >>> train, test, names = read_folder(str(folder))
    >>> train.images.shape, train.labels.tolist(), test, names
    ((2, 4, 6, 1), [0, 1], None, ('cat', 'dog'))
    """
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder}: give one that has a folder of images for each class")
    inner = _folders(folder)
    held_out = [name for name in _TEST if name in inner]
    names = [folder]
    if "train" in inner and held_out:
        names = [os.path.join(folder, "train"), os.path.join(folder, held_out[0])]
    classes = _folders(names[0])
    parts = [_list_images(name, classes) for name in names]
    listed = [path for part in parts for path, _ in part]
    image_shape = _find_shape(listed, image_size)
    read = functools.partial(_read, listed, image_size, image_shape)
    images: Any = StreamedImages(read, np.arange(len(listed)), image_shape)
    streamed = is_large(len(listed), image_shape)
    images = images if streamed else images[:]
    arrays, start = [], 0
    for part in parts:
        labels = np.array([label for _, label in part], np.int32)
        positions = np.arange(start, start + len(part)) if streamed else slice(start, start + len(part))
        arrays.append(Arrays(images.select(positions) if streamed else images[positions], labels))
        start += len(part)
    return arrays[0], arrays[1] if len(arrays) > 1 else None, tuple(classes)


def _folders(folder: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _list_images(folder: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    if not classes:
        raise DataError(f"{folder} has no folders: put the images of each class into a folder of its own")
    if unknown := sorted(set(_folders(folder)) - set(classes)):
        raise DataError(f"{folder} has a class {unknown[0]!r}, which the images to train on lack")
    listed = []
    for label, name in enumerate(classes):
        inside = os.path.join(folder, name)
        found = sorted(os.listdir(inside)) if os.path.isdir(inside) else []
        found = [file for file in found if file.lower().endswith(SUFFIXES) and not file.startswith(".")]
        if not found:
            raise DataError(f"the folder {inside} holds no images ({', '.join(SUFFIXES)}): fill it, or remove it")
        listed += [(os.path.join(inside, file), label) for file in found]
    return listed


def _find_shape(paths: Sequence[str], image_size: int) -> tuple[int, int, int]:
    """Returns the shape of an image by the headers of all files."""
    found = list(threads().map(_read_header, paths))
    headers = [header for header in found if not isinstance(header, str)]
    if len(headers) < len(found):
        _refuse(paths, dict(enumerate(found)))
    channels = 1 if all(grey for *_, grey in headers) else 3
    first: dict[tuple[int, int], str] = {}
    for path, (height, width, _) in zip(paths, headers, strict=True):
        first.setdefault((image_size or height, image_size or width), path)
    if len(first) > 1:
        (here, one), (there, other), *_ = first.items()
        raise DataError(
            f"the images have {len(first)} sizes, such as {here[0]}x{here[1]} ({one}) and {there[0]}x{there[1]} "
            f"({other}): give --image_size=N to crop and resize them to N x N"
        )
    return (*next(iter(first)), channels)


def _read_header(path: str) -> tuple[int, int, bool] | str:
    """Returns the height, the width and whether the image is grey; or why it cannot be read."""
    try:
        with PIL.Image.open(path) as opened:
            if opened.mode[0] in "IF":
                return f"its pixels are of Pillow's mode {opened.mode}, of more than 8 bits"
            return opened.height, opened.width, opened.mode in _GREY
    except Exception as error:  # Pillow raises many kinds of exceptions for damaged files.
        return one_line(error)


def _read(
    paths: Sequence[str], image_size: int, image_shape: tuple[int, int, int], positions: np.ndarray
) -> np.ndarray:
    """Decodes some of the images."""
    images, failures = np.empty((len(positions), *image_shape), np.uint8), {}

    def decode(row: int) -> None:
        image = _decode(paths[positions[row]], image_size, image_shape)
        if isinstance(image, str):
            failures[positions[row]] = image
        else:
            images[row] = image

    list(threads().map(decode, range(len(positions))))
    if failures:
        _refuse(paths, failures)
    return images


def _decode(path: str, image_size: int, image_shape: tuple[int, int, int]) -> np.ndarray | str:
    """Returns the pixels, or why there are none."""
    try:
        with PIL.Image.open(path) as opened:
            image = opened.convert("L" if image_shape[-1] == 1 else "RGB")
        if image_size:
            image = PIL.ImageOps.fit(image, (image_size, image_size), PIL.Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(image_shape)
    except Exception as error:  # See `_read_header`.
        return one_line(error)


def _refuse(paths: Sequence[str], failures: Mapping[int, object]) -> None:
    """Names one of the files that cannot be read, those of which a text says why, and counts them among all."""
    known = {position: why for position, why in failures.items() if isinstance(why, str)}
    rest = list(threads().map(_find_damage, paths))
    damaged = [known.get(position) or why for position, why in enumerate(rest)]
    path, why = next((path, why) for path, why in zip(paths, damaged, strict=True) if why)
    count = sum(map(bool, damaged))
    raise DataError(
        f"{count} of {len(paths)} files cannot be read as images, such as {path} ({why}): remove or repair them"
    )


def _find_damage(path: str) -> str:
    try:
        with PIL.Image.open(path) as opened:
            opened.load()
    except Exception as error:  # See `_read_header`.
        return one_line(error)
    return ""

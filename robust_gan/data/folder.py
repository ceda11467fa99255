"""Images in a folder with a folder for each class, as torchvision's ImageFolder reads them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.ImageOps

from robust_gan.data.array_files import Arrays
from robust_gan.errors import DataError, one_line

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files with another ending are no images."""

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
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda path: _open(path, image_size), listed))
    _check(listed, found)
    grey = all(image.ndim == 2 for image in found if isinstance(image, np.ndarray))
    images = np.stack([_with_channels(image, grey) for image in found if isinstance(image, np.ndarray)])
    arrays, start = [], 0
    for part in parts:
        labels = np.array([label for _, label in part], np.int32)
        arrays.append(Arrays(images[start : start + len(part)], labels))
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


def _open(path: str, image_size: int) -> np.ndarray | str:
    """Returns the pixels, `[H, W]` of a grey image or `[H, W, 3]`; or why there are none."""
    try:
        with PIL.Image.open(path) as opened:
            image = opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")
            if image_size:
                image = PIL.ImageOps.fit(image, (image_size, image_size), PIL.Image.Resampling.BILINEAR)
            return np.asarray(image)
    except Exception as error:  # Pillow raises many kinds of exceptions for damaged files.
        return one_line(error)


def _check(paths: Sequence[str], found: Sequence[np.ndarray | str]) -> None:
    damaged = [(path, why) for path, why in zip(paths, found, strict=True) if isinstance(why, str)]
    if damaged:
        raise DataError(
            f"{len(damaged)} of {len(paths)} files cannot be read as images, such as {damaged[0][0]} "
            f"({damaged[0][1]}): remove or repair them"
        )
    first: dict[tuple[int, ...], str] = {}
    for path, image in zip(paths, found, strict=True):
        if isinstance(image, np.ndarray):
            first.setdefault(image.shape[:2], path)
    if len(first) > 1:
        (here, one), (there, other), *_ = first.items()
        raise DataError(
            f"the images have {len(first)} sizes, such as {here[0]}x{here[1]} ({one}) and {there[0]}x{there[1]} "
            f"({other}): give --image_size=N to crop and resize them to N x N"
        )


def _with_channels(image: np.ndarray, grey: bool) -> np.ndarray:
    image = image if image.ndim == 3 else image[..., None]
    return image if grey or image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)

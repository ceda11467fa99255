"""Loads a data set as arrays: training, validation and test split."""

import functools
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robust_gan.config import DataConfig
from robust_gan.data import own
from robust_gan.data.array_files import Arrays, check_images, count_shared, stream, to_bytes
from robust_gan.data.locations import (
    KNOWN,
    chosen_directory,
    data_directory,
    find_prepared,
    is_array_record,
    prepare_command,
    prepared_names,
)
from robust_gan.data.mirroring import mirrored
from robust_gan.data.order import permutation
from robust_gan.data.preparation import prepare
from robust_gan.data.reading import Split, open_prepared, open_split, read_split
from robust_gan.data.streaming import StreamedImages
from robust_gan.errors import DataError
from robust_gan.storage.paths import is_remote

_VALIDATION, _EXTRA, _TEST = 2, 3, 4
_TEST_SHARE, _MAX_TEST = 5, 10_000
"""Of a set of the user's own without images to test on: a fifth is held out, at most so many."""
_NUM_SUMMED = 1_000
"""Images of a mapped file that its checksum covers."""


class Dataset(NamedTuple):
    """A data set.

    Attributes:
        name: The requested name; of files of the user's own, that of the file.
        train: The training split; images of an `.npy` file, and of a set larger than `streaming.MAX_IN_MEMORY`, are
            `streaming.StreamedImages`.
        validation: The validation split, disjoint from `train`.
        test: The test split.
        num_classes: K.
        label_names: The names of the K classes.
        notes: Sentences on files of the user's own: how they were split, classes without images.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    label_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    validation_size: int,
    extra_size: int = 0,
    train_size: int | None = None,
    seed: int = 0,
    image_size: int = 0,
) -> Dataset:
    """Loads a data set prepared as array_record, or files of the user's own; `digits` is prepared if it is not yet.

    The validation images depend on `seed` alone, which is not the seed of the run.

    Guarantees:
        test_train_and_validation_share_no_image_and_lose_none
        test_loading_never_imports_tensorflow

    Args:
        name: `NAME`, `NAME/CONFIG` or `NAME:VERSION` of an image classification set of TensorFlow Datasets; or files of
            the user's own, see `own.locate`.
        data_dir: The folder of the prepared sets; see `data_directory`.
        validation_size: Number of images held out of `train`, at least 0.
        extra_size: Number of images of the split `extra` (SVHN) appended to the training images.
        train_size: Number of training images beside the validation images, None for all; a smaller choice is a subset
            of a larger one.
        seed: Chooses the validation images and those of `train_size` and `extra_size`.
        image_size: Height and width of the images of a folder; 0 for as they are.

    Returns:
        The data set; images are uint8.

    Raises:
        DataError: The set is unknown, not prepared, damaged or invalid, or it has too few images.

    >>> digits = load("digits", data_dir=getfixture("tmp_path"), validation_size=137)
    >>> digits.train.images.shape, digits.validation.images.shape, digits.test.images.shape
    ((1300, 8, 8, 1), (137, 8, 8, 1), (360, 8, 8, 1))
    """
    if location := own.locate(name):
        return _load_own(location, image_size, validation_size, train_size, seed)
    prepared = open_prepared(_find(name, data_dir))
    sizes = prepared.split_sizes
    test = "test" if "test" in sizes else "validation"
    for split in ("train", test):
        if not sizes.get(split):
            raise DataError(f"{name} needs images in the splits train and test (or validation), but has {sizes}")
    train_positions, validation_positions = _held_out(name, sizes["train"], validation_size, train_size, seed)
    if not 0 <= extra_size <= sizes.get("extra", 0):
        raise DataError(
            f"extra_size must be in 0..{sizes.get('extra', 0)} for {name}, whose splits are {', '.join(sizes)}, "
            f"but is {extra_size}"
        )
    parts = [
        (read_split if extra_size else open_split)(prepared, "train", train_positions),
        read_split(prepared, "train", validation_positions),
        open_split(prepared, test),
    ]
    if extra_size:
        chosen = permutation(sizes["extra"], seed, purpose=_EXTRA)[:extra_size]
        parts.append(read_split(prepared, "extra", np.sort(chosen)))
    shapes = {part.images.shape[1:] for part in parts if len(part.images)}
    if len(shapes) > 1:
        raise DataError(f"all images of {name} must have one shape, but there are {sorted(shapes)}")
    train, validation, test_split, *extra = parts
    if not validation_size:
        validation = Split(train.images[:0], train.labels[:0])
    if extra:
        train = Split(*(np.concatenate(arrays) for arrays in zip(train, *extra, strict=True)))
    return Dataset(name, train, validation, test_split, len(prepared.label_names), prepared.label_names)


def _load_own(location, image_size, validation_size, train_size, seed):
    found = _read_own(location, image_size)
    positions, test, test_positions, notes = _separate(found)
    chosen, held_out = _held_out(found.name, len(positions), validation_size, train_size, seed)
    train, test_split = _open(found.train, positions[chosen]), _open(test, test_positions)
    validation = _select(found.train, positions[held_out])
    names = found.label_names
    if (classes := len(np.unique(found.train.labels))) < len(names):
        notes += (f"{found.name} has images of {classes} of its {len(names)} classes, 0 to {len(names) - 1}",)
    return Dataset(found.name, train, validation, test_split, len(names), names, notes)


def find_overlap(dataset: Dataset) -> tuple[str, ...]:
    """Returns a sentence on test images that are training images, too; nothing where there are none.

    All images are read for it.

    >>> split = Split(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int32))
    >>> find_overlap(Dataset("mine", split, split, split, 2, ("0", "1")))
    ('warning: 1 of the 1 test images of mine is among the training images',)
    """
    shared, total = count_shared(dataset.train.images, dataset.test.images), len(dataset.test.labels)
    verb = "is" if shared == 1 else "are"
    sentence = f"warning: {shared:,} of the {total:,} test images of {dataset.name} {verb} among the training images"
    return (sentence,) if shared else ()


def _read_own(location: str, image_size: int) -> own.OwnData:
    found = own.read(location, image_size=image_size)
    for part in (found.train, found.test):
        if part is not None:
            check_images(*part, len(found.label_names))
    classes = np.unique(found.train.labels)
    if len(classes) < 2:
        raise DataError(f"all images of {found.name} are of class {classes[0]}: a classifier needs two classes or more")
    unknown = np.setdiff1d((found.test or found.train).labels, classes)
    if len(unknown):
        raise DataError(f"{found.name} has test images of class {unknown[0]}, which the images to train on lack")
    return found


def _separate(found: own.OwnData) -> tuple[np.ndarray, Arrays, np.ndarray, tuple[str, ...]]:
    """Returns the positions in `found.train` to train on, the arrays to test on with the positions there, and notes.

    Where the files do not separate them, a permutation does.
    """
    total = len(found.train.labels)
    if found.test is not None:
        return np.arange(total), found.test, np.arange(len(found.test.labels)), ()
    order, count = permutation(total, 0, purpose=_TEST), min(total // _TEST_SHARE, _MAX_TEST)
    if not count:
        raise DataError(
            f"{found.name} has {total} images, of which none can be held out for test: give {_TEST_SHARE} or more"
        )
    note = f"{found.name} has no test images: {count} of its {total} images are held out for test, drawn with seed 0"
    return np.sort(order[count:]), found.train, np.sort(order[:count]), (note,)


def _open(arrays: Arrays, positions: np.ndarray) -> Split:
    """Returns the images at some positions: in memory, or where they are mapped, to be read when they are used."""
    found: Any = arrays.images
    images: Any
    if isinstance(found, StreamedImages):
        images = found.select(positions)
    else:
        images = stream(found, positions) if isinstance(found, np.memmap) else to_bytes(found[positions])
    return Split(images, arrays.labels[positions].astype(np.int32))


def _select(arrays: Arrays, positions: np.ndarray) -> Split:
    """Reads the images at some positions."""
    images, labels = _open(arrays, positions)
    return Split(images[:], labels)


class Scored(NamedTuple):
    """One split for evaluation.

    Attributes:
        name: The requested name of the data set.
        images: uint8 `[N, H, W, C]`.
        labels: int32 `[N]`.
        label_names: The names of the K classes.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]


def load_split(config: DataConfig, split: str, *, count: int = 0, was_trained_on: bool = True) -> Scored:
    """Loads one split for evaluation; other splits need not exist.

    Args:
        config: The data set.
        split: `test`, the split of that name or else `validation` of the set; `train` and `validation` as in `load`.
        count: Number of first images; 0 for all.
        was_trained_on: Whether a model was trained with the configuration; otherwise nothing is held out of a set
            smaller than `validation_size`.

    Raises:
        DataError: As for `load`, or the set has no such split.

    >>> config = DataConfig(name="digits", data_dir=str(getfixture("tmp_path")), validation_size=137)
    >>> load_split(config, "test", count=5).images.shape
    (5, 8, 8, 1)
    """
    if own.locate(config.name):
        dataset = from_config(config)
        return Scored(dataset.name, *_first(getattr(dataset, split), count), dataset.label_names)
    prepared = open_prepared(_find(config.name, config.data_dir or None))
    sizes = prepared.split_sizes
    stored = ("test" if "test" in sizes else "validation") if split == "test" else "train"
    if not sizes.get(stored):
        raise DataError(f"{config.name} has no images to score as {split}: its splits are {sizes or 'none'}")
    if split == "train" and config.extra_size:
        return Scored(config.name, *_first(from_config(config).train, count), prepared.label_names)
    positions = np.arange(sizes[stored])
    if split != "test":
        held_out = config.validation_size
        if not was_trained_on and held_out >= sizes[stored]:
            held_out = 0
        train, validation = _held_out(config.name, sizes[stored], held_out, config.train_size or None)
        positions = train if split == "train" else validation
        if not len(positions):
            raise DataError(
                f"{config.name} has {sizes[stored]} images to train on, too few to hold {config.validation_size} of "
                "them out for validation: give the split test or train"
            )
    part = open_split(prepared, stored, positions[: count or None])
    return Scored(config.name, part.images, part.labels, prepared.label_names)


def _first(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count]) if count else split


def _held_out(name, total, validation_size, train_size, seed=0):
    """Returns the positions of the training and of the held-out images in the split `train`."""
    if not 0 <= validation_size < total:
        raise DataError(f"validation_size must be in 0..{total - 1} for {name}, but is {validation_size}")
    rest = total - validation_size
    train_size = rest if train_size is None else train_size
    if not 1 <= train_size <= rest:
        raise DataError(
            f"train_size must be in 1..{rest} for {name} with validation_size={validation_size}, but is {train_size}"
        )
    order = permutation(total, seed, purpose=_VALIDATION)
    return np.sort(order[validation_size : validation_size + train_size]), np.sort(order[:validation_size])


def from_config(config: DataConfig) -> Dataset:
    """Loads the data set of a configuration; see `load`.

    Raises:
        DataError: As for `load`.

    >>> config = DataConfig(name="digits", data_dir=str(getfixture("tmp_path")), validation_size=137, train_size=100)
    >>> len(from_config(config).train.labels)
    100
    """
    return load(
        config.name,
        data_dir=config.data_dir or None,
        validation_size=config.validation_size,
        extra_size=config.extra_size,
        train_size=config.train_size or None,
        image_size=config.image_size,
    )


def checksums(dataset: Dataset) -> dict[str, int]:
    """Returns a CRC-32 of each split, to compare them across processes and with those of an earlier run.

    Of images that are read from a file batch by batch, 1,000 count: a whole file may take minutes to read.

    Args:
        dataset: The data set.

    >>> split = Split(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int32))
    >>> list(checksums(Dataset("mine", split, split, split, 2, ("0", "1"))))
    ['train', 'validation', 'test']
    """
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    sums = {}
    for name, (images, labels) in splits.items():
        if isinstance(images, StreamedImages):
            images = images[np.linspace(0, len(images) - 1, _NUM_SUMMED).astype(int)]
        sums[name] = zlib.crc32(np.ascontiguousarray(labels).data, zlib.crc32(np.ascontiguousarray(images).data))
    return sums


def digest(sums: dict[str, int]) -> str:
    """Returns `checksums` as one text.

    Args:
        sums: The checksums by split.

    >>> digest({"train": 1, "test": 255})
    '00000001-000000ff'
    """
    return "-".join(f"{value:08x}" for value in sums.values())


def describe(config: DataConfig) -> tuple[tuple[int, ...], int]:
    """Returns the shape of an image, and how many images there are to train and validate on.

    Args:
        config: The data set.

    Raises:
        DataError: As for `load`.

    >>> describe(DataConfig(name="digits", data_dir=str(getfixture("tmp_path"))))
    ((8, 8, 1), 1437)
    """
    if location := own.locate(config.name):
        return _describe_own(location, config.image_size)
    prepared = open_prepared(_find(config.name, config.data_dir or None))
    first = read_split(prepared, "train", np.arange(1))
    return first.images.shape[1:], prepared.split_sizes["train"]


@functools.lru_cache  # A reproduction asks for each of its runs.
def _describe_own(location: str, image_size: int) -> tuple[tuple[int, ...], int]:
    found = _read_own(location, image_size)
    return found.train.images.shape[1:], len(_separate(found)[0])


def _find(name: str, data_dir: str | os.PathLike | None) -> Path:
    if is_remote(chosen_directory(data_dir)):
        return _find_in_store(name, chosen_directory(data_dir))
    directory = data_directory(data_dir)
    found = find_prepared(name, directory)
    if found is None and name == "digits":
        return prepare(name, data_dir=data_dir).directory
    if found is None and name in KNOWN:
        raise DataError(f"{name} is not prepared in {directory}: run {prepare_command(name, directory)}")
    if found is None:
        names = sorted({*KNOWN, *prepared_names(directory)})
        raise DataError(f"there is no data set {name!r} in {directory}; there may be {', '.join(names)}")
    if not is_array_record(found):
        command = f": run {prepare_command(name, directory / 'array_record')}" if name in KNOWN else ""
        raise DataError(
            f"{found} is not stored as array_record and cannot be read without TensorFlow, so prepare {name} as "
            f"array_record in another folder{command}"
        )
    return found


def _find_in_store(name: str, directory: str) -> Path:
    found = mirrored(name, directory)
    if found is None:
        raise DataError(
            f"{name} is not prepared in {directory}: prepare it in a folder of this machine and copy that, with "
            f"gcloud storage cp -r FOLDER/{name} {directory}/"
        )
    if not is_array_record(found):
        raise DataError(f"{name} in {directory} is not stored as array_record and cannot be read without TensorFlow")
    return found

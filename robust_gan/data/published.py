"""The published files of MNIST, CIFAR-10, CIFAR-100 and SVHN: where they are, and whether they are genuine."""

import functools
import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robust_gan.data.parsing import (
    Contents,
    Examples,
    check_labels,
    parse_cifar,
    parse_idx,
    parse_names,
    read_svhn,
)
from robust_gan.errors import DataError, one_line

# The published numbers of images. Tests make smaller sets by the same rules.
COUNTS = {
    "mnist": {"train": 60_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "svhn_cropped": {"train": 73_257, "test": 26_032, "extra": 531_131},
}

_CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


class PublishedFile(NamedTuple):
    """A file as its authors publish it.

    Attributes:
        url: Where.
        size: Its length in bytes.
        sha256: Its hash, as TensorFlow Datasets registers it.
    """

    url: str
    size: int
    sha256: str


class Layout(NamedTuple):
    """How the files of a set are packed.

    Attributes:
        archives: The members of each published archive; a file that is not packed is its own member.
        folder: The folder of the members inside the archive, and where the archive was extracted; may be empty.
    """

    archives: Mapping[str, tuple[str, ...]]
    folder: str = ""


LAYOUTS = {
    "mnist": Layout(
        {
            f"{member}.gz": (member,)
            for member in (
                "train-images-idx3-ubyte",
                "train-labels-idx1-ubyte",
                "t10k-images-idx3-ubyte",
                "t10k-labels-idx1-ubyte",
            )
        }
    ),
    "cifar10": Layout(
        {"cifar-10-binary.tar.gz": (*_CIFAR10_TRAIN, "test_batch.bin", "batches.meta.txt")}, "cifar-10-batches-bin"
    ),
    "cifar100": Layout(
        {"cifar-100-binary.tar.gz": ("train.bin", "test.bin", "coarse_label_names.txt", "fine_label_names.txt")},
        "cifar-100-binary",
    ),
    "svhn_cropped": Layout(
        {f"{split}_32x32.mat": (f"{split}_32x32.mat",) for split in ("train", "test", "extra")},
    ),
}

# No member is longer than this; it bounds what a forged archive can unpack to.
_MAX_MEMBER = 200_000_000


def find(name: str, folder: Path) -> dict[str, Path]:
    """Finds the files of a published set in a folder, packed or extracted.

    Args:
        name: One of `LAYOUTS`.
        folder: Holds the published archives, or their extracted files, or the folder that extracting made.

    Returns:
        By the name of each member, the file it is in: a published archive where there is one.

    Raises:
        DataError: The folder does not exist, or files are missing; the message says which.

    >>> find("mnist", Path("/nowhere"))
    Traceback (most recent call last):
        ...
    robust_gan.errors.DataError: the folder /nowhere does not exist
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder" if folder.exists() else f"the folder {folder} does not exist")
    layout, found, missing = LAYOUTS[name], {}, []
    for archive, members in layout.archives.items():
        if (folder / archive).is_file():
            found.update(dict.fromkeys(members, folder / archive))
            continue
        for member in members:
            places = [place for place in (folder / member, folder / layout.folder / member) if place.is_file()]
            if places:
                found[member] = places[0]
            else:
                missing.append(archive if len(members) == 1 else member)
    if missing and not found:
        raise DataError(
            f"{folder} holds none of the files of {name}: it must hold {', '.join(layout.archives)}, "
            "or the files that extracting makes of them"
        )
    if missing:
        raise DataError(f"{folder} holds only some of the files of {name}: {', '.join(missing)} missing")
    return found


def verify(path: Path, expected: PublishedFile, name: str | None = None) -> None:
    """Refuses an archive that is not byte for byte the one its authors published.

    Args:
        path: The file.
        expected: What it must be.
        name: What to call it in errors, its path where it is not given.

    Raises:
        DataError: Its length or its hash is another.
    """
    name, remedy = name or str(path), f"get it again from {expected.url}"
    size = path.stat().st_size
    if size != expected.size:
        raise DataError(f"{name} has {size:,} bytes, and the published file has {expected.size:,}: {remedy}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected.sha256:
        raise DataError(
            f"{name} is damaged: its SHA-256 is {digest}, and that of the published file is {expected.sha256}: {remedy}"
        )


def contents(name: str, files: Mapping[str, Path]) -> Contents:
    """Reads the files that `find` found; the large ones of SVHN only when their split is asked for.

    Args:
        name: One of `LAYOUTS`.
        files: By the name of each member, the file it is in.

    Returns:
        The splits and the names of the classes.

    Raises:
        DataError: A file is damaged, or is not what its name says.
    """
    counts = COUNTS[name]
    if name == "svhn_cropped":
        return Contents(
            {split: functools.partial(read_svhn, files[f"{split}_32x32.mat"], counts[split]) for split in counts}, {}
        )
    data = _read_members(files, LAYOUTS[name].folder)
    if name == "mnist":
        splits = {
            split: _mnist(data, files, prefix, counts[split])
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }
        return Contents({split: functools.partial(splits.__getitem__, split) for split in splits}, {})
    if name == "cifar10":
        members, classes = {"train": _CIFAR10_TRAIN, "test": ("test_batch.bin",)}, {"label": 10}
        names = {"label": parse_names(data["batches.meta.txt"], str(files["batches.meta.txt"]), 10)}
    else:
        members, classes = {"train": ("train.bin",), "test": ("test.bin",)}, {"coarse_label": 20, "label": 100}
        names = {
            feature: parse_names(data[member], str(files[member]), classes[feature])
            for feature, member in (("coarse_label", "coarse_label_names.txt"), ("label", "fine_label_names.txt"))
        }
    splits = {split: _cifar(data, files, members[split], counts[split], classes) for split in counts}
    return Contents({split: functools.partial(splits.__getitem__, split) for split in splits}, names)


def _mnist(data: Mapping[str, bytes], files: Mapping[str, Path], prefix: str, count: int) -> Examples:
    images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    pixels = parse_idx(data[images], str(files[images]), (count, 28, 28))
    classes = parse_idx(data[labels], str(files[labels]), (count,)).astype(np.int32)
    check_labels(classes, 10, str(files[labels]))
    return Examples(pixels[..., None], {"label": classes})


def _cifar(
    data: Mapping[str, bytes],
    files: Mapping[str, Path],
    members: tuple[str, ...],
    count: int,
    num_classes: Mapping[str, int],
) -> Examples:
    parts = [
        parse_cifar(data[member], _called(files[member], member), count // len(members), num_classes)
        for member in members
    ]
    return Examples(
        np.concatenate([part.images for part in parts]),
        {key: np.concatenate([part.labels[key] for part in parts]) for key in num_classes},
    )


def _called(path: Path, member: str) -> str:
    return str(path) if path.name == member else f"{member} in {path}"


def _read_members(files: Mapping[str, Path], folder: str) -> dict[str, bytes]:
    """Reads files into memory; nothing is ever extracted to the disk."""
    data = {}
    for path in dict.fromkeys(files.values()):
        members = [member for member, place in files.items() if place == path]
        try:
            if path.name.endswith(".tar.gz"):
                data.update(_read_tar(path, folder, members))
            elif path.suffix == ".gz":
                with gzip.open(path) as file:
                    data[members[0]] = file.read(_MAX_MEMBER)
            else:
                with path.open("rb") as file:
                    data[members[0]] = file.read(_MAX_MEMBER)
        except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
            raise DataError(f"{path} is damaged or cut off: {one_line(error)}") from error
    return data


def _read_tar(path: Path, folder: str, members: list[str]) -> dict[str, bytes]:
    """Reads regular members by their expected names; links, other names and absurd lengths do not count."""
    data = {}
    with tarfile.open(path, "r:gz") as archive:
        for entry in archive:
            member = entry.name.removeprefix("./").removeprefix(f"{folder}/")
            if member in members and entry.isreg() and entry.size <= _MAX_MEMBER:
                file = archive.extractfile(entry)
                assert file is not None  # It is regular.
                data[member] = file.read()
    missing = [member for member in members if member not in data]
    if missing:
        raise DataError(f"{path} lacks {', '.join(f'{folder}/{member}' for member in missing)}")
    return data

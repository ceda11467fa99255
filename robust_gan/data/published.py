"""The published files of MNIST, CIFAR-10, CIFAR-100 and SVHN: URLs, hashes and content."""

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


class PublishedSet(NamedTuple):
    """A data set as published by its authors and registered in TensorFlow Datasets.

    Attributes:
        version: In TensorFlow Datasets.
        description: One sentence.
        homepage: A URL.
        image_shape: (H, W, C).
        num_classes: K by the name of the label feature, in the order of the records.
        counts: Number of images of each split.
        url: The folder of the archives.
        hashes: SHA-256 of each archive.
        archives: The members of each archive; a file that is not packed is its own member.
        folder: The folder of the members inside the archive; may be empty.
        id_format: The format of the feature `id` from split and number of the image, if there is one.
    """

    version: str
    description: str
    homepage: str
    image_shape: tuple[int, int, int]
    num_classes: Mapping[str, int]
    counts: Mapping[str, int]
    url: str = ""
    hashes: Mapping[str, str] = {}
    archives: Mapping[str, tuple[str, ...]] = {}
    folder: str = ""
    id_format: str = ""


_CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_MNIST = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_SVHN = {
    "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    "extra_32x32.mat": "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3",
}

SETS = {
    "cifar10": PublishedSet(
        "3.0.2", "CIFAR-10: 60,000 colour images, 32x32 pixels, of 10 classes.", f"{_CIFAR}cifar.html",
        (32, 32, 3), {"label": 10}, {"train": 50_000, "test": 10_000}, _CIFAR,
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        {"cifar-10-binary.tar.gz": (*_CIFAR10_TRAIN, "test_batch.bin", "batches.meta.txt")},
        "cifar-10-batches-bin", "{}_{:05d}",
    ),
    "cifar100": PublishedSet(
        "3.0.2", "CIFAR-100: 60,000 colour images, 32x32 pixels, of 100 classes in 20 groups.", f"{_CIFAR}cifar.html",
        (32, 32, 3), {"coarse_label": 20, "label": 100}, {"train": 50_000, "test": 10_000}, _CIFAR,
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
        {"cifar-100-binary.tar.gz": ("train.bin", "test.bin", "coarse_label_names.txt", "fine_label_names.txt")},
        "cifar-100-binary", "{}_{:05d}",
    ),
    "digits": PublishedSet(
        "1.0.0", "The 1,797 handwritten digits that scikit-learn carries along, 8x8 pixels.",
        "https://doi.org/10.24432/C50P49", (8, 8, 1), {"label": 10}, {"train": 1_437, "test": 360},
    ),
    "mnist": PublishedSet(
        "3.0.1", "The MNIST database of handwritten digits.", "http://yann.lecun.com/exdb/mnist/",
        (28, 28, 1), {"label": 10}, {"train": 60_000, "test": 10_000},
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {f"{member}.gz": digest for member, digest in _MNIST.items()},
        {f"{member}.gz": (member,) for member in _MNIST},
    ),
    "svhn_cropped": PublishedSet(
        "3.1.0", "The Street View House Numbers (SVHN), digits cropped to 32x32 pixels.",
        "http://ufldl.stanford.edu/housenumbers/", (32, 32, 3), {"label": 10},
        {"train": 73_257, "test": 26_032, "extra": 531_131}, "http://ufldl.stanford.edu/housenumbers/",
        _SVHN, {name: (name,) for name in _SVHN}, id_format="{}_{:06d}",
    ),
}  # fmt: skip

# No member is longer; limits the size of a forged archive.
_MAX_MEMBER = 200_000_000


def find(name: str, folder: Path) -> dict[str, Path]:
    """Finds the files of a published set in a folder, packed or extracted.

    Args:
        name: One of `SETS`.
        folder: Holds the published archives, their extracted files, or the extracted folder.

    Returns:
        By the name of each member, the file that holds it, preferably a published archive.

    Raises:
        DataError: The folder does not exist, or files are missing.

    >>> find("mnist", Path("/nowhere"))
    Traceback (most recent call last):
        ...
    robust_gan.errors.DataError: the folder /nowhere does not exist
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder" if folder.exists() else f"the folder {folder} does not exist")
    known, found, missing = SETS[name], {}, []
    for archive, members in known.archives.items():
        for member in members:
            places = (folder / archive, folder / member, folder / known.folder / member)
            place = next((place for place in places if place.is_file()), None)
            if place is not None:
                found[member] = place
            else:
                missing.append(archive if len(members) == 1 else member)
    if missing and not found:
        raise DataError(
            f"{folder} holds none of the files of {name}: it must hold {', '.join(known.archives)}, "
            "or the files that extracting makes of them"
        )
    if missing:
        raise DataError(f"{folder} holds only some of the files of {name}: {', '.join(missing)} missing")
    return found


def contents(name: str, files: Mapping[str, Path]) -> Contents:
    """Reads the files returned by `find`; the large files of SVHN only when their split is read.

    Args:
        name: One of `SETS`.
        files: By the name of each member, the file that holds it.

    Returns:
        The splits and the names of the classes.

    Raises:
        DataError: An archive differs from the published one, or a file is damaged.
    """
    known, parse, names = SETS[name], functools.partial, {}
    _verify(known, set(files.values()))
    if name == "svhn_cropped":
        read = {split: parse(read_svhn, files[f"{split}_32x32.mat"], count) for split, count in known.counts.items()}
        return Contents(read, {})
    data = _read_members(files, known.folder)
    if name == "mnist":
        prefixes = {"train": "train", "test": "t10k"}
        read = {split: parse(_mnist, data, files, prefixes[split], count) for split, count in known.counts.items()}
        return Contents(read, {})
    if name == "cifar10":
        members, named = {"train": _CIFAR10_TRAIN, "test": ("test_batch.bin",)}, {"label": "batches.meta.txt"}
    else:
        members = {"train": ("train.bin",), "test": ("test.bin",)}
        named = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
    for feature, member in named.items():
        names[feature] = parse_names(data[member], str(files[member]), known.num_classes[feature])
    read = {
        split: parse(_cifar, data, files, members[split], count, known.num_classes)
        for split, count in known.counts.items()
    }
    return Contents(read, names)


def _verify(known: PublishedSet, files: set[Path]) -> None:
    """Checks the hashes of archives; extracted files have no published hash."""
    for path in sorted(files):
        if expected := known.hashes.get(path.name):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != expected:
                raise DataError(
                    f"{path} is damaged: its SHA-256 is {digest}, and that of the published file is {expected}: get it "
                    f"again from {known.url}{path.name}"
                )


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
    """Reads files into memory; nothing is extracted to the disk."""
    data = {}
    for path in dict.fromkeys(files.values()):
        members = [member for member, place in files.items() if place == path]
        try:
            if path.name.endswith(".tar.gz"):
                data.update(_read_tar(path, folder, members))
            else:
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                    data[members[0]] = file.read(_MAX_MEMBER)
        except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
            raise DataError(f"{path} is damaged or cut off: {one_line(error)}") from error
    return data


def _read_tar(path: Path, folder: str, members: list[str]) -> dict[str, bytes]:
    """Reads regular members by their expected names; links, other names and too long members are ignored."""
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

"""Folders of prepared data sets: DATA_DIR/NAME[/CONFIG]/VERSION, as in TensorFlow Datasets."""

import os
import re
from pathlib import Path
from typing import TypeVar

from robust_gan.errors import DataError
from robust_gan.storage import files, paths

KNOWN = ("cifar10", "cifar100", "digits", "mnist", "svhn_cropped")
"""The data sets that `prepare` supports; any other prepared one is found by its name."""

AnyPath = TypeVar("AnyPath", bound=Path)
"""A local path, or one in an object store."""

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>\w[\w.+-]*))?(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)


def data_directory(data_dir: str | os.PathLike | None = None) -> Path:
    """Returns the folder of the prepared data sets.

    Args:
        data_dir: The folder; by default `$ROBUST_GAN_DATA_DIR`, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`,
            the default of TensorFlow Datasets.

    Raises:
        DataError: It is in an object store, where nothing can be prepared.

    >>> data_directory("/data")
    PosixPath('/data')
    """
    chosen = chosen_directory(data_dir)
    if paths.is_remote(chosen):
        raise DataError(f"data cannot be prepared in {chosen}: prepare them in a folder of this machine, and copy that")
    return Path(chosen).expanduser()


def chosen_directory(data_dir: str | os.PathLike | None = None) -> str:
    """Returns the folder as given or by default, which may be gs://BUCKET/FOLDER.

    >>> chosen_directory("gs://bucket/data")
    'gs://bucket/data'
    """
    default = os.environ.get("ROBUST_GAN_DATA_DIR") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return os.fspath(data_dir or default)


def prepared_names(directory: Path) -> list[str]:
    """Returns the names of the prepared data sets in a folder, as `load` takes them.

    >>> prepared_names(Path("/nowhere"))
    []
    """
    names = set()
    for info in (*directory.glob("*/*/dataset_info.json"), *directory.glob("*/*/*/dataset_info.json")):
        name = info.parent.parent.relative_to(directory).as_posix()
        if _is_complete(info.parent) and _NAME.fullmatch(name):  # Temporary folders start with a dot.
            names.add(name)
    return sorted(names)


def find_prepared(name: str, directory: AnyPath) -> AnyPath | None:
    """Returns the folder of the newest version of a prepared data set; None if there is none.

    Args:
        name: `NAME`, `NAME/CONFIG` or either with `:VERSION`.
        directory: The folder of all data sets.

    Raises:
        DataError: The name is invalid, or the set has several configurations and none is named.

    >>> find_prepared("mnist", Path("/nowhere")) is None
    True
    """
    parts = _NAME.fullmatch(name)
    if not parts:
        raise DataError(f"a data set is called NAME, NAME/CONFIG or NAME:1.0.0, but not {name!r}")
    folder = directory / parts["name"]
    if parts["config"]:
        folder /= parts["config"]
    elif not _versions(folder, parts["version"]):
        configs = sorted(child.name for child in _children(folder) if _versions(child, parts["version"]))
        if len(configs) > 1:
            choices = ", ".join(f"{parts['name']}/{config}" for config in configs)
            raise DataError(f"{name} is prepared in several configurations: name one of {choices}")
        folder = folder / configs[0] if configs else folder
    versions = _versions(folder, parts["version"])
    return versions[-1] if versions else None


def is_array_record(prepared: Path) -> bool:
    """Returns whether a prepared data set can be read without TensorFlow.

    Raises:
        DataError: Its description is damaged.
    """
    path = prepared / "dataset_info.json"
    try:
        info = files.read_json(path)
        return "array_record" in (info.get("fileFormat"), *info.get("alternativeFileFormats", ()))
    except (FileNotFoundError, files.UnreadableError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is damaged: remove {prepared} and prepare the data set again") from error


def prepare_command(name: str, directory: Path) -> str:
    """Returns the command that prepares a data set, for error messages.

    >>> prepare_command("mnist", Path("/data"))
    'robust-gan-prepare-data --dataset=mnist --data_dir=/data'
    """
    command = f"robust-gan-prepare-data --dataset={name}"
    return command if directory == data_directory() else f"{command} --data_dir={directory}"


def _children(folder: AnyPath) -> list[AnyPath]:
    return [child for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []


def _versions(folder: AnyPath, version: str | None) -> list[AnyPath]:
    found = [
        child
        for child in _children(folder)
        if _VERSION.fullmatch(child.name) and version in (None, child.name) and _is_complete(child)
    ]
    return sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))


def _is_complete(prepared: Path) -> bool:
    return (
        bool(_VERSION.fullmatch(prepared.name))
        and (prepared / "dataset_info.json").is_file()
        and (prepared / "features.json").is_file()
    )

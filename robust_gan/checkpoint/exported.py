"""Models in one safetensors file, whose header holds the record of the checkpoint; the models of the zoo are such."""

import json
import os
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from robust_gan.errors import CheckpointError, UserError, one_line, writing
from robust_gan.storage import paths, workdir

SUFFIX = ".safetensors"
ZOO = "zoo:"
"""Begins the location of a shipped model."""

FOLDER = epath.Path(__file__).parent.parent / "zoo"
"""Holds the shipped models and their cards."""

_KEY = "robust_gan"


def is_exported(location: epath.PathLike) -> bool:
    """Returns whether a location is `zoo:NAME` or a file of `write`, rather than a folder.

    >>> is_exported("zoo:digits/pgd"), is_exported("a.safetensors"), is_exported("runs/digits")
    (True, True, False)
    """
    text = os.fspath(location)
    return text.startswith(ZOO) or (text.endswith(SUFFIX) and not paths.locate(text).is_dir())


def list_names() -> list[str]:
    """Returns the names of the shipped models, which are those that have a card."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in FOLDER.glob("*/*.json"))


def find_card(name: str) -> epath.Path:
    """Returns the path of the card of a shipped model.

    Raises:
        CheckpointError: There is no such model.
    """
    if name not in list_names():
        raise CheckpointError(f"there is no model {name!r} in the zoo: the models are {', '.join(list_names())}")
    return FOLDER / f"{name}.json"


def find_file(location: epath.PathLike) -> epath.Path:
    """Returns the path of the file of an exported model.

    Args:
        location: `zoo:NAME`, or the file.

    Raises:
        CheckpointError: There is no such file or name.
    """
    text = os.fspath(location)
    path = find_card(text.removeprefix(ZOO)).with_suffix(SUFFIX) if text.startswith(ZOO) else paths.locate(text)
    if paths.exists(path):
        return path
    if text.startswith(ZOO):
        raise CheckpointError(f"{text} has a card, but its weights {path} are missing: install robust_gan again")
    raise CheckpointError(f"there is no file {path}: give a file of robust-gan-export")


def read(location: epath.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of an exported model by name, and its record; nothing is unpickled.

    Args:
        location: `zoo:NAME`, or the file.

    Raises:
        CheckpointError: The file is missing, damaged, or was not written by `write`.
    """
    path = find_file(location)
    try:
        content = path.read_bytes()
        arrays = safetensors.numpy.load(content)
    except Exception as error:  # Of the library, of NumPy for unknown types, and of the file system.
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({one_line(error)}): copy it again, or export it again"
        ) from error
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return arrays, dict(json.loads(header["__metadata__"][_KEY]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} was not written by robust_gan, its header has no record: give a file of robust-gan-export"
        ) from error


def write(file: epath.PathLike, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> epath.Path:
    """Writes a model to one file, atomically; an earlier file is replaced.

    Args:
        file: Ends in `.safetensors`; its folder is made.
        arrays: The arrays by name.
        record: JSON-able.

    Returns:
        The absolute path.

    Raises:
        UserError: The file has another ending, or cannot be written.

    >>> path = write(getfixture("tmp_path") / "a.safetensors", {"x": np.zeros(2, np.float32)}, {"step": 3})
    >>> read(path)
    ({'x': array([0., 0.], dtype=float32)}, {'step': 3})
    """
    path = check_target(file)
    with writing(path, "give another file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_bytes(path, safetensors.numpy.save(arrays, {_KEY: json.dumps(record)}))
    return path


def check_target(file: epath.PathLike) -> epath.Path:
    """Returns the absolute path of a file to write.

    Raises:
        UserError: It has another ending, or is a folder.

    >>> check_target("/runs/pgd.pt")
    Traceback (most recent call last):
    robust_gan.errors.UserError: a model is exported to a file that ends in .safetensors, not to /runs/pgd.pt
    """
    path = paths.locate(file)
    if path.suffix != SUFFIX:
        raise UserError(f"a model is exported to a file that ends in {SUFFIX}, not to {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file to export to")
    return path

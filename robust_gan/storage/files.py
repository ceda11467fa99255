"""Reads files of users and of killed programs: any damage raises one exception, `UnreadableError`."""

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

from etils import epath

from robust_gan.errors import UserError, one_line
from robust_gan.storage import paths

if TYPE_CHECKING:
    import numpy as np

_NPY = b"\x93NUMPY"


class UnreadableError(ValueError):
    """A file that exists but cannot be read; the message is a phrase with the reason."""


def read_arrays(path: epath.PathLike, *, largest: int | None = None) -> dict[str, "np.ndarray"]:
    """Returns the arrays of an `.npz` file by name, without unpickling.

    Args:
        path: The file, local or in an object store.
        largest: Most bytes of all arrays together; None for any number.

    Raises:
        FileNotFoundError: The file does not exist.
        UnreadableError: It is no `.npz` file, is damaged, holds objects, or is larger than `largest`.

    >>> path = getfixture("tmp_path") / "a.npz"
    >>> import numpy as np
    >>> np.savez(path, a=np.arange(2))
    >>> read_arrays(path)["a"].tolist()
    [0, 1]
    >>> path.write_bytes(path.read_bytes()[:100]) and read_arrays(path)
    Traceback (most recent call last):
    robust_gan.storage.files.UnreadableError: File is not a zip file
    """
    return _attempt(lambda: _unpack(_read_bytes(path), largest))


def unpack_arrays(content: bytes) -> dict[str, "np.ndarray"]:
    """Returns the arrays of the bytes of an `.npz` file.

    Raises:
        UnreadableError: As for `read_arrays`.

    >>> unpack_arrays(b"no archive")
    Traceback (most recent call last):
    robust_gan.storage.files.UnreadableError: File is not a zip file
    """
    return _attempt(lambda: _unpack(content, None))


def read_json(path: epath.PathLike) -> Any:
    """Returns the value of a JSON file.

    Raises:
        FileNotFoundError: The file does not exist.
        UnreadableError: It cannot be read or is no JSON.

    >>> path = getfixture("tmp_path") / "a.json"
    >>> path.write_text("[1, ") and read_json(path)
    Traceback (most recent call last):
    robust_gan.storage.files.UnreadableError: Expecting value: line 1 column 5 (char 4)
    """
    return _attempt(lambda: json.loads(_read_bytes(path)))


def read_lines(path: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the objects of a JSON lines file, without incomplete lines.

    Raises:
        UnreadableError: The file cannot be read.

    >>> path = getfixture("tmp_path") / "a.jsonl"
    >>> path.write_text('{"step": 1}\\n{"st') and read_lines(path)
    [{'step': 1}]
    """
    try:
        content = _attempt(lambda: paths.locate(path).read_bytes())
    except FileNotFoundError:
        return []
    lines = []
    for line in content.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def _attempt(read):
    try:
        return read()
    except (FileNotFoundError, UnreadableError, UserError):
        raise
    except OSError as error:
        raise UnreadableError(f"it cannot be read: {(error.strerror or one_line(error)).lower()}") from error
    # Damaged archives raise exceptions of zlib, zipfile, lzma, struct, tokenize, NumPy and Python itself.
    except Exception as error:
        raise UnreadableError(one_line(error)) from error


def _read_bytes(path: epath.PathLike) -> bytes:
    content = paths.locate(path).read_bytes()
    if not content:
        raise UnreadableError("it is empty")
    return content


def _unpack(content: bytes, largest: int | None) -> dict[str, "np.ndarray"]:
    import numpy as np  # Here, so that errors in the command line are reported before it is loaded.

    if content.startswith(_NPY):
        raise UnreadableError("it is a single array as numpy.save writes it, give what numpy.savez writes")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if any(member.flag_bits & 1 for member in archive.infolist()):
            raise UnreadableError("it is encrypted")
    if largest is not None and size > largest:  # A small file can unpack to any size.
        raise UnreadableError(f"it unpacks to {size / 1e9:.0f} GB, more than the {largest / 1e9:.0f} GB allowed")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: np.asarray(file[name]) for name in file.files}

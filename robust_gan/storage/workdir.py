"""The workdir of a run: its lock, its configuration and its JSON lines."""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import filelock
from etils import epath

from robust_gan import config as config_lib
from robust_gan.config import Config
from robust_gan.errors import UserError, writing
from robust_gan.storage import files, paths
from robust_gan.version import __version__

CONFIG = "config.json"
METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
STARTS = "starts.jsonl"
"""A line for each start of the run, with its first step, command, commit and time."""

SECONDS = 10.0
"""Seconds between two writes of a JSON lines file in an object store, which cannot append."""

_LOCK = ".lock"
_VERSION = "robust_gan"
_LARGEST_CONFIG = 1 << 20


class WorkdirLock:
    """A locked workdir.

    Args:
        path: The workdir.
        lock: `os.stat` of its locked lock file; None in an object store, which has no locks.

    Attributes:
        path: The workdir, absolute and without links.
    """

    def __init__(self, path: epath.Path, lock: os.stat_result | None) -> None:
        self.path, self._lock = path, lock

    def require(self) -> None:
        """Checks that the workdir is still the locked one: one that was removed or replaced has another lock file.

        Raises:
            UserError: It was removed or replaced, so nothing more may be written.
        """
        if self._lock is None:
            return
        try:
            same = os.path.samestat(self._lock, os.stat(self.path / _LOCK))
        except OSError:
            same = False
        if not same:
            raise UserError(
                f"the workdir {self.path} was removed or replaced while this run was going: nothing more is written "
                "there; start anew in another workdir"
            )


@contextlib.contextmanager
def lock(directory: epath.PathLike, config: Config) -> Iterator[WorkdirLock]:
    """Locks a workdir for this run while the context lasts.

    Args:
        directory: Created if it does not exist; a link is followed. In an object store the caller ensures that one run
            alone uses it.
        config: The configuration, written to `config.json`.

    Yields:
        The lock.

    Raises:
        UserError: See `check`, or another process is training in it. Nothing is written then.
    """
    path = check(directory, config)
    text = json.dumps({_VERSION: __version__, **config_lib.to_dict(config)}, indent=2) + "\n"
    if paths.is_remote(path):
        try:
            write_text(path / CONFIG, text)
        except Exception as error:  # Every store fails in its own way.
            raise UserError(f"the workdir {path} cannot be written ({error}): give one that can") from error
        yield WorkdirLock(path, None)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Resolved, so that two links to one folder share a lock and a link that changes later has no effect.
        path = epath.Path(os.path.realpath(path))
        # The system releases the lock when the process ends, however it ends.
        file_lock = filelock.FileLock(path / _LOCK).acquire(timeout=0)
        locked = WorkdirLock(path, os.stat(path / _LOCK))
    except filelock.Timeout as error:
        raise UserError(f"another process is training in {path}: wait for it, or give another workdir") from error
    except OSError as error:
        raise UserError(
            f"the workdir {path} cannot be written ({str(error.strerror).lower()}): give a folder that can"
        ) from error
    with file_lock:
        check(path, config)
        write_text(path / CONFIG, text)
        yield locked


def check(directory: epath.PathLike, config: Config) -> epath.Path:
    """Checks a workdir without writing to it.

    Args:
        directory: The workdir, which need not exist.
        config: The configuration.

    Returns:
        The absolute path.

    Raises:
        UserError: It is a file or below one, a broken link or below one, not writable, or holds a run of another
            configuration (the error names the fields), of a newer version, or an unreadable `config.json`.

    >>> check("/nosuch", Config()).name
    'nosuch'
    """
    path = paths.locate(directory)
    if not paths.is_remote(path):
        _check_local(path)
    file = path / CONFIG
    if not paths.exists(file):
        return path
    version = ""
    try:
        if not paths.is_remote(file) and file.stat().length > _LARGEST_CONFIG:
            raise ValueError("it is too large")
        values = files.read_json(file)
        version = str(values.pop(_VERSION, "")) if isinstance(values, dict) else ""
        there = config_lib.from_dict(values)
    except (ValueError, OSError, RecursionError) as error:
        if _is_newer(version):
            raise UserError(
                f"{path} holds a run of robust_gan {version}, and this is {__version__} ({error}): resume it with that "
                "version, or give another workdir"
            ) from error
        raise UserError(f"{file} is not a configuration ({error}): give another workdir") from error
    if names := config_lib.differences(there, config):
        raise UserError(
            f"{path} holds a run of another configuration (there != here: {'; '.join(names)}): "
            "give another workdir, or the same configuration to resume it"
        )
    return path


def _check_local(path: epath.Path) -> None:
    if "\0" in os.fspath(path):
        raise UserError(f"the workdir {os.fspath(path)!r} cannot be used (it has a null character): give another")
    nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if os.path.islink(nearest) and not nearest.exists():
        raise UserError(
            f"the workdir {path} is or lies below a link to {os.readlink(nearest)}, which is not there: make that "
            "folder, or give another"
        )
    if not nearest.is_dir():
        raise UserError(f"the workdir {path} is a file: give a folder" if nearest == path else
                        f"the workdir {path} lies below the file {nearest}: give a folder")  # fmt: skip
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"the workdir {path} cannot be written (permission denied): give a folder that can")


def _is_newer(version: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"[0-9]+", text[:50])]

    return numbers(version) > numbers(__version__)


def write_text(path: epath.Path, text: str) -> None:
    """Writes a text file atomically.

    Args:
        path: The file, in a folder that exists.
        text: The content.

    >>> path = epath.Path(getfixture("tmp_path")) / "a.txt"
    >>> write_text(path, "whole")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('whole', 1)
    """
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a binary file atomically.

    >>> path = epath.Path(getfixture("tmp_path")) / "a.npz"
    >>> write_bytes(path, b"whole")
    >>> path.read_bytes()
    b'whole'
    """
    with open_atomically(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_atomically(path: epath.Path) -> Iterator[BinaryIO]:
    """Opens a binary file for writing, which has its name when it is whole.

    >>> path = epath.Path(getfixture("tmp_path")) / "a.npz"
    >>> with open_atomically(path) as file:
    ...     written, exists = file.write(b"whole"), path.exists()
    >>> exists, path.read_bytes()
    (False, b'whole')
    """
    partial = path if paths.is_remote(path) else path.parent / f".{path.name}.partial"
    try:
        with partial.open("wb") as file:
            yield file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if partial != path:
        partial.replace(path)


class JsonlWriter:
    """Appends JSON lines to a file, from the step of a checkpoint.

    Args:
        path: The file.
        step: The step of the checkpoint. Lines of later steps and incomplete lines are removed, since the resumed run
            writes them again.

    >>> lines = JsonlWriter(epath.Path(getfixture("tmp_path")) / "metrics.jsonl", step=0)
    >>> lines.write(50, {"train/clean_loss": 0.5})
    >>> lines.close()
    >>> (getfixture("tmp_path") / "metrics.jsonl").read_text()
    '{"step": 50, "train/clean_loss": 0.5}\\n'
    """

    def __init__(self, path: epath.Path, step: int) -> None:
        kept = []
        for line in path.read_bytes().split(b"\n") if path.exists() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line.decode() + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_text(path, "".join(kept))
        self._path, self._lines, self._written = path, kept, time.monotonic()
        # Open as long as the run.
        self._file = None if paths.is_remote(path) else open(path, "a")  # noqa: SIM115

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends a line and flushes it; in an object store, within `SECONDS`.

        Args:
            step: Steps taken.
            values: JSON-able.

        Raises:
            UserError: The disk is full or no longer writable.
        """
        line = json.dumps({"step": step, **values}) + "\n"
        with self._writing():
            if self._file is not None:
                self._file.write(line)
                self._file.flush()
                return
            self._lines.append(line)
            if time.monotonic() - self._written >= SECONDS:
                self._rewrite()

    def close(self) -> None:
        """Closes the file."""
        with self._writing():
            if self._file is not None:
                self._file.close()
            else:
                self._rewrite()

    def _rewrite(self) -> None:
        write_text(self._path, "".join(self._lines))
        self._written = time.monotonic()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self._path, "make room, or give another workdir; finished checkpoints are intact")

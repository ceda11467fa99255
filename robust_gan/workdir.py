"""The folder of a run: whose it is, and its lines of metrics."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from robust_gan import config as config_lib
from robust_gan.config import Config
from robust_gan.errors import UserError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"

_LOCK = ".lock"
_LARGEST_CONFIG = 1 << 20


@contextlib.contextmanager
def claim(directory: epath.PathLike, config: Config) -> Iterator[epath.Path]:
    """Makes a folder this run's own while the context lasts.

    Args:
        directory: Made where there is none.
        config: The run's configuration, written to `config.json`.

    Yields:
        The absolute path of the folder.

    Raises:
        UserError: The folder is a file, cannot be written, holds a run of another configuration (the sentence names
            the fields), or another process is training in it. Nothing is written then.
    """
    path = check(directory, config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / _LOCK, "w")  # noqa: SIM115 - held as long as the context.
    except OSError as error:
        raise UserError(
            f"the workdir {path} cannot be written ({str(error.strerror).lower()}): give a folder that can"
        ) from error
    with lock:
        try:
            # The kernel drops the lock with the process, however it dies.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training in {path}: wait for it, or give another workdir") from error
        check(path, config)
        write_text(path / CONFIG, json.dumps(config_lib.to_dict(config), indent=2) + "\n")
        yield path


def check(directory: epath.PathLike, config: Config) -> epath.Path:
    """Refuses a folder that a run cannot have, without touching it.

    Args:
        directory: It need not exist.
        config: The run's configuration.

    Returns:
        The absolute path of the folder.

    Raises:
        UserError: It is a file or lies below one, is known not to be writable, or holds a run of another configuration
            (the sentence names the fields that differ) or a `config.json` that is none.

    >>> check("/nosuch", Config()).name
    'nosuch'
    """
    path = epath.Path(os.path.abspath(os.path.expanduser(os.fspath(directory))))
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"the workdir {path} is a file: give a folder" if nearest == path else
                        f"the workdir {path} lies below the file {nearest}: give a folder")  # fmt: skip
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"the workdir {path} cannot be written (permission denied): give a folder that can")
    file = path / CONFIG
    if not file.exists():
        return path
    try:
        if file.stat().length > _LARGEST_CONFIG:
            raise ValueError("it is too large")
        there = config_lib.from_dict(json.loads(file.read_text()))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file} is not a configuration ({error}): give another workdir") from error
    if names := config_lib.differences(there, config):
        raise UserError(
            f"{path} holds a run of another configuration (there != here: {'; '.join(names)}): "
            "give another workdir, or the same configuration to go on with it"
        )
    return path


def write_text(path: epath.Path, text: str) -> None:
    """Writes a file whole or not at all.

    Args:
        path: Its folder exists.
        text: What it is to hold.

    >>> path = epath.Path(getfixture("tmp_path")) / "a.txt"
    >>> write_text(path, "whole")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('whole', 1)
    """
    write_bytes(path, text.encode())


def write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes a file whole or not at all, as `write_text` does.

    >>> path = epath.Path(getfixture("tmp_path")) / "a.npz"
    >>> write_bytes(path, b"whole")
    >>> path.read_bytes()
    b'whole'
    """
    partial = path.parent / f".{path.name}.partial"
    partial.write_bytes(content)
    partial.replace(path)


class Lines:
    """A file of JSON lines that continues where a checkpoint stands.

    Args:
        path: The file.
        step: Lines of later steps, which a stopped run wrote after its last checkpoint, are dropped, and so is a line
            that was cut: the steps come again.

    >>> lines = Lines(epath.Path(getfixture("tmp_path")) / "metrics.jsonl", step=0)
    >>> lines.write(50, {"train/clean_loss": 0.5})
    >>> lines.close()
    >>> (getfixture("tmp_path") / "metrics.jsonl").read_text()
    '{"step": 50, "train/clean_loss": 0.5}\\n'
    """

    def __init__(self, path: epath.Path, step: int) -> None:
        """Opens the file and drops what comes after the step."""
        kept = []
        for line in path.read_bytes().split(b"\n") if path.exists() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line.decode() + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_text(path, "".join(kept))
        self._file = open(path, "a")  # noqa: SIM115 - open as long as the run.

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line, and makes it visible at once."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

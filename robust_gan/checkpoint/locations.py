"""Where checkpoints lie: the folder of a run, the steps in it, and how a user names one of them."""

import os
import re

from etils import epath

from robust_gan.errors import CheckpointError, UserError
from robust_gan.storage import paths

FOLDER = "checkpoints"

_FINISHED = "commit_success.txt"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


def parse_location(text: str) -> tuple[str, str | int]:
    """Splits `DIR[@STEP]` into the folder and the step: a number, `best` or `last`; `best` where none is given.

    A folder that has an `@` in its own name is found as it is, or with a step after it.

    Raises:
        UserError: What follows the last `@` is none of these, and there is no folder of that name.

    >>> parse_location("runs/a@1000"), parse_location("runs/a"), parse_location("me@home/runs/a")
    (('runs/a', 1000), ('runs/a', 'best'), ('me@home/runs/a', 'best'))
    """
    directory, _, step = text.rpartition("@")
    if directory and step in ("best", "last"):
        return directory, step
    if directory and _NUMBER.fullmatch(step):
        return directory, int(step)
    if "@" not in os.path.basename(text) or paths.exists(paths.locate(text)):
        return text, "best"
    raise UserError(f"the step of a checkpoint is a number, best or last, not {step!r} (in {text!r})")


def find(directory: epath.PathLike) -> epath.Path:
    """Returns the folder of the checkpoints, absolute.

    Args:
        directory: A run's workdir, or its `checkpoints` folder.

    Raises:
        CheckpointError: There is no such folder.

    >>> workdir = getfixture("tmp_path")
    >>> (workdir / FOLDER).mkdir()
    >>> find(workdir) == find(workdir / FOLDER)
    True
    """
    path = paths.locate(directory)
    if not paths.exists(path):
        raise CheckpointError(f"there is no folder {path}: give the workdir of a run")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file: give the workdir of a run, which is a folder")
    nested = path / FOLDER
    return nested if nested.exists() else path


def steps(folder: epath.Path) -> list[int]:
    """Returns the finished steps of a folder, the newest last.

    Orbax renames a step when it is finished, and in an object store, where that takes a while, writes a file into it.

    >>> folder = epath.Path(getfixture("tmp_path"))
    >>> for name in ("20", "3", "40.orbax-checkpoint-tmp"):
    ...     (folder / name).mkdir()
    >>> steps(folder)
    [3, 20]
    """
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NUMBER.fullmatch(path.name) and path.is_dir()]
    if paths.is_remote(folder):
        found = [path for path in found if (path / _FINISHED).exists()]
    return sorted(int(path.name) for path in found)

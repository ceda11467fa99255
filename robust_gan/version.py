"""The version and the commit, readable without importing jax."""

import functools
import os
import shlex
import subprocess
import sys

__version__ = "0.1.0"


@functools.cache
def get_commit() -> str:
    """Returns the git commit of a clone that this package runs from, with `-dirty` if it was changed; else "".

    >>> get_commit() == get_commit()
    True
    """
    package = os.path.dirname(os.path.realpath(__file__))

    def git(*arguments: str) -> str:
        command = ["git", "-C", package, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # Of another repository, where the package is installed below one.
        if os.path.dirname(package) != os.path.realpath(git("rev-parse", "--show-toplevel")):
            return ""
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def made_by() -> dict[str, str]:
    """Returns the command of this process and the commit, see `get_commit`.

    >>> sorted(made_by())
    ['command', 'commit']
    """
    return {"command": shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]), "commit": get_commit()}

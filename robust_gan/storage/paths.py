"""Where files lie: in folders of this machine, or in an object store, gs://BUCKET/FOLDER.

All paths of runs, reports and data are made by `locate`, and read and written with the methods of `etils.epath`. A
store differs from a folder in three things that callers must know: it has no empty folders, it cannot append to a file,
and nothing in it is renamed in one go; but each file appears whole or not at all.
"""

import importlib.util
import os

from etils import epath

from robust_gan.errors import UserError, one_line

SCHEMES = ("gs",)
_NEEDED = "gcsfs"


def locate(path: epath.PathLike) -> epath.Path:
    """Returns the absolute path of a file or folder, which need not be there.

    Args:
        path: Of this machine, where `~` is the home, or gs://BUCKET/FOLDER.

    Raises:
        UserError: It is in a store that is not known, or whose library is not installed.

    >>> locate("/tmp/../runs").as_posix()
    '/runs'
    >>> locate("ftp://host/runs")
    Traceback (most recent call last):
    robust_gan.errors.UserError: 'ftp://host/runs' cannot be read or written: give a folder, or gs://BUCKET/FOLDER
    """
    text = os.fspath(path)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return epath.Path(os.path.abspath(os.path.expanduser(text)))
    if scheme not in SCHEMES or not rest.strip("/") or "\0" in rest:
        raise UserError(f"{text!r} cannot be read or written: give a folder, or gs://BUCKET/FOLDER")
    if importlib.util.find_spec(_NEEDED) is None:
        raise UserError(f"{text!r} needs {_NEEDED}: pip install 'robust_gan[gcs]'")
    _forget_listings()
    return epath.Path(text.rstrip("/"))


def is_remote(path: epath.PathLike) -> bool:
    """Tells whether a path lies in an object store.

    >>> is_remote("gs://bucket/runs"), is_remote("/runs")
    (True, False)
    """
    return "://" in os.fspath(path)


def exists(path: epath.Path) -> bool:
    """Tells whether there is a file or folder.

    Raises:
        UserError: The store cannot be asked: no network, no right to, no such bucket.

    >>> exists(locate("/nosuch"))
    False
    """
    try:
        return path.exists()
    except Exception as error:  # Every store fails in its own way.
        if not is_remote(path):
            raise
        raise UserError(f"{path} cannot be reached ({type(error).__name__}: {one_line(error)[:200]})") from error


def _forget_listings() -> None:
    """Tells fsspec to ask the store what is there: others write to it too."""
    import fsspec.config

    for scheme in SCHEMES:
        fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False

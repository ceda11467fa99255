"""Paths of local folders and of an object store, gs://BUCKET/FOLDER.

`locate` makes all paths of runs, reports and data, which are read and written with the methods of `etils.epath`. An
object store has no empty folders, cannot append to a file and cannot rename atomically, but writes each file whole.
"""

import importlib.util
import os

from etils import epath

from robust_gan.errors import UserError, one_line

SCHEMES = ("gs",)
_NEEDED = "gcsfs"


def locate(path: epath.PathLike) -> epath.Path:
    """Returns the absolute path of a file or folder, which need not exist.

    Args:
        path: A local path, in which `~` is expanded, or gs://BUCKET/FOLDER.

    Raises:
        UserError: The store is unknown, or its library is not installed.

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
    """Returns whether a path is in an object store.

    >>> is_remote("gs://bucket/runs"), is_remote("/runs")
    (True, False)
    """
    return "://" in os.fspath(path)


def exists(path: epath.Path) -> bool:
    """Returns whether a file or folder exists.

    Raises:
        UserError: The store cannot be reached: no network, no permission, or no such bucket.

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
    """Disables the listing cache of fsspec, since other processes write to the store too."""
    import fsspec.config

    for scheme in SCHEMES:
        fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False

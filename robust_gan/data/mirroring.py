"""Local copies of prepared data in an object store: array_record reads local files only."""

import hashlib
import os
import shutil
from pathlib import Path

import filelock
from etils import epath

from robust_gan.data.locations import find_prepared
from robust_gan.errors import DataError
from robust_gan.storage import paths


def mirrored(name: str, directory: epath.PathLike) -> Path | None:
    """Returns the local copy of a prepared data set in a store; None if the set does not exist.

    An existing copy whose files have the right sizes is used.

    Args:
        name: As `locations.find_prepared` takes it.
        directory: Of all data sets, gs://BUCKET/FOLDER.

    Raises:
        DataError: The set cannot be copied.
        UserError: The store cannot be reached.
    """
    remote = paths.locate(directory)
    paths.exists(remote)
    found = find_prepared(name, remote)
    if found is None:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    target = Path(home, "robust_gan", "data", hashlib.sha256(os.fspath(remote).encode()).hexdigest()[:16])
    target = target.joinpath(*found.parts[len(remote.parts) :])
    files = [path for path in found.iterdir() if not path.is_dir()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # One process copies, the others on this machine wait; the cache of fsspec has no such lock.
        with filelock.FileLock(target.parent / f".{target.name}.lock"):
            if not all((target / path.name).is_file() and (target / path.name).stat().st_size == path.stat().length
                       for path in files):  # fmt: skip
                shutil.rmtree(target, ignore_errors=True)  # If killed from here on, the copy is incomplete.
                target.mkdir()
                for path in files:
                    path.copy(target / path.name)
    except OSError as error:
        raise DataError(f"{found} cannot be copied to {target} ({error})") from error
    return target

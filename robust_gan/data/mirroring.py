"""Prepared data that lie in an object store, copied to this machine once: array_record reads local files alone."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from etils import epath

from robust_gan import places
from robust_gan.data.locations import find_prepared
from robust_gan.errors import DataError


def mirrored(name: str, directory: epath.PathLike) -> Path | None:
    """Returns the folder on this machine of a prepared data set that lies in a store; None where there is none.

    A copy whose files have the sizes of those in the store is used as it is.

    Args:
        name: As `locations.find_prepared` takes it.
        directory: Of all data sets, gs://BUCKET/FOLDER.

    Raises:
        DataError: The set cannot be copied.
        UserError: The store cannot be reached.
    """
    remote = places.locate(directory)
    places.exists(remote)
    found = find_prepared(name, remote)
    if found is None:
        return None
    target = _cache() / hashlib.sha256(os.fspath(remote).encode()).hexdigest()[:16]
    target = target.joinpath(*found.parts[len(remote.parts) :])
    files = [path for path in found.iterdir() if not path.is_dir()]
    if all((target / path.name).is_file() and (target / path.name).stat().st_size == path.stat().length
           for path in files):  # fmt: skip
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            for path in files:
                with path.open("rb") as source, (staging / path.name).open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 24)
            shutil.rmtree(target, ignore_errors=True)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if not target.is_dir():  # Else another process was faster.
            raise DataError(f"{found} cannot be copied to {target} ({error})") from error
    return target


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home, "robust_gan", "data")

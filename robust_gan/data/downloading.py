"""Downloads the published archives, or says quickly that it cannot and what to do instead."""

import contextlib
import threading
from pathlib import Path

import pooch

from robust_gan.data.published import PublishedSet
from robust_gan.errors import DataError, one_line

# Looking up a name has no time limit of its own, so asking whether the host answers gets one.
_PATIENCE = 8.0
_TIMEOUT = (5.0, 30.0)
_RETRIES = 2


def download(known: PublishedSet, folder: Path, progress: bool = False) -> None:
    """Downloads the archives that are not in the folder yet, and verifies them.

    Args:
        known: Whose archives.
        folder: Where to; it is made.
        progress: Whether to show a progress bar on stderr.

    Raises:
        DataError: The host cannot be reached within seconds, the transfer breaks off, or the file is not the published
            one; nothing is left under the name of a file that did not arrive whole.
    """
    pooch.get_logger().setLevel("WARNING")
    missing = [archive for archive in known.hashes if not (folder / archive).is_file()]
    archives = pooch.create(folder, known.url, registry=dict(known.hashes), retry_if_failed=_RETRIES)
    if missing and not _is_reachable(archives, missing[0]):
        raise DataError(
            f"{known.url}{missing[0]} cannot be reached: get "
            f"{', '.join(known.url + archive for archive in missing)} on a machine that can, put them into a folder, "
            "and run again with --source=FOLDER"
        )
    for archive in known.hashes:
        try:
            archives.fetch(archive, downloader=pooch.HTTPDownloader(progressbar=progress, timeout=_TIMEOUT))
        except (OSError, ValueError) as error:  # Those of requests are the former, another hash is the latter.
            raise DataError(f"{known.url}{archive} could not be downloaded ({one_line(error)}): try again") from error


def _is_reachable(archives: pooch.Pooch, archive: str) -> bool:
    answers = []

    def ask() -> None:
        with contextlib.suppress(OSError):
            answers.append(archives.is_available(archive, pooch.HTTPDownloader(timeout=_PATIENCE)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answers == [True]

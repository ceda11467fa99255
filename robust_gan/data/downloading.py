"""Downloads the published archives."""

import contextlib
import threading
from pathlib import Path

import pooch

from robust_gan.data.published import PublishedSet
from robust_gan.errors import DataError, one_line

# DNS lookups have no timeout, so the check whether the host answers gets one.
_REACHABLE_SECONDS = 8.0
_TIMEOUT = (5.0, 30.0)
_RETRIES = 2


def download(known: PublishedSet, folder: Path, progress: bool = False) -> None:
    """Downloads and verifies the archives that are not in the folder yet.

    Args:
        known: The data set.
        folder: Created if it does not exist.
        progress: Whether to show a progress bar on stderr.

    Raises:
        DataError: The host cannot be reached within seconds, the transfer fails, or a hash differs; no incomplete file
            is left.
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
        except (OSError, ValueError) as error:  # requests raises the former, pooch the latter for a wrong hash.
            raise DataError(f"{known.url}{archive} could not be downloaded ({one_line(error)}): try again") from error


def _is_reachable(archives: pooch.Pooch, archive: str) -> bool:
    answers = []

    def ask() -> None:
        with contextlib.suppress(OSError):
            answers.append(archives.is_available(archive, pooch.HTTPDownloader(timeout=_REACHABLE_SECONDS)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACHABLE_SECONDS)
    return answers == [True]

"""Downloads the published files, or says quickly that it cannot and what to do instead."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from robust_gan.data.published import PublishedFile, verify
from robust_gan.errors import DataError

# Looking up a name has no time limit of its own, so the whole attempt gets one.
_PATIENCE = 8.0
_TIMEOUT = (5.0, 30.0)


def download(files: Mapping[str, PublishedFile], folder: Path, progress: bool = False) -> None:
    """Downloads the files that are not in the folder yet, and verifies them.

    Args:
        files: The published files by name.
        folder: Where to; it is made.
        progress: Whether to show a progress bar on stderr.

    Raises:
        DataError: The host cannot be reached within seconds, the transfer breaks off, or the file is not the published
            one; nothing is left under the name of a file that did not arrive whole.
    """
    missing = {name: file for name, file in files.items() if not (folder / name).is_file()}
    if missing and not _reachable(next(iter(missing.values())).url):
        raise DataError(
            f"{next(iter(missing.values())).url} cannot be reached: get "
            f"{', '.join(file.url for file in missing.values())} on a machine that can, put them into a folder, "
            "and run again with --source=FOLDER"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in missing.items():
        _download(name, file, folder, progress)


def _download(name: str, file: PublishedFile, folder: Path, progress: bool) -> None:
    import requests

    part = folder / f".{name}.{os.getpid()}"
    try:
        with (
            requests.get(file.url, stream=True, timeout=_TIMEOUT) as response,
            part.open("wb") as output,
            tqdm(total=file.size, desc=name, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            response.raise_for_status()
            for block in response.iter_content(1 << 16):
                output.write(block)
                bar.update(len(block))
        verify(part, file, name=f"the download of {name}")
        part.replace(folder / name)
    except requests.RequestException as error:
        raise DataError(f"{file.url} could not be downloaded ({type(error).__name__}): try again") from error
    finally:
        part.unlink(missing_ok=True)


def _reachable(url: str) -> bool:
    import requests

    answers = []

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_TIMEOUT[0]) as response:
                answers.append(response.ok)
        except requests.RequestException:
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answers == [True]

"""Prepares data sets as array_record files, atomically, also in two processes at once."""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from robust_gan.data import published
from robust_gan.data.locations import KNOWN, data_directory, find_prepared, is_array_record, prepare_command
from robust_gan.data.parsing import Contents
from robust_gan.data.reading import open_prepared, quiet
from robust_gan.errors import DataError


class Prepared(NamedTuple):
    """The result of `prepare`.

    Attributes:
        name: The data set.
        directory: Its folder.
        split_sizes: Number of images of each split.
        written: False if it existed before.
    """

    name: str
    directory: Path
    split_sizes: dict[str, int]
    written: bool

    def __str__(self) -> str:
        """Returns one line of text."""
        sizes = ", ".join(f"{size:,} {split}" for split, size in self.split_sizes.items())
        return f"{self.name}: {sizes} images {'written to' if self.written else 'were already in'} {self.directory}"


def is_prepared(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Returns whether a data set is prepared.

    Args:
        name: `NAME`, `NAME/CONFIG`, with or without `:VERSION`.
        data_dir: The folder of the prepared sets; see `data_directory`.

    Raises:
        DataError: The name is invalid, or the description of the data set is damaged.

    >>> is_prepared("mnist", "/nowhere")
    False
    """
    found = find_prepared(name, data_directory(data_dir))
    return found is not None and is_array_record(found)


def prepare(
    name: str,
    *,
    source: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    progress: bool = False,
) -> Prepared:
    """Writes a data set as array_record files for the stock reader of TensorFlow Datasets, without TensorFlow.

    Guarantees:
        test_a_failed_preparation_leaves_nothing_behind
        test_two_processes_prepare_at_once
        test_the_stock_reader_opens_what_was_prepared

    Args:
        name: One of `KNOWN`.
        source: A folder with the published archives, or their extracted files. By default the archives are searched in
            DATA_DIR/downloads/manual and downloaded to it. `digits` needs none.
        data_dir: The folder of the prepared sets; see `data_directory`.
        progress: Whether to show progress bars on stderr.

    Returns:
        The result.

    Raises:
        DataError: The name is unknown, the files are missing, damaged, not the published ones or cannot be downloaded,
            or the folder cannot be written.

    >>> prepare("digits", data_dir=getfixture("tmp_path")).split_sizes
    {'train': 1437, 'test': 360}
    """
    if name not in KNOWN:
        raise DataError(f"the data sets that can be prepared are {', '.join(KNOWN)}, but not {name!r}")
    directory = data_directory(data_dir)
    found = find_prepared(name, directory)
    if found is not None and not is_array_record(found):
        raise DataError(
            f"{found} holds {name} in a format that cannot be read without TensorFlow: choose another folder, such as "
            f"{prepare_command(name, directory / 'array_record')}"
        )
    if found is not None:
        return Prepared(name, found, open_prepared(found).split_sizes, written=False)
    try:
        written = _write(name, _contents(name, source, directory, progress), directory, progress)
        target = directory / name / written
        return Prepared(name, target, open_prepared(target).split_sizes, written=True)
    except OSError as error:
        raise DataError(f"{name} cannot be prepared in {directory}: {error}") from error


def _contents(name: str, source: str | os.PathLike | None, directory: Path, progress: bool) -> Contents:
    if name == "digits":
        from robust_gan.data.digits import read_digits

        return read_digits()
    if source is not None:
        return published.contents(name, published.find(name, Path(source).expanduser()))
    folder = directory / "downloads" / "manual"  # As in TensorFlow Datasets.
    try:
        files = published.find(name, folder)
    except DataError:
        from robust_gan.data.downloading import download

        download(published.SETS[name], folder, progress)
        files = published.find(name, folder)
    return published.contents(name, files)


def _write(name: str, contents: Contents, directory: Path, progress: bool) -> str:
    """Writes under a temporary name beside the target and renames it, so that no incomplete set is visible."""
    import tensorflow_datasets as tfds

    from robust_gan.data.builders import build

    tfds.disable_progress_bar()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=directory, ignore_cleanup_errors=True) as staging:
        builder = build(name, contents, progress)(data_dir=staging)
        with quiet():
            builder.download_and_prepare(file_format="array_record")
        version = str(builder.version)
        target = directory / name / version
        target.parent.mkdir(exist_ok=True)
        try:
            Path(staging, name, version).rename(target)
        except OSError:
            # Another process was faster.
            if not is_prepared(f"{name}:{version}", directory):
                raise
        return version

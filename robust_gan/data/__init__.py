"""Data sets: preparation and reading without TensorFlow, order, augmentation and batches."""

from robust_gan.data.array_files import MappedRows
from robust_gan.data.loading import Dataset, Scored, checksums, describe, digest, from_config, load, load_split
from robust_gan.data.locations import KNOWN, data_directory
from robust_gan.data.preparation import Prepared, is_prepared, prepare
from robust_gan.data.reading import Split

__all__ = [
    "KNOWN", "Dataset", "MappedRows", "Prepared", "Scored", "Split", "checksums", "data_directory", "describe",
    "digest", "from_config", "is_prepared", "load", "load_split", "prepare",
]  # fmt: skip

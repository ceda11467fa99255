"""Data sets: preparation and reading without TensorFlow, order, augmentation and batches."""

from robust_gan.data.loading import (
    Dataset,
    Scored,
    checksums,
    describe,
    digest,
    find_overlap,
    from_config,
    load,
    load_split,
)
from robust_gan.data.locations import KNOWN, data_directory
from robust_gan.data.preparation import Prepared, is_prepared, prepare
from robust_gan.data.reading import Split
from robust_gan.data.streaming import StreamedImages

__all__ = [
    "KNOWN", "Dataset", "Prepared", "Scored", "Split", "StreamedImages", "checksums", "data_directory", "describe",
    "digest", "find_overlap", "from_config", "is_prepared", "load", "load_split", "prepare",
]  # fmt: skip

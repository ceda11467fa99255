"""Self-describing checkpoints; the only package that imports orbax.

A step holds two items: `state`, the arrays, and `config`, a JSON record of the run's configuration, the shape of its
images, its validation metrics, and a SHA-256 digest of every array and of the record itself. Orbax checks its manifests
but not the array data: a flipped byte would silently restore another classifier, so every restore compares digests.

The arrays have no device axis: they restore on any number of devices.
"""

from robust_gan.checkpoint.manager import Writer
from robust_gan.checkpoint.metadata import FOLDER, FORMAT, SELECTION, DataInfo, Record, parse_location, read_record
from robust_gan.checkpoint.models import (
    get_attack,
    get_classifier,
    get_generator,
    has_generator,
    load_attack,
    load_classifier,
    load_generator,
)

__all__ = [
    "FOLDER",
    "FORMAT",
    "SELECTION",
    "DataInfo",
    "Record",
    "Writer",
    "get_attack",
    "get_classifier",
    "get_generator",
    "has_generator",
    "load_attack",
    "load_classifier",
    "load_generator",
    "parse_location",
    "read_record",
]

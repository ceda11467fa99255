"""Self-describing checkpoints; the only package that imports orbax.

A step holds two items: `state`, the arrays, and `config`, a JSON record of the run's configuration, the shape of its
images, its validation metrics, and a SHA-256 digest of every array and of the record itself. Orbax checks its manifests
but not the array data: a flipped byte would silently restore another classifier, so every restore compares digests.

The arrays have no device axis: they restore on any number of devices.

`export` writes the networks alone to one safetensors file, which loads without Orbax.
"""

from typing import TYPE_CHECKING, Any

from robust_gan.checkpoint.exported import SUFFIX
from robust_gan.checkpoint.metadata import (
    FOLDER,
    FORMAT,
    SELECTION,
    DataInfo,
    Record,
    has_steps,
    parse_location,
    read_record,
)
from robust_gan.checkpoint.models import (
    export,
    get_attack,
    get_classifier,
    get_generator,
    get_variables,
    has_generator,
    load_attack,
    load_classifier,
    load_generator,
)
from robust_gan.checkpoint.program import PROGRAM_SUFFIX, export_program

if TYPE_CHECKING:
    from robust_gan.checkpoint.manager import Writer

__all__ = [
    "FOLDER",
    "FORMAT",
    "PROGRAM_SUFFIX",
    "SELECTION",
    "SUFFIX",
    "DataInfo",
    "Record",
    "Writer",
    "export",
    "export_program",
    "get_attack",
    "get_classifier",
    "get_generator",
    "get_variables",
    "has_generator",
    "has_steps",
    "load_attack",
    "load_classifier",
    "load_generator",
    "parse_location",
    "read_record",
]


def __getattr__(name: str) -> Any:
    """Loads Orbax with the first use of `Writer`."""
    if name != "Writer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    from robust_gan.checkpoint import manager

    return manager.Writer

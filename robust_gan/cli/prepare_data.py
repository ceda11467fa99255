"""Prepares a data set as array_record, without TensorFlow.

To download it: `robust-gan-prepare-data --dataset=cifar10`. To read the published archives, or what extracting
makes of them, from a folder: `robust-gan-prepare-data --dataset=cifar10 --source=FOLDER`.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from robust_gan import cli, data

_DATASET = flags.DEFINE_string("dataset", None, f"Which data set: {', '.join(data.KNOWN)}.")
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "A folder that holds the published archives or what extracting makes of them. Default: download them.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Where to put it. Default: $ROBUST_GAN_DATA_DIR, else $TFDS_DATA_DIR, else ~/tensorflow_datasets.",
)

_GROUPS = {"What": ["dataset=NAME", "source=DIR", "data_dir=DIR"]}


def main(argv: Sequence[str]) -> None:
    """Prepares the data set of the flags and prints its folder."""
    del argv
    name = cli.required("dataset", _DATASET.value, f"one of {', '.join(data.KNOWN)}")
    print(data.prepare(name, source=_SOURCE.value, data_dir=_DATA_DIR.value, progress=sys.stderr.isatty()))


def run() -> NoReturn:
    """Runs the command and exits."""
    cli.run(main, document=__doc__, groups=_GROUPS)

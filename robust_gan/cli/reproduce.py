"""Trains every method, attacks each white-box and from all others, and writes tables.

    robust-gan-reproduce --dataset=digits --budget=short --seeds=0,1,2 --output=runs/reproduce_digits
    robust-gan-reproduce --dataset=cifar10 --budget=paper --methods=pgd,generator --output=runs/cifar10
    robust-gan-reproduce --data=mine.npz --methods=none,pgd --output=runs/mine

The same command resumes one that was stopped.
"""

import functools
import os
from typing import NoReturn

from absl import flags

from robust_gan import cli
from robust_gan.cli import memory
from robust_gan.config import datasets
from robust_gan.errors import UserError

_DATASET = flags.DEFINE_string("dataset", None, f"The built-in config: {', '.join(datasets.NAMES)}.")
_DATA = flags.DEFINE_string(
    "data", "", "Other data than the config's: a TFDS data set, FILE.npz, IMAGES.npy,LABELS.npy, or a folder."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 0, "Crop and resize a folder's images to N x N; 0 for as they are.", lower_bound=0
)
_BUDGET = flags.DEFINE_string(
    "budget",
    "short",
    "debug: a few steps, to test the installation; short: an evening on two cores; paper: as the released code.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the runs, the evaluations and the tables.")
_METHODS = flags.DEFINE_list(
    "methods",
    [],
    "Names of robust_gan.config.methods.METHODS; by default the released code's and later ones.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of the methods, from 0 to 99.")
_ATTACKS = flags.DEFINE_string("attacks", "", "See robust-gan-evaluate; empty for those of the budget.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Prepared data; empty for the config's.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 500, "Images at once in the evaluation.", lower_bound=1)
_PLATFORM = flags.DEFINE_enum("platform", "", ["", "cpu", "gpu", "tpu"], "Empty for the best available.")
_NUM_DEVICES = flags.DEFINE_integer("num_devices", 0, "Number of devices; 0 for all, of a CPU for the cores that help.")
_PROGRESS = flags.DEFINE_bool("progress", None, "Show bars; by default on a terminal, and lines in a file.")

_GROUPS = {
    "What": [
        "dataset=NAME",
        "data=NAME|FILE|DIR",
        "image_size=N",
        "budget=debug|short|paper",
        "methods=NAME,..",
        "seeds=N,..",
        "attacks=NAME,..",
    ],
    "Where": ["output=DIR", "data_dir=DIR", "platform=cpu|gpu|tpu", "num_devices=N"],
    "How": ["batch_size=N", "[no]progress"],
}


def main(argv):
    """Reproduces."""
    del argv
    dataset = _DATASET.value or ("own" if _DATA.value else None)
    dataset = cli.required("dataset", dataset, f"one of {', '.join(datasets.NAMES)}")
    output = cli.required("output", _OUTPUT.value, "a folder, such as runs/reproduce_digits")
    if dataset not in datasets.NAMES:
        raise UserError(f"there is no built-in config {dataset!r}: the built-in ones are {', '.join(datasets.NAMES)}")
    try:
        seeds = [int(seed) for seed in _SEEDS.value]
    except ValueError as error:
        raise UserError(f"--seeds must be whole numbers separated by commas, not {','.join(_SEEDS.value)!r}") from error

    from robust_gan import parallel, reproduction
    from robust_gan.training import fitting

    def get_config(choice):
        config = datasets.get_config(dataset, choice)
        return fitting.fit(config, _DATA.value, image_size=_IMAGE_SIZE.value)[0] if _DATA.value else config

    memory.return_after_compiling()
    plan = reproduction.plan(
        get_config,
        os.path.basename(_DATA.value.split(",")[0].rstrip("/")) or dataset,
        _BUDGET.value,
        output,
        methods=_METHODS.value,
        seeds=seeds,
        attacks=_ATTACKS.value,
        data_dir=_DATA_DIR.value,
    )
    log_fn = functools.partial(print, flush=True)
    try:
        text, _ = reproduction.run(
            plan,
            output,
            devices=parallel.find_devices(_PLATFORM.value, _NUM_DEVICES.value) if _NUM_DEVICES.value else None,
            platform=_PLATFORM.value,
            batch_size=_BATCH_SIZE.value,
            progress=_PROGRESS.value,
            log_fn=log_fn,
        )
    except reproduction.InterruptedRunError as stopped:
        log_fn(str(stopped))
        return 0
    log_fn(text)
    return 0


def run() -> NoReturn:
    """Runs the command and exits."""
    cli.run(main, document=__doc__, groups=_GROUPS, spread=True)

"""Trains a classifier against an adversary.

    robust-gan-train --config=digits --workdir=runs/digits
    robust-gan-train --config=digits:pgd --workdir=runs/digits_pgd --config.seed=1
    robust-gan-train --config=my_config.py --workdir=runs/mine
    robust-gan-train --data=mine.npz --workdir=runs/mine

The method comes after the colon (none, pgd, generator). The same command resumes a run that was stopped.
"""

import json
from typing import NoReturn

from absl import flags
from ml_collections import config_flags

from robust_gan import cli
from robust_gan.cli import config_flags as config_flags_lib
from robust_gan.cli import memory
from robust_gan.config import to_dict
from robust_gan.errors import UserError
from robust_gan.storage import workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A built-in config, or a Python file with a function get_config, which is run.",
    sys_argv=cli.arguments(),
)
_DATA = flags.DEFINE_string(
    "data", "", "Other data than the config's: a TFDS data set, FILE.npz, IMAGES.npy,LABELS.npy, or a folder."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 0, "Crop and resize a folder's images to N x N; 0 for as they are.", lower_bound=0
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_INIT_FROM = flags.DEFINE_string(
    "init_from", "", "Start from the weights of DIR[@STEP], FILE.safetensors or zoo:NAME, as --config.init_from."
)
_PLATFORM = flags.DEFINE_enum("platform", "", ["", "cpu", "gpu", "tpu"], "Empty for the best available.")
_NUM_DEVICES = flags.DEFINE_integer("num_devices", 0, "Number of devices; 0 for all, of a CPU for the cores that help.")
_PROGRESS = flags.DEFINE_bool("progress", None, "Show a bar; by default on a terminal, and lines in a file.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Write for TensorBoard too (needs the extra tensorboard).")
_METRIC_WRITERS = flags.DEFINE_list(
    "metric_writer", [], "Functions of yours that return writers of metrics, such as for W&B: package.module:function."
)
_ON_NAN = flags.DEFINE_enum(
    "on_nan", "stop", ["stop", "skip"], "At a NaN or infinite loss or gradient: end with code 3, or leave the step out."
)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the configuration as JSON, flags included, and end.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print shapes, parameters, memory and time, write nothing, and end.")
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "",
    "With --dry_run: compile for TPUs that need not be there, such as v5e:4x4; print what a step takes.",
)

_GROUPS = {
    "What": [
        "config=NAME|FILE.py[:METHOD]",
        "config.FIELD=VALUE",
        "data=NAME|FILE|DIR",
        "image_size=N",
        "workdir=DIR",
        "init_from=DIR|FILE|zoo:NAME",
    ],
    "Where": ["platform=cpu|gpu|tpu", "num_devices=N"],
    "Before it runs": ["print_config", "dry_run", "topology=CHIP:GRID"],
    "While it runs": ["[no]progress", "tensorboard", "metric_writer=MODULE:FUNCTION,..", "on_nan=stop|skip"],
}


def main(argv):
    """Trains."""
    del argv
    config = cli.read_config(_CONFIG.value)
    if _DATA.value:
        config = _fit(config)
    if _INIT_FROM.value:
        config.init_from = _INIT_FROM.value
    if _PRINT_CONFIG.value:
        print(json.dumps(to_dict(config), indent=2))
        return 0
    if _TOPOLOGY.value and not _DRY_RUN.value:
        raise UserError("--topology compiles for TPUs that need not be there: give --dry_run with it")
    if _DRY_RUN.value:
        if _WORKDIR.value:
            workdir.check(_WORKDIR.value, config)

        if _TOPOLOGY.value:
            from robust_gan.parallel.topology import format_compiled
            from robust_gan.training.topology import compile_step

            print(format_compiled(compile_step(config, _TOPOLOGY.value)))
            return 0
        from robust_gan.training import dry_run

        memory.return_after_compiling()
        print(dry_run.format_dry_run(dry_run.measure(config, _devices(), _PLATFORM.value)))
        return 0
    directory = cli.required("workdir", _WORKDIR.value, "the folder of the run, such as runs/digits")
    if not cli.is_distributed():  # Else the first process does it for all.
        workdir.check(directory, config)

    from robust_gan import parallel, training  # After the flags: a mistake is reported before jax is loaded.

    memory.return_after_compiling()
    result = training.train(
        config,
        directory,
        devices=_devices(),
        platform=_PLATFORM.value,
        progress=_PROGRESS.value,
        tensorboard=_TENSORBOARD.value,
        metric_writers=training.load_writers(_METRIC_WRITERS.value, config, directory),
        on_nan=_ON_NAN.value,
    )
    if result.finished and result.validation and parallel.is_primary():
        figures = ", ".join(f"{name.split('/')[1]} {value:.1%}" for name, value in result.validation.items())
        print(f"step {result.step}, validation: {figures}; best: step {result.best_step}")
    return 0


def _devices():
    """Returns the devices that `--num_devices` asks for; None where the run chooses."""
    from robust_gan import parallel

    return parallel.find_devices(_PLATFORM.value, _NUM_DEVICES.value) if _NUM_DEVICES.value else None


def _fit(config):
    """Returns the config for the data of `--data`, and prints what was chosen."""
    from robust_gan import parallel
    from robust_gan.training import fitting

    argv = cli.arguments()
    config, sentence = fitting.fit(
        config,
        _DATA.value,
        image_size=_IMAGE_SIZE.value,
        fixed=config_flags_lib.fields(argv),
        adapts=config_flags_lib.is_built_in(argv),
    )
    if sentence and not _PRINT_CONFIG.value and parallel.is_primary():
        print(sentence, flush=True)
    return config


def run() -> NoReturn:
    """Runs the command and exits."""
    cli.run(main, document=__doc__, groups=_GROUPS, spread=True, pod=True)

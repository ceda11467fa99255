"""Exports the networks of a checkpoint to one safetensors file, which `--checkpoint` takes wherever it takes a workdir.

A file that ends in .jaxexport becomes a program of the classifier, which runs with JAX alone.

robust-gan-export --checkpoint=runs/digits --output=digits.safetensors
"""

from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from robust_gan import cli

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The workdir of a run; @STEP for another step than the best.")
_OUTPUT = flags.DEFINE_string("output", None, "The file to write or to replace; it ends in .safetensors or .jaxexport.")

_GROUPS = {"What": ["checkpoint=DIR[@STEP]", "output=FILE.safetensors|FILE.jaxexport"]}


def main(argv: Sequence[str]) -> None:
    """Exports the checkpoint of the flags and prints the file and its size."""
    del argv
    location = cli.required("checkpoint", _CHECKPOINT.value, "the workdir of a run, such as runs/digits")
    output = cli.required("output", _OUTPUT.value, "the file to write, such as digits.safetensors")

    from robust_gan import checkpoint  # After the flags: a mistake is reported before jax is loaded.

    directory, step = checkpoint.parse_location(location)
    is_program = output.endswith(checkpoint.PROGRAM_SUFFIX)
    path = (checkpoint.export_program if is_program else checkpoint.export)(directory, output, step)
    print(f"{path} ({path.stat().length:,} bytes)")


def run() -> NoReturn:
    """Runs the command and exits."""
    cli.run(main, document=__doc__, groups=_GROUPS)

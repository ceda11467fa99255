"""The command line: flags, help and exit codes; a user's mistake is one sentence and exit code 2, never a traceback.

Imports nothing heavy, so that a mistake on the command line is reported before jax is loaded.
"""

from robust_gan.cli.app import arguments, run
from robust_gan.cli.config_flags import read_config
from robust_gan.cli.distributed import is_distributed
from robust_gan.cli.errors import INTERRUPTED, MISSED, MISTAKE, NOT_FINITE, complain, guard, required

__all__ = [
    "INTERRUPTED",
    "MISSED",
    "MISTAKE",
    "NOT_FINITE",
    "arguments",
    "complain",
    "guard",
    "is_distributed",
    "read_config",
    "required",
    "run",
]  # fmt: skip

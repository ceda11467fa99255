"""What the launchers share: a user's mistake becomes one sentence and exit code 2, never a traceback.

Imports nothing heavy, so that a mistake on the command line is told before jax is loaded.
"""

from robust_gan.command_line.mistakes import INTERRUPTED, MISTAKE, NOT_FINITE, complain, guard, required
from robust_gan.command_line.parsing import arguments, run
from robust_gan.command_line.pods import is_distributed
from robust_gan.command_line.recipes import config_of

__all__ = [
    "INTERRUPTED", "MISTAKE", "NOT_FINITE", "arguments", "complain", "config_of", "guard", "is_distributed", "required",
    "run",
]  # fmt: skip

"""What the launchers share: a user's mistake becomes one sentence and exit code 2, never a traceback."""

import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from robust_gan.config import Config, validate
from robust_gan.errors import UserError

MISTAKE = 2
"""The exit code of a user's mistake."""


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Parses the flags, runs `main(argv)` and exits: with 0, with 2 after a mistake of the user's, or as main says.

    Args:
        main: Takes what absl leaves of the command line; may raise `UserError`.
    """

    def quiet_main(argv: Sequence[str]) -> int | None:
        # What the libraries log at length is for their developers; what failed is in the exception.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)
        return guard(main, argv)

    app.run(quiet_main, flags_parser=_parse)
    raise AssertionError("app.run exits")


def guard(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int | None:
    """Calls `main`, and turns what a user can put right into one sentence on stderr and the exit code 2.

    >>> def main(argv):
    ...     raise UserError("batch_size must be at least 1, not 0")
    >>> guard(main, [])
    2
    """
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}: everything is given as --flag=value")
        return main(argv)
    except UserError as error:
        return complain(str(error))
    except PermissionError as error:
        return complain(f"{error.filename} cannot be read or written (permission denied): choose a folder of your own")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            return complain(f"{error.filename or 'a file'} cannot be written ({error.strerror.lower()})")
        raise


def complain(sentence: str) -> int:
    """Prints a sentence on stderr and returns the exit code of a mistake."""
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return MISTAKE


def required(flag: str, value: str | None, what: str) -> str:
    """Returns the value of a flag that must be given.

    Raises:
        UserError: It is missing.

    >>> required("workdir", "runs/a", "the folder of the run")
    'runs/a'
    """
    if not value:
        raise UserError(f"--{flag} is missing: give {what}")
    return value


def config_of(value: Any, flag: str = "config") -> Config:
    """Returns the configuration behind a `config_flags` flag, validated.

    Raises:
        UserError: The flag is missing, or its file is missing, raises, or returns something else; or a field is wrong.

    >>> config_of(Config(seed=3)).seed
    3
    """
    if value is None:
        raise UserError(f"--{flag} is missing: give a recipe, such as --{flag}=configs/digits.py")
    if not isinstance(value, Config):
        try:
            getattr(value, "seed")  # noqa: B009 - config_flags keeps the error of a file for its first use.
        except FileNotFoundError as error:
            raise UserError(
                f"there is no recipe {error.filename or error}: give one such as configs/digits.py"
            ) from error
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the recipe of --{flag} cannot be run: {type(error).__name__}: {error}") from error
        raise UserError(f"get_config() of --{flag} must return a robust_gan.config.Config, not {type(value).__name__}")
    validate(value)
    return value


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except SystemExit:  # absl prints the help and leaves with 1.
        sys.exit(0)
    except UserError as error:
        sys.exit(complain(str(error)))
    except flags.Error as error:
        sys.exit(complain(f"{error}: see --help"))
    except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        # What config_flags raises on a field that a configuration does not have.
        text = error.args[0] if error.args else error
        sys.exit(complain(f"a --config.* flag is wrong: {text}: see robust_gan/config.py for the fields"))

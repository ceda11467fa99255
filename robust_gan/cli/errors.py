"""Exit codes, and errors of the user reported in one sentence on stderr."""

import errno
import os
import sys
from collections.abc import Callable, Sequence

from robust_gan.errors import CertificateError, NotFiniteError, UserError

MISTAKE = 2
"""The exit code of a user's mistake."""

NOT_FINITE = 3
"""The exit code of a run whose numbers became NaN or infinite."""

CERTIFICATE = 4
"""The exit code of an evaluation in which an attack breaks a certified image."""

MISSED = 3
"""The exit code of an evaluation that misses an accuracy of `--require`."""

INTERRUPTED = 130
"""The exit code after Ctrl-C, where nothing was saved."""


def guard(main: Callable[[Sequence[str]], int | None], argv: Sequence[str], *, positional: bool = False) -> int | None:
    """Calls `main`, and reports an error of the user in one sentence on stderr, with exit code 2.

    Args:
        main: Takes the arguments, of which the first is the program.
        argv: The arguments.
        positional: Whether it takes arguments that are not flags.

    >>> def main(argv):
    ...     raise UserError("batch_size must be at least 1, not 0")
    >>> guard(main, [])
    2
    """
    try:
        if len(argv) > 1 and not positional:
            raise UserError(f"unexpected argument {argv[1]!r}: everything is given as --flag=value")
        return main(argv)
    except UserError as error:
        _end_quietly()
        return complain(str(error))
    except NotFiniteError as error:
        complain(" ".join([str(error), *getattr(error, "__notes__", [])]))
        return NOT_FINITE
    except CertificateError as error:
        complain(str(error))
        return CERTIFICATE
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # The reader of the output, such as `head`, closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PermissionError as error:
        what = error.filename or "a file"
        return complain(f"{what} cannot be read or written (permission denied): choose a folder of your own")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            return complain(f"{error.filename or 'a file'} cannot be written ({str(error.strerror).lower()})")
        raise


def _end_quietly() -> None:
    """Keeps what a model's callback raised, and a sentence has said, from being printed again when JAX shuts down."""
    if (jax := sys.modules.get("jax")) is None:
        return

    def report(unraisable):
        if not isinstance(unraisable.exc_value, jax.errors.JaxRuntimeError):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report


def complain(sentence: str) -> int:
    """Prints a sentence on stderr and returns the exit code of a mistake.

    >>> complain("the split must be one of test, validation, train, not 'tset'")
    2
    """
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return MISTAKE


def required(flag: str, value: str | None, what: str) -> str:
    """Returns the value of a required flag.

    Raises:
        UserError: It is missing.

    >>> required("workdir", "runs/a", "the folder of the run")
    'runs/a'
    """
    if not value:
        raise UserError(f"--{flag} is missing: give {what}")
    return value

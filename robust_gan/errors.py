"""Exceptions for a user's mistakes.

Every message is one sentence that names the invalid value and a valid one. The commands print it and exit with code 2;
`UserError` is a `ValueError`. `NotFiniteError` and `CertificateError` need not be a mistake and have other exit codes.
"""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake in a flag, a config field, a file or an argument."""


class DataError(UserError):
    """Data that are missing, damaged, of an unsupported format or out of range."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another configuration."""


class NotFiniteError(RuntimeError):
    """A loss or a gradient of training became NaN or infinite; the checkpoints before it are intact."""


class CertificateError(RuntimeError):
    """An attack breaks an image that is certified: one of the two is wrong."""


@contextlib.contextmanager
def writing(what: object, remedy: str) -> Iterator[None]:
    """Raises a `UserError` for an `OSError` of a file or folder that is written.

    Args:
        what: The file or the folder.
        remedy: The end of the sentence.

    Raises:
        UserError: The system refuses.

    >>> with writing("the report out", "make room"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    robust_gan.errors.UserError: the report out cannot be written (no space left on device): make room
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{what} cannot be written ({(error.strerror or one_line(error)).lower()}): {remedy}"
        ) from error


def one_line(error: BaseException) -> str:
    """Returns an exception of another library as a phrase that fits into a sentence.

    >>> one_line(ValueError("bad  magic\\nsecond line"))
    'bad magic'
    >>> one_line(KeyError())
    'KeyError'
    >>> one_line(RuntimeError("a callback failed: Traceback (most recent call last):\\n  File ...\\nOSError: no disk"))
    'OSError: no disk'
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # An exception from a callback of a compiled program contains its traceback.
    line = lines[-1] if "Traceback (most recent call last)" in lines[0] else lines[0]
    return " ".join(line.split())

"""Exceptions for a user's mistakes.

Every message is one sentence that names the invalid value and a valid one. The commands print it and exit with code 2;
`UserError` is a `ValueError`. `NotFiniteError` and `CertificateError` need not be a mistake and have other exit codes.
"""


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

"""The mistakes a user can make, as exceptions that carry one clear sentence.

Every message says what was wrong (with the offending value) and what would be right. The launchers print it and exit
with code 2; importers catch `UserError`, which is a `ValueError`. `NotFiniteError` is nobody's mistake for certain, and
has an exit code of its own.
"""


class UserError(ValueError):
    """A mistake in what the user gave: a flag, a config field, a file or an array."""


class DataError(UserError):
    """Data that are missing, damaged, of an unsupported format or out of range."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another configuration than the one asked for."""


class NotFiniteError(RuntimeError):
    """A loss or a gradient of training became NaN or infinite; the checkpoints before it are intact."""


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
    # What a function called by a compiled program raised comes with its traceback.
    told = lines[-1] if "Traceback (most recent call last)" in lines[0] else lines[0]
    return " ".join(told.split())

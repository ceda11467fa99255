"""The recipe behind `--config`: a program of the user's, which may return and raise anything."""

from typing import Any

from absl import flags

from robust_gan.config import Config, validate
from robust_gan.errors import UserError

FLAG = "config"
"""The name of the flag."""


def read_config(value: Any) -> Config:
    """Returns the configuration behind the `config_flags` flag `--config`, validated.

    Raises:
        UserError: The flag is missing, or its recipe returns something else; or a field is wrong.

    >>> read_config(Config(seed=3)).seed
    3
    """
    if value is None and (FLAG not in flags.FLAGS or not flags.FLAGS[FLAG].present):
        raise UserError(f"--{FLAG} is missing: give a recipe, such as --{FLAG}=configs/digits.py")
    try:
        value.seed  # noqa: B018 - config_flags keeps an OSError of the recipe for the first use of what it returned.
    except AttributeError:
        pass
    except OSError as error:
        raise UserError(is_from_config(error)) from error
    if not isinstance(value, Config):
        raise UserError(f"get_config() of a recipe must return a robust_gan.config.Config, not {_kind(value)}")
    validate(value)
    return value


def is_from_config(error: BaseException) -> str:
    """Says what went wrong in a recipe, and where; config_flags and absl wrap it up to three times."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    sentences = [str(cause) for cause in chain if isinstance(cause, UserError)]
    if sentences:
        return sentences[-1]  # config_flags raises the same kind of error anew, with a traceback for its text.
    for cause in chain:
        if isinstance(cause, SyntaxError):
            where = f"{cause.filename} cannot be run (line {cause.lineno})" if cause.filename else "cannot be run"
            return f"the recipe {where}: {cause.msg}"
        if place := place_in_config(cause):
            return f"the recipe {place[0]} cannot be run (line {place[1]}): {_kind(cause)}: {cause}"
    return f"the recipe of --{FLAG} cannot be used: {_kind(chain[-1])}: {chain[-1]}"


def place_in_config(error: BaseException) -> tuple[str, int] | None:
    """Returns the file and the line of a recipe where an exception came from; None where it came from elsewhere."""
    trace, place = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == f"{FLAG}_config":
            place = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    return place


def _kind(value: Any) -> str:
    return type(value).__name__

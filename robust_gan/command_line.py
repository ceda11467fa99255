"""What the launchers share: a user's mistake becomes one sentence and exit code 2, never a traceback.

Imports nothing heavy, so that a mistake on the command line is told before jax is loaded.
"""

import dataclasses
import errno
import logging as standard_logging
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from robust_gan.config import Config, validate
from robust_gan.errors import UserError

MISTAKE = 2
"""The exit code of a user's mistake."""

INTERRUPTED = 130
"""The exit code after Ctrl-C, where nobody was there to save."""

_CONFIG = "config"
_FRACTION = re.compile(r"(\d+(?:\.\d*)?)/(\d+(?:\.\d*)?)", re.ASCII)
_NUMBERS: dict[type, tuple[str, Callable[[str], Any]]] = {int: ("a whole number", int), float: ("a number", float)}


def run(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Parses the flags, runs `main(argv)` and exits: with 0, with 2 after a mistake of the user's, or as main says.

    Args:
        main: Takes what absl leaves of the command line; may raise `UserError`.
    """

    def quiet_main(argv: Sequence[str]) -> int | None:
        # What the libraries log at length is for their developers; what failed is in the exception.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.FATAL)
            standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
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
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # Whoever read our output, such as `head`, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PermissionError as error:
        what = error.filename or "a file"
        return complain(f"{what} cannot be read or written (permission denied): choose a folder of your own")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            return complain(f"{error.filename or 'a file'} cannot be written ({str(error.strerror).lower()})")
        raise


def complain(sentence: str) -> int:
    """Prints a sentence on stderr and returns the exit code of a mistake.

    >>> complain("the split must be one of test, validation, train, not 'tset'")
    2
    """
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


def config_of(value: Any) -> Config:
    """Returns the configuration behind the `config_flags` flag `--config`, validated.

    Raises:
        UserError: The flag is missing, or its recipe returns something else; or a field is wrong.

    >>> config_of(Config(seed=3)).seed
    3
    """
    if value is None and (_CONFIG not in flags.FLAGS or not flags.FLAGS[_CONFIG].present):
        raise UserError(f"--{_CONFIG} is missing: give a recipe, such as --{_CONFIG}=configs/digits.py")
    try:
        value.seed  # noqa: B018 - config_flags keeps an OSError of the recipe for the first use of what it returned.
    except AttributeError:
        pass
    except OSError as error:
        raise UserError(_of_recipe(error)) from error
    if not isinstance(value, Config):
        raise UserError(f"get_config() of a recipe must return a robust_gan.config.Config, not {_kind(value)}")
    validate(value)
    return value


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; what is wrong with a `--config.*` flag is told better here than by absl."""
    level = logging.get_absl_logger().level
    try:
        if _CONFIG in flags.FLAGS:
            _check_config_flags(argv)
        # config_flags warns of a recipe that returns nothing; `config_of` says it.
        logging.get_absl_logger().setLevel("CRITICAL")
        return flags.FLAGS([_without_fraction(argument) for argument in argv])
    except SystemExit as end:  # absl prints the help and leaves with 1.
        sys.exit(0 if end.code == 1 else end.code)
    except UserError as error:
        sys.exit(complain(str(error)))
    except flags.Error as error:
        recipe = "parsing config file" in str(error)
        sys.exit(complain(_of_recipe(error) if recipe else f"{error}: see --help"))
    except Exception as error:  # A recipe is the user's own program, and may raise anything.
        sys.exit(complain(_of_recipe(error)))
    finally:
        logging.get_absl_logger().setLevel(level)


def _check_config_flags(argv: Sequence[str]) -> None:
    """Refuses a recipe that is not there, and fields that a `Config` does not have or that cannot hold the value.

    Raises:
        UserError: One sentence.
    """
    given = False
    for name, value in _pairs(argv):
        if name == _CONFIG and value is not None:
            path = value.split(":", 1)[0]
            if not os.path.isfile(path):
                raise UserError(f"there is no recipe {path!r}: give a file, such as --{_CONFIG}=configs/digits.py")
            given = True
        elif name.startswith(f"{_CONFIG}."):
            if not given:
                raise UserError(f"--{name} must come after a recipe, such as --{_CONFIG}=configs/digits.py")
            path = name.removeprefix(f"{_CONFIG}.")
            kind = _field_type(path)
            if dataclasses.is_dataclass(kind):
                first = dataclasses.fields(kind)[0].name
                raise UserError(f"--{name} is a group of fields: set one of them, such as --{name}.{first}=VALUE")
            if kind in _NUMBERS and value is not None:
                what, convert = _NUMBERS[kind]
                try:
                    convert(value)
                except ValueError as error:
                    raise UserError(f"{path} must be {what}, not {value!r}") from error


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yields the flags of a command line, `--NAME=VALUE` or `--NAME VALUE`, up to a lone `--`."""
    for position, argument in enumerate(argv[1:], 1):
        if argument == "--":
            return
        if argument.startswith("-"):
            name, equals, value = _without_fraction(argument).lstrip("-").partition("=")
            following = argv[position + 1] if position + 1 < len(argv) else None
            yield name, value if equals else following


def _field_type(path: str) -> Any:
    """Returns the type of a field of `Config`, given as `threat.epsilon`.

    Raises:
        UserError: There is none of that name.
    """
    kind: Any = Config
    for depth, name in enumerate(parts := path.split(".")):
        types = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in types:
            group = ".".join(parts[:depth])
            where = f"the fields of {group}" if group else "the fields"
            raise UserError(
                f"the configuration has no field {path}: {where} are {', '.join(types)}"
                if types
                else f"the configuration has no field {path}: {group} is a single value"
            )
        kind = types[name]
    return kind


def _without_fraction(argument: str) -> str:
    """Writes `8/255` as a number, where a number is wanted.

    >>> _without_fraction("--config.threat.epsilon=8/256"), _without_fraction("--workdir=8/256")
    ('--config.threat.epsilon=0.03125', '--workdir=8/256')
    """
    flag, _, value = argument.partition("=")
    fraction, name = _FRACTION.fullmatch(value), flag.lstrip("-")
    if not fraction or not flag.startswith("-") or not float(fraction[2]):
        return argument
    if name.startswith(f"{_CONFIG}."):
        try:
            wanted = _field_type(name.removeprefix(f"{_CONFIG}.")) is float
        except UserError:
            wanted = False
    else:
        wanted = name in flags.FLAGS and flags.FLAGS[name].flag_type() == "float"
    return f"{flag}={float(fraction[1]) / float(fraction[2])!r}" if wanted else argument


def _of_recipe(error: BaseException) -> str:
    """Says what went wrong in a recipe, and where; config_flags and absl wrap it up to three times."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for cause in chain:
        if isinstance(cause, SyntaxError):
            return f"the recipe {cause.filename} cannot be run (line {cause.lineno}): {cause.msg}"
        trace, line = cause.__traceback__, None
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__") == f"{_CONFIG}_config":
                line, file = trace.tb_lineno, trace.tb_frame.f_code.co_filename
            trace = trace.tb_next
        if line is not None:
            return f"the recipe {file} cannot be run (line {line}): {_kind(cause)}: {cause}"
    return f"the recipe of --{_CONFIG} cannot be used: {_kind(chain[-1])}: {chain[-1]}"


def _kind(value: Any) -> str:
    return type(value).__name__

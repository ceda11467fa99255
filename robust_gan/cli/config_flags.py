"""`--config` and `--config.FIELD=VALUE`: what is wrong with them is reported in one sentence, before jax is loaded."""

import dataclasses
import difflib
import os
import pathlib
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

from robust_gan.config import Config, datasets, renamed, validate
from robust_gan.errors import UserError

FLAG = "config"
"""The name of the flag."""

_FRACTION = re.compile(r"(\d+(?:\.\d*)?)/(\d+(?:\.\d*)?)", re.ASCII)
_NUMBERS: dict[type, tuple[str, Callable[[str], Any]]] = {int: ("a whole number", int), float: ("a number", float)}


def read_config(value: Any) -> Config:
    """Returns the validated configuration of the flag `--config`.

    Args:
        value: The value of the flag: the result of the file's `get_config`, a program of the user's.

    Raises:
        UserError: The flag is missing, `get_config` returned something else, or a field is wrong.

    >>> read_config(Config(seed=3)).seed
    3
    """
    if value is None and (FLAG not in flags.FLAGS or not flags.FLAGS[FLAG].present):
        raise UserError(f"--{FLAG} is missing: give a config, such as --{FLAG}=digits")
    try:
        value.seed  # noqa: B018 - config_flags raises an OSError of get_config at the first use of its result.
    except AttributeError:
        pass
    except OSError as error:
        raise UserError(describe_error(error)) from error
    if not isinstance(value, Config):
        raise UserError(f"get_config() of a config must return a robust_gan.config.Config, not {type(value).__name__}")
    validate(value)
    return value


def describe_error(error: BaseException) -> str:
    """Returns a sentence on an exception in a config file, with its line; config_flags and absl wrap it in others."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    sentences = [str(cause) for cause in chain if isinstance(cause, UserError)]
    if sentences:
        return sentences[-1]  # config_flags raises the same kind of error again, with a traceback for its text.
    for cause in chain:
        if isinstance(cause, SyntaxError):
            where = f"{cause.filename} cannot be run (line {cause.lineno})" if cause.filename else "cannot be run"
            return f"the config {where}: {cause.msg}"
        if place := find_line(cause):
            return f"the config {place[0]} cannot be run (line {place[1]}): {type(cause).__name__}: {cause}"
    return f"the config of --{FLAG} cannot be used: {type(chain[-1]).__name__}: {chain[-1]}"


def find_line(error: BaseException) -> tuple[str, int] | None:
    """Returns the file and the line of a config file where an exception was raised; None if it was raised elsewhere."""
    trace, place = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == f"{FLAG}_config":
            place = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    return place


def normalize(argv: Sequence[str]) -> list[str]:
    """Returns the command line with built-in configs as files, and with `8/255` as a number in flags of numbers.

    >>> normalize(["train", "--config.threat.epsilon=8/256", "--workdir=8/256"])
    ['train', '--config.threat.epsilon=0.03125', '--workdir=8/256']
    """
    normalized, previous = [], ""
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if flag.lstrip("-") == FLAG and argument.startswith("-") and equals:
            argument = f"{flag}={_find_file(value)}"
        elif previous.startswith("-") and previous.lstrip("-") == FLAG:
            argument = _find_file(argument)
        elif (fraction := _FRACTION.fullmatch(value)) and float(fraction[2]) and _is_float(argument):
            argument = f"{flag}={float(fraction[1]) / float(fraction[2])!r}"
        previous = argument
        normalized.append(argument)
    return normalized


def with_default(argv: Sequence[str]) -> list[str]:
    """Returns the command line with the config `own:pgd` where there are data and no config.

    >>> with_default(["train", "--data=mine.npz"])
    ['train', '--config=own:pgd', '--data=mine.npz']
    """
    names = {name for name, _ in _pairs(argv)}
    return [*argv[:1], *([f"--{FLAG}=own:pgd"] if "data" in names and FLAG not in names else []), *argv[1:]]


def is_built_in(argv: Sequence[str]) -> bool:
    """Returns whether the config of a command line is a built-in one."""
    return any(name == FLAG and value and value.partition(":")[0] in datasets.NAMES for name, value in _pairs(argv))


def fields(argv: Sequence[str]) -> list[str]:
    """Returns the names of the fields that a command line sets.

    >>> fields(["train", "--config=digits", "--config.threat.epsilon=0.1"])
    ['threat.epsilon']
    """
    return [name.removeprefix(f"{FLAG}.") for name, _ in _pairs(argv) if name.startswith(f"{FLAG}.")]


def _find_file(value: str) -> str:
    """Returns `NAME[:CHOICE]` of a built-in config as `FILE[:CHOICE]`, and the name of a file as it is."""
    name, colon, choice = value.partition(":")
    if name not in datasets.NAMES:
        return value
    return f"{pathlib.Path(datasets.__file__).with_name(f'{name}.py')}{colon}{choice}"


def _is_float(argument: str) -> bool:
    """Returns whether the value of a flag is a float."""
    name = argument.partition("=")[0].lstrip("-")
    if not argument.startswith("-"):
        return False
    if not name.startswith(f"{FLAG}."):
        return name in flags.FLAGS and flags.FLAGS[name].flag_type() == "float"
    try:
        return _get_type(name.removeprefix(f"{FLAG}.")) is float
    except UserError:
        return False


def check(argv: Sequence[str]) -> None:
    """Refuses a config that does not exist, and fields that a `Config` does not have or that cannot hold the value.

    Args:
        argv: A command line, normalised.

    Raises:
        UserError: One sentence.
    """
    given = False
    for name, value in _pairs(argv):
        if name == FLAG and value is not None:
            _check_file(value.split(":", 1)[0])
            given = True
        elif name.startswith(f"{FLAG}."):
            path = name.removeprefix(f"{FLAG}.")
            if not given:
                raise UserError(f"--{name} must come after a config, such as --{FLAG}=digits")
            kind = _get_type(path)
            if dataclasses.is_dataclass(kind):
                first = dataclasses.fields(kind)[0].name
                raise UserError(f"--{name} is a group of fields: set one of them, such as --{name}.{first}=VALUE")
            if kind in _NUMBERS and value is not None:
                description, convert = _NUMBERS[kind]
                try:
                    convert(value)
                except ValueError as error:
                    raise UserError(f"{path} must be {description}, not {value!r}") from error


def _check_file(path: str) -> None:
    if os.path.isfile(path):
        return
    name = os.path.basename(path).removesuffix(".py")
    if name in datasets.NAMES:
        raise UserError(f"there is no config {path!r} in {os.getcwd()}: the built-in one is --{FLAG}={name}")
    close = difflib.get_close_matches(name, datasets.NAMES, 1)
    raise UserError(
        f"there is no config {path!r}{f' (is it {close[0]}?)' if close else ''}: give a built-in one "
        f"({', '.join(datasets.NAMES)}), or a file with a function get_config, --{FLAG}=FILE.py"
    )


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yields the flags of a command line, `--NAME=VALUE` or `--NAME VALUE`, up to a lone `--`."""
    for position, argument in enumerate(argv[1:], 1):
        if argument == "--":
            return
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            following = argv[position + 1] if position + 1 < len(argv) else None
            yield name, value if equals else following


def _get_type(path: str) -> Any:
    """Returns the type of a field of `Config`, given as `threat.epsilon`.

    Raises:
        UserError: There is none of that name.
    """
    if path in renamed.FIELDS:
        raise UserError(f"the field {path} of the configuration is now called {renamed.FIELDS[path]}")
    kind: Any = Config
    for depth, name in enumerate(parts := path.split(".")):
        types = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in types:
            group = ".".join(parts[:depth])
            where = f"the fields of {group}" if group else "the fields"
            raise UserError(
                f"the configuration has no field {path}: {where} are {', '.join(types)}{_suggest(parts[-1])}"
                if types
                else f"the configuration has no field {path}: {group} is a single value"
            )
        kind = types[name]
    return kind


def _suggest(name: str) -> str:
    """Returns where a field of that name, or of a similar one, is."""
    paths = list(_list_fields(Config))
    names = [path.rpartition(".")[2] for path in paths]
    close = difflib.get_close_matches(name, names, 1, 0.8)
    found = [path for path, end in zip(paths, names, strict=True) if end in close]
    return f"; is it {' or '.join(found)}?" if found else ""


def _list_fields(kind: Any, prefix: str = "") -> Iterator[str]:
    for name, field_type in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(field_type):
            yield from _list_fields(field_type, f"{prefix}{name}.")
        else:
            yield prefix + name

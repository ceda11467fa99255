"""The fields of a configuration as flags, `--config.FIELD=VALUE`: absl says less well what is wrong with one."""

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

from robust_gan.cli.config_file import FLAG
from robust_gan.config import Config
from robust_gan.errors import UserError

_EXAMPLE = "configs/digits.py"
_FRACTION = re.compile(r"(\d+(?:\.\d*)?)/(\d+(?:\.\d*)?)", re.ASCII)
_NUMBERS: dict[type, tuple[str, Callable[[str], Any]]] = {int: ("a whole number", int), float: ("a number", float)}


def check(argv: Sequence[str]) -> None:
    """Refuses a recipe that is not there, and fields that a `Config` does not have or that cannot hold the value.

    Raises:
        UserError: One sentence.
    """
    given = False
    for name, value in _pairs(argv):
        if name == FLAG and value is not None:
            path = value.split(":", 1)[0]
            if not os.path.isfile(path):
                raise UserError(f"there is no recipe {path!r}{_instead(path, argv[0])}")
            given = True
        elif name.startswith(f"{FLAG}."):
            if not given:
                raise UserError(f"--{name} must come after a recipe, such as --{FLAG}=configs/digits.py")
            path = name.removeprefix(f"{FLAG}.")
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


def _instead(path: str, program: str) -> str:
    """Says what to give in place of a recipe that is not there: one of that name beside the program, where it is."""
    beside = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(program))), path)
    if path and not os.path.isabs(path) and os.path.isfile(beside):
        return f" in {os.getcwd()}: is it --{FLAG}={beside}?"
    if path == _EXAMPLE:
        return f" in {os.getcwd()}: give its whole path, or a recipe of your own, a file with a function get_config"
    return f": give a file, such as --{FLAG}={_EXAMPLE}"


def without_fraction(argument: str) -> str:
    """Writes `8/255` as a number, where a number is wanted.

    >>> without_fraction("--config.threat.epsilon=8/256"), without_fraction("--workdir=8/256")
    ('--config.threat.epsilon=0.03125', '--workdir=8/256')
    """
    flag, _, value = argument.partition("=")
    fraction, name = _FRACTION.fullmatch(value), flag.lstrip("-")
    if not fraction or not flag.startswith("-") or not float(fraction[2]):
        return argument
    if name.startswith(f"{FLAG}."):
        try:
            wanted = _field_type(name.removeprefix(f"{FLAG}.")) is float
        except UserError:
            wanted = False
    else:
        wanted = name in flags.FLAGS and flags.FLAGS[name].flag_type() == "float"
    return f"{flag}={float(fraction[1]) / float(fraction[2])!r}" if wanted else argument


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yields the flags of a command line, `--NAME=VALUE` or `--NAME VALUE`, up to a lone `--`."""
    for position, argument in enumerate(argv[1:], 1):
        if argument == "--":
            return
        if argument.startswith("-"):
            name, equals, value = without_fraction(argument).lstrip("-").partition("=")
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
                f"the configuration has no field {path}: {where} are {', '.join(types)}{_elsewhere(parts[-1])}"
                if types
                else f"the configuration has no field {path}: {group} is a single value"
            )
        kind = types[name]
    return kind


def _elsewhere(name: str) -> str:
    """Says where a field of that name, or of one like it, is."""
    paths = list(_paths(Config))
    names = [path.rpartition(".")[2] for path in paths]
    like = difflib.get_close_matches(name, names, 1, 0.8)
    found = [path for path, end in zip(paths, names, strict=True) if end in like]
    return f"; is it {' or '.join(found)}?" if found else ""


def _paths(kind: Any, prefix: str = "") -> Iterator[str]:
    for name, of in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(of):
            yield from _paths(of, f"{prefix}{name}.")
        else:
            yield prefix + name

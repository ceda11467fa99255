"""Converts a configuration to JSON and back, and compares two of them."""

import dataclasses
import typing
from typing import Any

from robust_gan.config import renamed
from robust_gan.config.schema import CHANGEABLE, Config
from robust_gan.config.validation import validate
from robust_gan.errors import UserError


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the configuration as JSON-able nested dictionaries.

    >>> to_dict(Config())["threat"]
    {'norm': 'linf', 'epsilon': 0.15}
    """
    return dataclasses.asdict(config, dict_factory=lambda items: {k: _plain(v) for k, v in items})


def from_dict(values: dict[str, Any]) -> Config:
    """Returns the configuration of a dictionary that `to_dict` returned, in this version or an earlier one.

    A missing field gets its default, which keeps the behaviour from before the field was introduced.

    Raises:
        UserError: A field is unknown, was renamed, or has a value of the wrong type.

    >>> from_dict(to_dict(Config(seed=3))).seed
    3
    """
    config = _build(Config, values, "")
    validate(config)
    return config


def differences(left: Config, right: Config) -> list[str]:
    """Returns the names of the fields that differ and matter for what a step computes, each with both values.

    >>> differences(Config(), Config(batch_size=32, num_steps=5))
    ['batch_size: 64 != 32']
    """
    flat_left, flat_right = flatten(to_dict(left)), flatten(to_dict(right))
    return [
        f"{name}: {flat_left[name]!r} != {flat_right[name]!r}"
        for name in flat_left
        if name not in CHANGEABLE and flat_left[name] != flat_right[name]
    ]


def _build(kind: type, values: Any, prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise UserError(f"{prefix.rstrip('.') or 'the configuration'} must be a JSON object, not {values!r}")
    if unknown := sorted(map(str, set(values) - set(fields))):
        old = [name for name in (prefix + field for field in unknown) if name in renamed.FIELDS]
        if old:
            raise UserError(
                f"the configuration was written by an earlier version of robust_gan (its field {old[0]} is now called "
                f"{renamed.FIELDS[old[0]]}): use that version, or train again in another workdir"
            )
        raise UserError(f"unknown field {prefix}{unknown[0]}: the fields here are {', '.join(fields)}")
    arguments = {}
    for name, field in fields.items():
        if name not in values:
            continue
        value = values[name]
        if dataclasses.is_dataclass(field.type):
            value = _build(typing.cast(type, field.type), value, f"{prefix}{name}.")
        elif typing.get_origin(field.type) is tuple and isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return kind(**arguments)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one, with names such as `a.b`.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat

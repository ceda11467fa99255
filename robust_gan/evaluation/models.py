"""What is evaluated, on which images, under attacks of which names."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robust_gan import attacks as attacks_lib
from robust_gan.attacks._checks import check_signature
from robust_gan.attacks._eot import is_randomised, needs_keys
from robust_gan.attacks.retrained_generator import DESIGNS
from robust_gan.errors import UserError
from robust_gan.types import Attack, LogitsFn

GENERATOR = "generator"
RETRAINED = tuple(DESIGNS)
"""Generators that are trained against the model under attack, on the very images that are scored."""
CLEAN = "clean"


Attacks = Sequence[str | Attack | tuple[str, Attack]] | Mapping[str, Attack]
"""Attacks by name, as functions, or both: see `name_attacks`."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A classifier to evaluate, or to make adversarial images with.

    Attributes:
        name: Its name in tables.
        logits_fn: Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
        generator: Its co-trained generator as an `Attack`; None where it has none.
    """

    name: str
    logits_fn: LogitsFn
    generator: Attack | None = None


class EvaluatedModel(NamedTuple):
    """A model and its origin.

    Attributes:
        model: The model.
        description: Its origin, for the report.
        record: The `checkpoint.Record` of its checkpoint; None for a classifier of the user's own.
    """

    model: Model
    description: dict[str, Any]
    record: Any = None


class EvaluationData(NamedTuple):
    """The images of an evaluation.

    Attributes:
        name: Of the data set or file.
        split: Of the data set; `all` for a file.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        label_names: Names of the classes.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: np.ndarray) -> "EvaluationData":
        """Returns the data of two arrays.

        >>> EvaluationData.from_arrays(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1])).label_names
        ('0', '1')
        """
        labels = np.asarray(labels)
        num_classes = int(labels.max()) + 1 if labels.size and labels.dtype.kind in "iu" else 0
        return cls("arrays", "all", images, labels, tuple(map(str, range(num_classes))))


def attack_names(attacks: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the names of attacks; `clean`, which is always evaluated, is left out.

    Args:
        attacks: Names, or one string with commas: those of `attacks.by_name`, `generator`, retrained generators, and
            `package.module:function` for an attack of the user's own.

    Raises:
        UserError: An attack is unknown or named twice.

    >>> attack_names("clean,fgsm,pgd10,generator,my_attacks:flip")
    ('fgsm', 'pgd10', 'generator', 'my_attacks:flip')
    """
    parts = attacks.split(",") if isinstance(attacks, str) else attacks
    names = [name.strip() for name in parts if name.strip()]
    if len(set(names)) < len(names):
        raise UserError(f"an attack is named twice in {','.join(names)!r}")
    for name in names:
        if name not in (CLEAN, GENERATOR, *RETRAINED) and ":" not in name:
            attacks_lib.by_name(name)
    return tuple(name for name in names if name != CLEAN)


def name_attacks(attacks: "Attacks") -> tuple[tuple[str, ...], dict[str, Attack]]:
    """Returns the names of attacks, and those that are functions rather than names of `attacks.by_name`.

    Args:
        attacks: Names; or functions, known by their own names; or pairs (name, function), as `attacks.autoattack`
            returns them; or a mapping of names to functions.

    Returns:
        The names in their order, and by name the functions that no name of `attacks.by_name` stands for.

    Raises:
        UserError: A name is unknown or given twice, or what is given is neither name nor function.

    >>> from robust_gan.attacks import autoattack, pgd
    >>> name_attacks(["fgsm", pgd])[0], name_attacks(autoattack())[0]
    (('fgsm', 'pgd'), ('apgd_ce', 'apgd_t', 'fab_t', 'square'))
    >>> list(name_attacks({"mine": pgd})[1])
    ['mine']
    """
    if isinstance(attacks, str):
        return attack_names(attacks), {}
    names: list[str] = []
    functions: dict[str, Attack] = {}
    for given in attacks.items() if isinstance(attacks, Mapping) else attacks:
        pair = given if isinstance(given, tuple) and len(given) == 2 else (getattr(given, "__name__", given), given)
        name, function = pair
        if not isinstance(name, str) or name == "<lambda>" or not (function == name or callable(function)):
            raise UserError(
                f"an attack is a name such as 'pgd10', or a function with a name, not {given!r}: give "
                "{'mine': attack}"
            )
        if name in names:
            raise UserError(f"the attack {name} is given twice: give each a name of its own")
        if callable(function):
            check_signature(name, function)
        known = name in (CLEAN, GENERATOR, *RETRAINED)
        if function == name and not known:
            attacks_lib.by_name(name)
        elif not isinstance(function, str) and (known or not _stands_for(name, function)):
            functions[name] = function
        names.append(name)
    return tuple(names), functions


def _stands_for(name, function):
    try:
        return attacks_lib.by_name(name) is function
    except UserError:
        return False


def check_deterministic(name: str, logits_fn: LogitsFn) -> None:
    """Refuses a classifier that takes keys: the figures of an evaluation would depend on them.

    Args:
        name: Of the model, for the sentence.
        logits_fn: The classifier.

    Raises:
        UserError: It is marked by `attacks.randomised`, or cannot be called without keys.

    >>> check_deterministic("mine", lambda images, keys=None: images)
    """
    if is_randomised(logits_fn) or needs_keys(logits_fn):
        raise UserError(
            f"{name} is randomised: evaluations are of deterministic classifiers; attack it with "
            "attacks.run_sequential(attacks.autoattack('rand'), ...)"
        )

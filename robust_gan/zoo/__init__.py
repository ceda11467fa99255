"""Trained classifiers that come with the package, each with a card of its measured robustness.

The weights are files of `checkpoint.export` in this folder. `zoo:NAME` names one wherever a checkpoint is named:
`robust-gan-evaluate --checkpoint=zoo:digits/pgd`.
"""

from typing import Any

from robust_gan import checkpoint
from robust_gan.checkpoint import exported
from robust_gan.storage import files
from robust_gan.types import LogitsFn

__all__ = ["card", "load", "names"]


def names() -> list[str]:
    """Returns the names of the models, `DATA/METHOD`.

    >>> "digits/pgd" in names()
    True
    """
    return exported.list_names()


def load(name: str) -> LogitsFn:
    """Loads a classifier.

    Args:
        name: One of `names`.

    Returns:
        Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`, jit-able and differentiable; see
        `checkpoint.load_classifier`. `checkpoint.load_attack("zoo:NAME")` loads its generator, where it has one.

    Raises:
        CheckpointError: There is no such model, or its file is missing or damaged.

    >>> import jax.numpy as jnp
    >>> load("digits/pgd")(jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """
    return checkpoint.load_classifier(exported.ZOO + name)


def card(name: str) -> dict[str, Any]:
    """Returns the card of a model.

    Args:
        name: One of `names`.

    Returns:
        A JSON-able dictionary: `data`, `split`, `network`, `method`, `seed`; `threat`, with `norm` and `epsilon` in
        units of [0, 1]; `clean`, `certified` and `autoattack`, each with `percent`, `correct`, `count` and the 95 %
        `interval` in percent (Wilson), where the last two are None if they were not run; `alarms`, the names of those
        that fired, or None if they were not checked; `command` and `evaluation`, the commands of the training and the
        evaluation; `commit`, of the training; `hardware`, `versions` and `date`, of the evaluation.

    Raises:
        CheckpointError: There is no such model.

    >>> card("digits/pgd")["threat"]
    {'norm': 'linf', 'epsilon': 0.15}
    """
    found: dict[str, Any] = files.read_json(exported.find_card(name))
    return found

"""Adversarial training of classifiers against a generator, and attacks to evaluate their robustness.

The names here are the library: threat models, losses, attacks, adversaries and the game. Data, checkpoints, evaluation
and training are modules that are imported by name. A name is loaded when it is first used, and jax with the first that
needs it, so that the commands report a mistake without loading jax.

References:
    Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019,
    https://arxiv.org/abs/1905.09591
"""

import importlib
from typing import TYPE_CHECKING, Any

from robust_gan.version import __version__

if TYPE_CHECKING:
    from robust_gan import adversaries, attacks, certification, game, losses, networks, optimizers, threat_model
    from robust_gan.attacks.pgd import fgsm, pgd
    from robust_gan.config import Config
    from robust_gan.errors import CheckpointError, DataError, UserError
    from robust_gan.evaluation.autoattack import autoattack
    from robust_gan.evaluation.evaluate import evaluate
    from robust_gan.game import Game, TrainState, train_step
    from robust_gan.losses import classifier_loss, cross_entropy, dlr, generator_loss, kl, margin
    from robust_gan.threat_model import L2Threat, LinfThreat, perturb, project
    from robust_gan.types import (
        Adversary,
        Attack,
        Batch,
        LogitsFn,
        LossFn,
        Network,
        PlayerState,
        ThreatModel,
        Variables,
    )

__all__ = [  # noqa: RUF022  # By group.
    # Modules.
    "adversaries", "attacks", "certification", "game", "losses", "networks", "optimizers", "threat_model",
    # Threat models.
    "L2Threat", "LinfThreat", "perturb", "project",
    # Losses.
    "classifier_loss", "cross_entropy", "dlr", "generator_loss", "kl", "margin",
    # Attacks.
    "fgsm", "pgd",
    # Evaluations.
    "autoattack", "evaluate",
    # The game.
    "Game", "TrainState", "train_step",
    # Types.
    "Adversary", "Attack", "Batch", "LogitsFn", "LossFn", "Network", "PlayerState", "ThreatModel", "Variables",
    # Configuration and errors.
    "CheckpointError", "Config", "DataError", "UserError", "__version__",
]  # fmt: skip

_MODULES = ("adversaries", "attacks", "certification", "game", "losses", "networks", "optimizers", "threat_model")
_HOMES = {
    "attacks.pgd": ("fgsm", "pgd"),
    "config": ("Config",),
    "errors": ("CheckpointError", "DataError", "UserError"),
    "evaluation.autoattack": ("autoattack",),
    "evaluation.evaluate": ("evaluate",),
    "game": ("Game", "TrainState", "train_step"),
    "losses": ("classifier_loss", "cross_entropy", "dlr", "generator_loss", "kl", "margin"),
    "threat_model": ("L2Threat", "LinfThreat", "perturb", "project"),
    "types": (
        "Adversary",
        "Attack",
        "Batch",
        "LogitsFn",
        "LossFn",
        "Network",
        "PlayerState",
        "ThreatModel",
        "Variables",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"robust_gan.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'robust_gan' has no attribute {name!r}", name=name)
    value = globals()[name] = getattr(importlib.import_module(f"robust_gan.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""robust_gan: classifiers trained against a generator of bounded adversarial noise, and the attacks that measure them.

The names here are what a JAX project of one's own needs: threat models, unreduced losses, attacks, adversaries and the
game. Data, checkpoints, evaluation and training are modules of their own and are imported by name, so that importing
`robust_gan` pulls little more than jax, flax and optax.

References:
    Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019,
    https://arxiv.org/abs/1905.09591
"""

from robust_gan import adversaries, attacks, game, losses, metrics, networks, optimizers, threat_model
from robust_gan.attacks import fgsm, pgd
from robust_gan.config import Config
from robust_gan.errors import CheckpointError, DataError, UserError
from robust_gan.game import Game, TrainState, train_step
from robust_gan.losses import classifier_loss, cross_entropy, dlr, generator_loss, kl, margin
from robust_gan.threat_model import L2Threat, LinfThreat, perturb, project
from robust_gan.types import Adversary, Attack, Batch, LogitsFn, LossFn, Network, PlayerState, ThreatModel
from robust_gan.version import __version__

__all__ = [
    "Adversary",
    "Attack",
    "Batch",
    "CheckpointError",
    "Config",
    "DataError",
    "Game",
    "L2Threat",
    "LinfThreat",
    "LogitsFn",
    "LossFn",
    "Network",
    "PlayerState",
    "ThreatModel",
    "TrainState",
    "UserError",
    "__version__",
    "adversaries",
    "attacks",
    "classifier_loss",
    "cross_entropy",
    "dlr",
    "fgsm",
    "game",
    "generator_loss",
    "kl",
    "losses",
    "margin",
    "metrics",
    "networks",
    "optimizers",
    "perturb",
    "pgd",
    "project",
    "threat_model",
    "train_step",
]

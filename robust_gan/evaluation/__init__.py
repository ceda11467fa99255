"""How robust classifiers are: as a matrix of who attacks whom, or against attacks in turn, with alarms.

Everything takes any `logits_fn`: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
"""

from robust_gan.evaluation import alarms
from robust_gan.evaluation.curve import Curve, trace_curve
from robust_gan.evaluation.models import CLEAN, GENERATOR, RETRAINED, Model, attack_names, check_images, to_unit
from robust_gan.evaluation.sequential import AttackResult, evaluate_sequential
from robust_gan.evaluation.state import EvaluationState
from robust_gan.evaluation.suites import SUITES, Suite, get_suite
from robust_gan.evaluation.transfer import Scores, evaluate, total

__all__ = [
    "CLEAN",
    "GENERATOR",
    "RETRAINED",
    "SUITES",
    "AttackResult",
    "Curve",
    "EvaluationState",
    "Model",
    "Scores",
    "Suite",
    "alarms",
    "attack_names",
    "check_images",
    "evaluate",
    "evaluate_sequential",
    "get_suite",
    "to_unit",
    "total",
    "trace_curve",
]

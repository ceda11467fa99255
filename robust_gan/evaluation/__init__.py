"""Evaluates how robust classifiers are: white-box, by transfer, sequentially, and with alarms.

`evaluate` runs a whole evaluation; `evaluate_transfer`, `evaluate_sequential` and `trace_curve` are its parts. All take
any `logits_fn`: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
"""

from robust_gan.data.array_files import check_images, to_unit
from robust_gan.evaluation import alarms
from robust_gan.evaluation.autoattack import AutoAttackResult, autoattack
from robust_gan.evaluation.config import PLOTS, EvaluationConfig
from robust_gan.evaluation.curve import Curve, trace_curve
from robust_gan.evaluation.evaluate import evaluate, evaluate_threats
from robust_gan.evaluation.models import (
    CLEAN,
    GENERATOR,
    RETRAINED,
    EvaluationData,
    Model,
    attack_names,
)
from robust_gan.evaluation.result import EvaluationResult, SequentialResult
from robust_gan.evaluation.sequential import AttackResult, evaluate_sequential
from robust_gan.evaluation.state import EvaluationState
from robust_gan.evaluation.suites import SUITES, Suite, get_suite
from robust_gan.evaluation.transfer import Scores, evaluate_transfer, num_attacked

__all__ = [
    "CLEAN",
    "GENERATOR",
    "PLOTS",
    "RETRAINED",
    "SUITES",
    "AttackResult",
    "AutoAttackResult",
    "Curve",
    "EvaluationConfig",
    "EvaluationData",
    "EvaluationResult",
    "EvaluationState",
    "Model",
    "Scores",
    "SequentialResult",
    "Suite",
    "alarms",
    "attack_names",
    "autoattack",
    "check_images",
    "evaluate",
    "evaluate_sequential",
    "evaluate_threats",
    "evaluate_transfer",
    "get_suite",
    "num_attacked",
    "to_unit",
    "trace_curve",
]

"""The typed configuration of a run, and every check on it that needs no jax.

A recipe (`configs/*.py`) returns a `Config`; flags override single fields; `validate` refuses what cannot be right
with one sentence per mistake; `to_dict` and `from_dict` carry it to JSON and back, so a checkpoint knows what it is.
"""

from robust_gan.config.schema import (
    ADVERSARIES,
    ATTACK_LOSSES,
    AUGMENTATIONS,
    BATCH_NORM_MODES,
    CHANGEABLE,
    CLASSIFIER_LOSSES,
    NORMS,
    OPTIMIZERS,
    PENALTY_FORMS,
    AdversaryConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    EnsembleConfig,
    FGSMConfig,
    GeneratorConfig,
    OptimizerConfig,
    PenaltyConfig,
    PGDConfig,
    ThreatConfig,
    ValidationConfig,
)
from robust_gan.config.serialization import differences, flatten, from_dict, to_dict
from robust_gan.config.validation import adversarial_weight, check_epsilon, validate

__all__ = [
    "ADVERSARIES",
    "ATTACK_LOSSES",
    "AUGMENTATIONS",
    "BATCH_NORM_MODES",
    "CHANGEABLE",
    "CLASSIFIER_LOSSES",
    "NORMS",
    "OPTIMIZERS",
    "PENALTY_FORMS",
    "AdversaryConfig",
    "ClassifierConfig",
    "Config",
    "DataConfig",
    "EnsembleConfig",
    "FGSMConfig",
    "GeneratorConfig",
    "OptimizerConfig",
    "PGDConfig",
    "PenaltyConfig",
    "ThreatConfig",
    "ValidationConfig",
    "adversarial_weight",
    "check_epsilon",
    "differences",
    "flatten",
    "from_dict",
    "to_dict",
    "validate",
]

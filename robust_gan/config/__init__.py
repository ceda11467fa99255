"""The typed configuration of a run, and every check on it that needs no jax.

`datasets` holds the built-in configs and `methods` the training methods. Flags override single fields; `validate`
refuses impossible values with one sentence per mistake; `to_dict` and `from_dict` convert to JSON and back.
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
    IBPConfig,
    OptimizerConfig,
    PenaltyConfig,
    PGDConfig,
    ThreatConfig,
    ValidationConfig,
)
from robust_gan.config.serialization import differences, flatten, from_dict, to_dict
from robust_gan.config.validation import adversarial_weight, check_epsilon, has_memory, validate

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
    "IBPConfig",
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
    "has_memory",
    "to_dict",
    "validate",
]

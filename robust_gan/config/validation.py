"""What a configuration must be: one clear sentence for each mistake."""

import dataclasses
import math
import types
import typing
from typing import Any

from robust_gan.config.schema import (
    ADVERSARIES,
    AUGMENTATIONS,
    BATCH_NORM_MODES,
    NORMS,
    OPTIMIZERS,
    PENALTY_FORMS,
    Config,
    OptimizerConfig,
)
from robust_gan.errors import UserError


def check_epsilon(epsilon: Any, field: str = "epsilon", norm: str = "linf") -> None:
    """Refuses a radius that cannot be meant.

    Raises:
        UserError: Not a finite number in (0, 1], or in (0, 10] for L2; above it the sentence says what the unit is.

    >>> check_epsilon(8 / 255)
    >>> check_epsilon(8)
    Traceback (most recent call last):
    robust_gan.errors.UserError: epsilon is 8, but pixels are in [0, 1]: for 8 grey levels of 255 write 8/255 (0.03137)
    """
    # Common radii of the L2 ball on 28 x 28 pixels go up to 3, the farthest corner of the range is at 28.
    limit = 10 if norm == "l2" else 1
    try:
        value = float(epsilon)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if limit < value < math.inf:
        raise UserError(
            f"{field} is {value:g}, but pixels are in [0, 1]: for {value:g} grey levels of 255 "
            f"write {value:g}/255 ({value / 255:.4g})"
        )
    if not 0.0 < value <= limit:
        raise UserError(f"{field} must be a number in (0, {limit}], not {epsilon}")


def validate(config: Config) -> None:
    """Refuses a configuration that cannot be right.

    Raises:
        UserError: One sentence: the field, its value, what would be right.

    >>> validate(Config())
    >>> validate(Config(batch_size=0))
    Traceback (most recent call last):
    robust_gan.errors.UserError: batch_size must be at least 1, not 0
    """
    _check_types(config, "")
    _one_of("threat.norm", config.threat.norm, NORMS)
    check_epsilon(config.threat.epsilon, "threat.epsilon", config.threat.norm)
    _one_of("adversary.name", config.adversary.name, ADVERSARIES)
    _one_of("penalty.form", config.penalty.form, PENALTY_FORMS)
    _one_of("classifier.attacked_batch_norm", config.classifier.attacked_batch_norm, BATCH_NORM_MODES)
    _one_of("data.augmentation", config.data.augmentation, AUGMENTATIONS)
    for name, value, low in (
        ("seed", config.seed, 0),
        ("data.validation_size", config.data.validation_size, 1),
        ("data.train_size", config.data.train_size, 0),
        ("data.extra_size", config.data.extra_size, 0),
        ("data.padding", config.data.padding, 0),
        ("adversary.pgd.num_steps", config.adversary.pgd.num_steps, 1),
        ("adversary.pgd.step_size", config.adversary.pgd.step_size, 0.0),
        ("adversary.generator.steps", config.adversary.generator.steps, 1),
        ("adversary.generator.minibatches", config.adversary.generator.minibatches, 1),
        ("classifier.clean_weight", config.classifier.clean_weight, 0.0),
        ("classifier.adversarial_weight", config.classifier.adversarial_weight, 0.0),
        ("batch_size", config.batch_size, 1),
        ("num_steps", config.num_steps, 1),
        ("log_every", config.log_every, 1),
        ("keep_last", config.keep_last, 1),
        ("validation.every", config.validation.every, 1),
        ("validation.size", config.validation.size, 0),
        ("validation.batch_size", config.validation.batch_size, 1),
        ("validation.pgd_steps", config.validation.pgd_steps, 1),
    ):
        if not low <= value < math.inf:
            raise UserError(f"{name} must be at least {low}, not {value}")
        if isinstance(low, int) and name != "seed" and value >= 2**31:
            raise UserError(f"{name} must be below 2**31, not {value}")
    _validate_optimizer(config.classifier.optimizer, "classifier.optimizer")
    _validate_optimizer(config.adversary.generator.optimizer, "adversary.generator.optimizer")
    if config.seed >= 2**32:
        raise UserError(f"seed must be below 2**32, not {config.seed}")
    if not math.isfinite(config.penalty.coefficient):
        raise UserError(f"penalty.coefficient must be finite, not {config.penalty.coefficient}")
    if not (math.isfinite(config.penalty.step) and config.penalty.step > 0):
        raise UserError(f"penalty.step must be a positive number, not {config.penalty.step}")
    if config.penalty.coefficient != 0 and config.adversary.name != "generator":
        raise UserError(
            f"penalty.coefficient is {config.penalty.coefficient}, but adversary {config.adversary.name!r} has no "
            "parameters to take a gradient in: set it to 0, or adversary.name to 'generator'"
        )
    if config.penalty.coefficient != 0 and config.classifier.adversarial_weight == 0:
        raise UserError("penalty.coefficient must be 0 when classifier.adversarial_weight is 0: nothing is attacked")
    weight = config.classifier.clean_weight + adversarial_weight(config)
    if weight == 0:
        raise UserError(
            "classifier.clean_weight and classifier.adversarial_weight leave nothing to learn from: "
            "one must be above 0 (with adversary 'none' it is clean_weight)"
        )


def adversarial_weight(config: Config) -> float:
    """Returns the weight of the adversarial term: 0 where there is no adversary.

    >>> from robust_gan.config import AdversaryConfig
    >>> adversarial_weight(Config(adversary=AdversaryConfig(name="none")))
    0.0
    """
    return 0.0 if config.adversary.name == "none" else config.classifier.adversarial_weight


def _validate_optimizer(optimizer: OptimizerConfig, name: str) -> None:
    _one_of(f"{name}.name", optimizer.name, OPTIMIZERS)
    if not (math.isfinite(optimizer.learning_rate) and optimizer.learning_rate > 0):
        raise UserError(f"{name}.learning_rate must be a positive number, not {optimizer.learning_rate}")
    for field in ("momentum", "b1", "b2"):
        if not 0 <= getattr(optimizer, field) < 1:
            raise UserError(f"{name}.{field} must be in [0, 1), not {getattr(optimizer, field)}")
    if not (math.isfinite(optimizer.weight_decay) and optimizer.weight_decay >= 0):
        raise UserError(f"{name}.weight_decay must be at least 0, not {optimizer.weight_decay}")
    if not 0 < optimizer.decay_factor <= 1:
        raise UserError(f"{name}.decay_factor must be in (0, 1], not {optimizer.decay_factor}")
    steps = list(optimizer.decay_steps)
    if any(not 1 <= step < 2**31 for step in steps) or steps != sorted(set(steps)):
        raise UserError(
            f"{name}.decay_steps must be increasing positive steps below 2**31, not {optimizer.decay_steps}"
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple | list) and all(_fits(item, typing.get_args(kind)[0]) for item in value)
    if kind is float:
        # An integer that no float reaches overflows in every comparison with one.
        return isinstance(value, float) or (_fits(value, int) and abs(value) < 2**1023)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _check_types(node: Any, prefix: str) -> None:
    for field in dataclasses.fields(node):
        value, name = getattr(node, field.name), prefix + field.name
        if not _fits(value, field.type):
            generic = typing.get_origin(field.type) is not None
            expected = str(field.type) if generic else typing.cast(type, field.type).__name__
            raise UserError(f"{name} must be of type {expected}, not {value!r}")
        if dataclasses.is_dataclass(value):
            _check_types(value, name + ".")

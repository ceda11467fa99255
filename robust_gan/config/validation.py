"""Validates a configuration, with one sentence for each mistake."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

from robust_gan.config import renamed, schema
from robust_gan.config.imports import is_function_name
from robust_gan.config.schema import Config, GeneratorConfig, OptimizerConfig
from robust_gan.errors import UserError

_CHOICES = {
    "threat.norm": schema.NORMS,
    "adversary.name": schema.ADVERSARIES,
    "adversary.fgsm.start": schema.FGSM_STARTS,
    "adversary.generator.start": schema.GENERATOR_STARTS,
    "adversary.pgd.loss": schema.ATTACK_LOSSES,
    "adversary.ensemble.scheme": schema.ENSEMBLE_SCHEMES,
    "classifier.attack_bn_mode": schema.BATCH_NORM_MODES,
    "classifier.loss": schema.CLASSIFIER_LOSSES,
    "data.augmentation": schema.AUGMENTATIONS,
    "penalty.form": schema.PENALTY_FORMS,
    "init_players": schema.PLAYERS,
    "precision": schema.PRECISIONS,
}
_AT_LEAST: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0, ("seed", "data.train_size", "data.extra_size", "data.padding", "data.image_size",
         "adversary.epsilon_warmup_steps",
         "classifier.ibp.warmup_steps", "classifier.ibp.ramp_steps", "adversary.generator.latent_size",
         "steps_per_call", "validation.size", "validation.patience")),
    (1, ("data.validation_size", "adversary.ensemble.pgd_steps", "adversary.pgd.num_steps", "adversary.generator.steps",
         "adversary.generator.update_every", "adversary.generator.batches_per_step",
         "adversary.generator.num_refinements", "batch_size", "num_steps",
         "log_every", "max_to_keep", "validation.every", "validation.batch_size", "validation.pgd_steps")),
    (0.0, ("adversary.fgsm.step_size", "adversary.pgd.step_size", "adversary.generator.diversity",
           "adversary.generator.final_fgsm_step", "classifier.clean_weight", "classifier.adversarial_weight",
           "classifier.awp_gamma", "classifier.consistency", "classifier.ibp.epsilon")),
)  # fmt: skip
_SHARES = ("classifier.label_smoothing", "classifier.ema_decay", "adversary.ensemble.clean_share")


def check_epsilon(epsilon: Any, field: str = "epsilon", norm: str = "linf", *, image_shape: Sequence[int] = ()) -> None:
    """Refuses a radius that is no valid one.

    Args:
        epsilon: Of any type.
        field: Its name in the sentence.
        norm: `linf` or `l2`.
        image_shape: `[H, W, C]`, where it is known: in L2 no two images are farther apart than sqrt(H W C).

    Raises:
        UserError: Not a finite number in (0, 1], or above 0 for L2, or larger than the distance of any two images.

    >>> check_epsilon(8 / 255)
    >>> check_epsilon(8)
    Traceback (most recent call last):
    robust_gan.errors.UserError: epsilon is 8, but pixels are in [0, 1]: for 8 grey levels of 255 write 8/255 (0.03137)
    """
    limit = 1.0 if norm == "linf" else math.prod(image_shape) ** 0.5 if image_shape else math.inf
    try:
        value = float(epsilon)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if norm == "l2" and limit < value < math.inf:
        raise UserError(
            f"{field} is {value:g}, but pixels are in [0, 1], where no two images of shape {tuple(image_shape)} are "
            f"farther apart than {limit:.4g} in L2: give a smaller radius"
        )
    if limit < value < math.inf:
        raise UserError(
            f"{field} is {value:g}, but pixels are in [0, 1]: for {value:g} grey levels of 255 "
            f"write {value:g}/255 ({value / 255:.4g})"
        )
    if not 0.0 < value < math.inf:
        allowed = "in (0, 1]" if norm == "linf" else "above 0"
        raise UserError(f"{field} must be a number {allowed}, not {epsilon}")


def validate(config: Config) -> None:
    """Refuses an invalid configuration.

    Raises:
        UserError: One sentence: the field, its value, what would be right.

    >>> validate(Config())
    >>> validate(Config(batch_size=0))
    Traceback (most recent call last):
    robust_gan.errors.UserError: batch_size must be at least 1, not 0
    """
    _check_types(config, "")
    for name, allowed in _CHOICES.items():
        if name != "adversary.name" or not is_function_name(config.adversary.name):
            _one_of(name, _get(config, name), allowed)
    check_epsilon(config.threat.epsilon, "threat.epsilon", config.threat.norm)
    for low, names in _AT_LEAST:
        for name in names:
            value = _get(config, name)
            if not low <= value < math.inf:
                raise UserError(f"{name} must be at least {low}, not {value}")
            if isinstance(low, int) and name != "seed" and value >= 2**31:
                raise UserError(f"{name} must be below 2**31, not {value}")
    for name in _SHARES:
        if not 0 <= _get(config, name) < 1:
            raise UserError(f"{name} must be in [0, 1), not {_get(config, name)}")
    _validate_optimizer(config.classifier.optimizer, "classifier.optimizer")
    _validate_optimizer(config.adversary.generator.optimizer, "adversary.generator.optimizer")
    if config.seed >= 2**32:
        raise UserError(f"seed must be below 2**32, not {config.seed}")
    _validate_penalty(config)
    if config.precision == "bfloat16" and config.penalty.coefficient and config.penalty.form == "finite_difference":
        raise UserError(
            "penalty.form must be 'exact' with precision 'bfloat16': the numerator of 'finite_difference' would be "
            "rounding error"
        )
    _validate_generator(config.adversary.generator, config.threat.norm)
    if "" in config.adversary.ensemble.sources:
        raise UserError("adversary.ensemble.sources has an empty name: give folders of runs, DIR or DIR@STEP")
    if config.adversary.name == "ensemble" and not config.adversary.ensemble.sources:
        raise UserError(
            "adversary.ensemble.sources is empty: give the checkpoints of trained classifiers, such as "
            "--config.adversary.ensemble.sources=\"('runs/standard',)\""
        )
    if config.classifier.loss == "trades" and not (config.classifier.clean_weight and adversarial_weight(config)):
        raise UserError(
            "the TRADES loss needs clean_weight and adversarial_weight above 0 and an adversary that makes images: "
            "set them, or classifier.loss to 'cross_entropy'"
        )
    if config.classifier.consistency and (config.penalty.coefficient or not adversarial_weight(config)):
        raise UserError(
            "classifier.consistency needs an adversary, adversarial_weight above 0 and penalty.coefficient 0: "
            "set them, or it to 0"
        )
    _validate_ibp(config)
    weight = config.classifier.clean_weight + adversarial_weight(config)
    if weight == 0:
        raise UserError(
            "classifier.clean_weight and classifier.adversarial_weight leave nothing to learn from: "
            "one must be above 0 (with adversary 'none' it is clean_weight)"
        )


def _validate_ibp(config: Config) -> None:
    if not 0 < config.classifier.ibp.weight <= 1:
        raise UserError(f"classifier.ibp.weight must be above 0 and at most 1, not {config.classifier.ibp.weight}")
    if config.classifier.loss != "ibp":
        return
    if config.threat.norm != "linf":
        raise UserError(f"the loss ibp bounds the norm linf, but threat.norm is {config.threat.norm!r}")
    if config.precision != "float32":
        raise UserError(f"the loss ibp needs precision float32, not {config.precision!r}")
    if config.classifier.ibp.epsilon:
        check_epsilon(config.classifier.ibp.epsilon, "classifier.ibp.epsilon")


def adversarial_weight(config: Config) -> float:
    """Returns the weight of the adversarial term: 0 where there is no adversary.

    >>> from robust_gan.config import AdversaryConfig
    >>> adversarial_weight(Config(adversary=AdversaryConfig(name="none")))
    0.0
    """
    return 0.0 if config.adversary.name == "none" else config.classifier.adversarial_weight


def has_memory(config: Config) -> bool:
    """Returns whether the perturbation of each training image is remembered.

    >>> has_memory(Config())
    False
    """
    return config.adversary.name == "generator" and config.adversary.generator.start == "memory"


def _validate_penalty(config: Config) -> None:
    penalty = config.penalty
    if not math.isfinite(penalty.coefficient):
        raise UserError(f"penalty.coefficient must be finite, not {penalty.coefficient}")
    if not (math.isfinite(penalty.step) and penalty.step > 0):
        raise UserError(f"penalty.step must be a positive number, not {penalty.step}")
    if penalty.decay and penalty.form != "finite_difference":
        raise UserError(
            "penalty.decay is of the form 'finite_difference': set it to False, or penalty.form to 'finite_difference'"
        )
    if penalty.coefficient == 0:
        return
    if config.adversary.name != "generator" and not is_function_name(config.adversary.name):
        raise UserError(
            f"penalty.coefficient is {penalty.coefficient}, but adversary {config.adversary.name!r} has no "
            "parameters to take a gradient in: set it to 0, or adversary.name to 'generator'"
        )
    if config.classifier.adversarial_weight == 0:
        raise UserError("penalty.coefficient must be 0 when classifier.adversarial_weight is 0: nothing is attacked")
    if config.classifier.loss != "cross_entropy":
        raise UserError(
            f"penalty.coefficient must be 0 with the loss {config.classifier.loss!r}: the penalty belongs to the game "
            "of the cross-entropy"
        )


def _validate_generator(generator: GeneratorConfig, norm: str) -> None:
    _one_of("adversary.generator.parametrization", generator.parametrization, schema.PARAMETRIZATIONS)
    for name in generator.inputs:
        _one_of("adversary.generator.inputs", name, schema.GENERATOR_INPUTS)
    if len(set(generator.inputs)) < len(generator.inputs):
        raise UserError(f"adversary.generator.inputs names something twice: {', '.join(generator.inputs)}")
    if generator.diversity and not generator.latent_size:
        raise UserError(
            f"adversary.generator.diversity is {generator.diversity}, but with latent_size 0 a perturbation has "
            "nothing to differ by: set latent_size above 0, or diversity to 0"
        )
    if generator.start == "vertex" and norm != "linf":
        raise UserError("adversary.generator.start must be 'none' or 'uniform' in L2: its ball has no corners")
    if generator.start == "memory" and generator.batches_per_step > 1:
        raise UserError(
            "adversary.generator.batches_per_step must be 1 with start 'memory': the generator alone sees the others, "
            "and nothing is remembered of them"
        )
    if generator.parametrization == "rescale" and norm != "linf":
        raise UserError(
            "adversary.generator.parametrization must be 'clip' in L2: the valid perturbations are no box there"
        )


def _validate_optimizer(optimizer: OptimizerConfig, name: str) -> None:
    _one_of(f"{name}.name", optimizer.name, schema.OPTIMIZERS)
    if not (math.isfinite(optimizer.learning_rate) and optimizer.learning_rate > 0):
        raise UserError(f"{name}.learning_rate must be a positive number, not {optimizer.learning_rate}")
    for field in ("momentum", "b1", "b2"):
        if not 0 <= getattr(optimizer, field) < 1:
            raise UserError(f"{name}.{field} must be in [0, 1), not {getattr(optimizer, field)}")
    if not (math.isfinite(optimizer.weight_decay) and optimizer.weight_decay >= 0):
        raise UserError(f"{name}.weight_decay must be at least 0, not {optimizer.weight_decay}")
    _one_of(f"{name}.schedule", optimizer.schedule, schema.SCHEDULES)
    if optimizer.schedule == "piecewise" and optimizer.schedule_steps:
        raise UserError(f"{name}.schedule_steps must be 0 with the schedule 'piecewise', which has decay_steps")
    if optimizer.schedule != "piecewise" and not 1 <= optimizer.schedule_steps < 2**31:
        raise UserError(
            f"{name}.schedule_steps must be at least 1 with the schedule {optimizer.schedule!r}, not "
            f"{optimizer.schedule_steps}: give the steps at whose end the rate is 0"
        )
    if optimizer.schedule != "piecewise" and optimizer.decay_steps:
        raise UserError(f"{name}.decay_steps must be empty with the schedule {optimizer.schedule!r}")
    if not 0 < optimizer.decay_factor <= 1:
        raise UserError(f"{name}.decay_factor must be in (0, 1], not {optimizer.decay_factor}")
    steps = list(optimizer.decay_steps)
    if any(not 1 <= step < 2**31 for step in steps) or steps != sorted(set(steps)):
        raise UserError(
            f"{name}.decay_steps must be increasing positive steps below 2**31, not {optimizer.decay_steps}"
        )


def _get(config: Config, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = renamed.hint(renamed.VALUES.get(name, {}), value)
        raise UserError(f"{name} must be one of {', '.join(allowed)}, not {value!r}{hint}")


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

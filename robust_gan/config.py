"""The typed configuration of a run, and every check on it that needs no jax.

A recipe (`configs/*.py`) returns a `Config`; flags override single fields; `validate` refuses what cannot be right
with one sentence per mistake; `to_dict` and `from_dict` carry it to JSON and back, so a checkpoint knows what it is.
"""

import dataclasses
import math
import types
import typing
from typing import Any

from robust_gan.errors import UserError

NORMS = ("linf", "l2")
OPTIMIZERS = ("sgd", "adam", "adamw")
ADVERSARIES = ("none", "pgd", "generator")
PENALTY_FORMS = ("exact", "finite_difference")
BATCH_NORM_MODES = ("batch", "running")
AUGMENTATIONS = ("none", "crop", "crop_flip")


@dataclasses.dataclass
class DataConfig:
    """Which images.

    Attributes:
        name: A TFDS data set: digits, mnist, cifar10, cifar100, svhn_cropped, or any prepared as array_record.
        data_dir: Where the prepared data lie; empty for TFDS's own default.
        validation_size: Images held out of the training split for model selection; the test split is never touched.
        train_size: Use this many training images only; 0 for all.
        extra_size: Images of SVHN's `extra` split added to training.
        augmentation: `none`, `crop` or `crop_flip`.
        padding: Pixels of zero padding on each side before a random crop.
    """

    name: str = "digits"
    data_dir: str = ""
    validation_size: int = 180
    train_size: int = 0
    extra_size: int = 0
    augmentation: str = "none"
    padding: int = 2


@dataclasses.dataclass
class ThreatConfig:
    """What the attacker may do.

    Attributes:
        norm: `linf` or `l2`.
        epsilon: Radius of the ball, in units of the [0, 1] pixel range: `8 / 255`, not 8.
    """

    norm: str = "linf"
    epsilon: float = 0.15


@dataclasses.dataclass
class OptimizerConfig:
    """How one player moves.

    Attributes:
        name: `sgd` (with momentum), `adam` or `adamw`.
        learning_rate: The rate at step 0.
        momentum: Of sgd.
        b1: Of adam and adamw.
        b2: Of adam and adamw.
        weight_decay: On kernels alone, never on biases or BatchNorm. For sgd and adam it is the gradient of
            `weight_decay / 2 * ||w||^2` (the paper's loss term); for adamw it is decoupled.
        decay_steps: Steps of this optimiser after which the rate is multiplied by `decay_factor`.
        decay_factor: See `decay_steps`.
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    decay_steps: tuple[int, ...] = ()
    decay_factor: float = 0.1


@dataclasses.dataclass
class ClassifierConfig:
    """The classifier (the paper's discriminator) and how it learns.

    Attributes:
        network: A name of `networks.CLASSIFIERS`.
        optimizer: How it moves.
        clean_weight: Weight of the cross-entropy on clean images; 0 trains on adversarial images alone.
        adversarial_weight: Weight of the cross-entropy on adversarial images.
        attacked_batch_norm: BatchNorm statistics of the classifier *while it is attacked in training*: `batch`, those
            of the attacked batch, as the released code does, or `running`. At test it is always `running`.
    """

    network: str = "digits_cnn"
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    clean_weight: float = 1.0
    adversarial_weight: float = 1.0
    attacked_batch_norm: str = "batch"


@dataclasses.dataclass
class PGDConfig:
    """Projected gradient descent as the adversary of training.

    Attributes:
        num_steps: Gradient steps.
        step_size: In the unit of epsilon; 0 for 2.5 epsilon / num_steps.
    """

    num_steps: int = 10
    step_size: float = 0.0


@dataclasses.dataclass
class GeneratorConfig:
    """The generator as the adversary of training: the paper's game.

    Attributes:
        network: A name of `networks.GENERATORS`.
        optimizer: How it moves.
        steps: Generator steps on each minibatch.
        minibatches: Minibatches per classifier step; the classifier learns from the last. 5 in the paper's MNIST
            recipe, otherwise 1.
    """

    network: str = "digits_generator"
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(name="adam", learning_rate=0.002, b1=0.5)
    )
    steps: int = 5
    minibatches: int = 1


@dataclasses.dataclass
class AdversaryConfig:
    """Whom the classifier plays against.

    Attributes:
        name: `none`, `pgd` or `generator`.
        pgd: Read when `name` is `pgd`.
        generator: Read when `name` is `generator`.
    """

    name: str = "generator"
    pgd: PGDConfig = dataclasses.field(default_factory=PGDConfig)
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)


@dataclasses.dataclass
class PenaltyConfig:
    """The gradient penalty R = 1/2 ||grad_phi CE||^2, added to the classifier's loss as + coefficient * R.

    Attributes:
        coefficient: Positive damps the game; negative is what the released code computes; 0 is none, at no cost.
        form: `exact`, or `finite_difference` as in the released code.
        step: Size h of the finite difference.
    """

    coefficient: float = 0.0
    form: str = "exact"
    step: float = 0.01


@dataclasses.dataclass
class ValidationConfig:
    """What is measured on the validation split while training.

    Attributes:
        every: Training steps between validations; also between checkpoints.
        size: Images; 0 for the whole split.
        batch_size: Images at once.
        pgd_steps: Steps of the PGD attack whose robust accuracy chooses the best checkpoint.
    """

    every: int = 500
    size: int = 0
    batch_size: int = 500
    pgd_steps: int = 10


@dataclasses.dataclass
class Config:
    """One training run.

    Attributes:
        seed: Reaches the initialisation, the order of the images, their augmentation and the adversary.
        data: Which images.
        threat: What the attacker may do, in training and validation.
        classifier: The minimising player.
        adversary: The maximising player.
        penalty: The gradient penalty.
        batch_size: Images in a minibatch, over all devices.
        num_steps: Classifier steps.
        log_every: Steps between lines of metrics.
        validation: What is measured while training, and how often.
        keep_last: Newest checkpoints kept, beside the best.
    """

    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    threat: ThreatConfig = dataclasses.field(default_factory=ThreatConfig)
    classifier: ClassifierConfig = dataclasses.field(default_factory=ClassifierConfig)
    adversary: AdversaryConfig = dataclasses.field(default_factory=AdversaryConfig)
    penalty: PenaltyConfig = dataclasses.field(default_factory=PenaltyConfig)
    batch_size: int = 64
    num_steps: int = 1000
    log_every: int = 50
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    keep_last: int = 2


CHANGEABLE = ("num_steps", "log_every", "keep_last", "data.data_dir")
"""Fields in which a resumed run may differ from the one it continues: they do not touch what a step computes."""


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

    >>> adversarial_weight(Config(adversary=AdversaryConfig(name="none")))
    0.0
    """
    return 0.0 if config.adversary.name == "none" else config.classifier.adversarial_weight


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the configuration as JSON-able nested dictionaries.

    >>> to_dict(Config())["threat"]
    {'norm': 'linf', 'epsilon': 0.15}
    """
    return dataclasses.asdict(config, dict_factory=lambda items: {k: _plain(v) for k, v in items})


def from_dict(values: dict[str, Any]) -> Config:
    """Builds a configuration from what `to_dict` gave.

    Raises:
        UserError: A field is unknown or missing, or has a value of the wrong type.

    >>> from_dict(to_dict(Config(seed=3))).seed
    3
    """
    config = _build(Config, values, "")
    validate(config)
    return config


def differences(left: Config, right: Config) -> list[str]:
    """Returns the names of the fields that differ and matter for what a step computes, each with both values.

    >>> differences(Config(), Config(batch_size=32, num_steps=5))
    ['batch_size: 64 != 32']
    """
    flat_left, flat_right = _flatten(to_dict(left)), _flatten(to_dict(right))
    return [
        f"{name}: {flat_left[name]!r} != {flat_right[name]!r}"
        for name in flat_left
        if name not in CHANGEABLE and flat_left[name] != flat_right[name]
    ]


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


def _build(kind: type, values: Any, prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(values, dict):
        raise UserError(f"{prefix.rstrip('.') or 'the configuration'} must be a JSON object, not {values!r}")
    unknown, missing = sorted(map(str, set(values) - set(fields))), sorted(set(fields) - set(values))
    if unknown:
        raise UserError(f"unknown field {prefix}{unknown[0]}: the fields here are {', '.join(fields)}")
    if missing:
        raise UserError(f"the configuration lacks the field {prefix}{missing[0]}")
    arguments = {}
    for name, field in fields.items():
        value = values[name]
        if dataclasses.is_dataclass(field.type):
            value = _build(typing.cast(type, field.type), value, f"{prefix}{name}.")
        elif typing.get_origin(field.type) is tuple and isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return kind(**arguments)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat

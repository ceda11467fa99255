"""Training methods and budgets: what each changes in a config."""

import copy
from collections.abc import Callable, Sequence

from robust_gan.config import (
    AdversaryConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    FGSMConfig,
    GeneratorConfig,
    IBPConfig,
    OptimizerConfig,
    PenaltyConfig,
    ThreatConfig,
    ValidationConfig,
    renamed,
)
from robust_gan.errors import UserError

BUDGETS = ("paper", "short", "debug")
"""Lengths of a run: as the released code, an evening on two cores, or a few steps that test the installation."""


def parse_choice(choice: str, budgets: Sequence[str] = BUDGETS) -> tuple[str, str]:
    """Returns the method and the budget of `METHOD` or `METHOD/BUDGET`, the text after the colon of `--config`.

    Args:
        choice: A name of `METHODS` and perhaps a budget; `paper` where none is given.
        budgets: The budgets that the config has.

    Returns:
        The method and the budget.

    Raises:
        UserError: One of them is unknown.

    >>> parse_choice("pgd"), parse_choice("generator/debug")
    (('pgd', 'paper'), ('generator', 'debug'))
    """
    name, _, budget = choice.partition("/")
    if name not in METHODS:
        raise UserError(
            f"unknown method {name!r}: the methods are {', '.join(METHODS)}{renamed.hint(renamed.METHODS, name)}"
        )
    if (budget or "paper") not in budgets:
        raise UserError(
            f"this config has no budget {budget!r}: it has {', '.join(budgets)}{renamed.hint(renamed.BUDGETS, budget)}"
        )
    return name, budget or "paper"


def apply_method(config: Config, name: str) -> Config:
    """Returns the config of a method, given the config of the game against the generator.

    All have the same schedule, weight decay and number of classifier updates. They differ in the adversary, and in how
    their authors weigh clean and adversarial images: PGD and FGSM training, and `cond_generator_adv_only` like
    them, learn from adversarial images alone, the released ensemble from three to a clean one, the others from one to
    one.

    Args:
        config: The config of `generator`, with its penalty.
        name: A name of `METHODS`.

    Returns:
        The same run with that adversary; the penalty is 0 where there is no generator.

    Raises:
        UserError: The name is unknown.

    >>> config = Config(penalty=PenaltyConfig(coefficient=0.01))
    >>> pgd = apply_method(config, "pgd")
    >>> pgd.adversary.name, pgd.classifier.clean_weight, pgd.penalty.coefficient
    ('pgd', 0.0, 0.0)
    >>> apply_method(config, "generator") == config
    True
    """
    parse_choice(name)
    config = copy.deepcopy(config)
    METHODS[name](config)
    if config.adversary.name != "generator":
        config.penalty.coefficient = 0.0
    return config


def as_released(config: Config, name: str) -> Config:
    """Returns the config of a method with the settings of the released code for the baselines that it trains.

    These are: weight decay 1e-4; PGD's last point, in PGD training and in the ensemble; and an ensemble of which each
    image stays clean or takes one of the three attacks with equal chances, in one batch, so that its weight is 1 in all
    and BatchNorm sees the mixture.

    Args:
        config: The result of `apply_method`.
        name: The method.

    >>> config = as_released(apply_method(Config(), "ensemble"), "ensemble")
    >>> config.adversary.ensemble.clean_share, config.classifier.clean_weight, config.classifier.adversarial_weight
    (0.25, 0.0, 1.0)
    """
    config = copy.deepcopy(config)
    if name in ("none", "pgd", "ensemble"):
        config.classifier.optimizer.weight_decay = 1e-4
        config.adversary.pgd.keep_best = config.adversary.ensemble.keep_best = False
    if name == "ensemble":
        config.adversary.ensemble.clean_share = 0.25
        config.classifier.clean_weight, config.classifier.adversarial_weight = 0.0, 1.0
    return config


def debug(config: Config) -> Config:
    """Returns a config cut down to a few steps on a few images, which test the installation.

    >>> debug(Config()).num_steps
    4
    """
    config = copy.deepcopy(config)
    config.data.train_size, config.data.validation_size = 64, 32
    config.batch_size, config.num_steps, config.log_every = 16, 4, 2
    config.validation = ValidationConfig(every=2, batch_size=32, pgd_steps=2)
    config.adversary.pgd.num_steps = config.adversary.ensemble.pgd_steps = 2
    config.adversary.generator.steps = config.adversary.generator.batches_per_step = 1
    config.classifier.optimizer.decay_steps = ()
    return config


def _adversary(name: str, clean: float = 1.0, adversarial: float = 1.0) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        config.adversary.name = name
        config.classifier.clean_weight, config.classifier.adversarial_weight = clean, adversarial

    return change


def _n_fgsm(config: Config) -> None:
    _adversary("fgsm", clean=0.0)(config)
    config.adversary.fgsm = FGSMConfig(start="noise", step_size=1.0)


def _tramer(config: Config) -> None:
    _adversary("ensemble")(config)
    config.adversary.ensemble.scheme = "tramer"


def _trades(config: Config) -> None:
    _adversary("pgd", adversarial=6.0)(config)
    config.adversary.pgd.loss, config.classifier.loss = "kl", "trades"


def _ibp(name: str) -> Callable[[Config], None]:
    """Adds the certified term to training against an adversary, or to standard training."""

    def change(config: Config) -> None:
        _adversary(name)(config)
        config.classifier.loss, config.penalty.coefficient = "ibp", 0.0
        config.classifier.ibp = IBPConfig(warmup_steps=config.num_steps // 20, ramp_steps=config.num_steps // 2)

    return change


def certifiable(config: Config, *, network: str, num_steps: int, epsilon: float) -> Config:
    """Returns the config of a method with the loss `ibp` that trains longer, with Adam, a network without BatchNorm.

    Interval bounds train slowly, and a BatchNorm that grows as the kernels shrink works against them.

    Args:
        config: The result of `apply_method`.
        network: The classifier.
        num_steps: Classifier steps: 1/48 of them without the certified term, and 11/24 until its radius is full.
        epsilon: The radius of the bounds in training, somewhat larger than that of the threat model.

    References:
        Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models", 2018,
            section 4 (Adam, the ramps, and a larger radius in training).

    >>> config = certifiable(apply_method(Config(), "ibp"), network="certifiable_cnn", num_steps=4_800, epsilon=0.2)
    >>> config.classifier.ibp.warmup_steps, config.classifier.ibp.ramp_steps
    (100, 2200)
    """
    config = copy.deepcopy(config)
    config.num_steps = num_steps
    config.classifier.network = network
    config.classifier.optimizer = OptimizerConfig(
        name="adam", learning_rate=0.002, decay_steps=(num_steps * 3 // 4, num_steps * 11 // 12)
    )
    config.classifier.ibp = IBPConfig(epsilon=epsilon, warmup_steps=num_steps // 48, ramp_steps=num_steps * 11 // 24)
    config.validation.every = num_steps // 6
    return config


def _penalty(coefficient: float, form: str = "exact") -> Callable[[Config], None]:
    """Multiplies the penalty of the config by a coefficient."""

    def change(config: Config) -> None:
        config.penalty.coefficient *= coefficient
        config.penalty.form = form

    return change


def _released(config: Config) -> None:
    """Sets the penalty of the released code, which has the other sign."""
    _penalty(-1.0, "finite_difference")(config)
    config.penalty.decay = True


def _conditioned(*names: str, num_refinements: int = 1, final_fgsm_step: float = 0.0) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        generator = config.adversary.generator
        generator.inputs, generator.num_refinements, generator.final_fgsm_step = names, num_refinements, final_fgsm_step
        # It reads the classifier's gradient: one step for each step of the classifier is enough, without a penalty.
        generator.steps, config.penalty.coefficient = 1, 0.0

    return change


_refined = _conditioned("gradient", "perturbation", num_refinements=2, final_fgsm_step=0.5)


def _refined_adv_only(config: Config) -> None:
    """As PGD training, learns from adversarial images alone."""
    _refined(config)
    config.classifier.clean_weight = 0.0


def _noise(config: Config) -> None:
    """Trains on the generator's step from noise: N-FGSM, whose step is learned."""
    _conditioned("gradient")(config)
    config.adversary.generator.start, config.adversary.generator.update_every = "noise", 5
    config.classifier.clean_weight = 0.0


def _sdi(config: Config) -> None:
    """Adds a full FGSM step from the generator's point (FGSM-SDI)."""
    _noise(config)
    config.adversary.generator.final_fgsm_step = 1.0


METHODS: dict[str, Callable[[Config], None]] = {
    "none": _adversary("none"),
    "fgsm": _adversary("fgsm", clean=0.0),
    "n_fgsm": _n_fgsm,
    "pgd": _adversary("pgd", clean=0.0),
    "trades": _trades,
    "ensemble": _adversary("ensemble", clean=0.5, adversarial=1.5),
    "ensemble_tramer": _tramer,
    "generator": lambda config: None,
    "cond_generator": _conditioned("gradient"),
    "cond_generator_fgsm": _conditioned("gradient", final_fgsm_step=0.5),
    "cond_generator_refined": _refined,
    "cond_generator_adv_only": _refined_adv_only,
    "cond_generator_noise": _noise,
    "cond_generator_sdi": _sdi,
    "generator_no_penalty": _penalty(0.0),
    "generator_negative_penalty": _penalty(-1.0),
    "generator_finite_difference": _penalty(1.0, "finite_difference"),
    "released": _released,
    "ibp": _ibp("none"),
    "generator_ibp": _ibp("generator"),
}
"""Changes of each method to the config of the image-only `generator`, whose penalty is exact and positive.
`ensemble` and `ensemble_tramer` need `--config.adversary.ensemble.sources`; `released` has the penalty of the
released code: with the constants of the paper it is the released game."""


def build(
    choice: str,
    *,
    data: DataConfig,
    epsilon: float,
    classifier: str,
    classifier_optimizer: OptimizerConfig,
    generator_optimizer: OptimizerConfig,
    batch_size: int,
    num_steps: int,
    generator: str = "resnet_generator",
    penalty: PenaltyConfig | None = None,
    log_every: int = 100,
    validation: ValidationConfig | None = None,
    budgets: Sequence[str] = ("paper", "debug"),
) -> tuple[Config, str, str]:
    """Returns a config of the game in the L-infinity ball, the method and the budget; the budget `debug` is applied.

    The generator takes 5 steps on each batch and PGD 10 steps. Of 32x32 images 1,000 are validated each 5,000 steps.

    Args:
        choice: The method and the budget, see `parse_choice`.
        data: The images.
        epsilon: Radius of the ball.
        classifier: The name of the classifier.
        classifier_optimizer: Its optimiser.
        generator_optimizer: The optimiser of the generator.
        batch_size: Images in a batch.
        num_steps: Classifier steps.
        generator: The name of the generator.
        penalty: The gradient penalty against the generator; None for no penalty.
        log_every: Classifier steps between two lines of metrics.
        validation: The validation.
        budgets: The budgets of this config.

    >>> config, method, budget = build("pgd", data=DataConfig(name="cifar10"), epsilon=8 / 256, classifier="resnet20",
    ...                                classifier_optimizer=OptimizerConfig(), generator_optimizer=OptimizerConfig(),
    ...                                batch_size=64, num_steps=200_000)
    >>> config.adversary.generator.network, config.adversary.generator.steps, method, budget
    ('resnet_generator', 5, 'pgd', 'paper')
    """
    name, budget = parse_choice(choice, budgets)
    config = Config(
        data=data,
        threat=ThreatConfig(norm="linf", epsilon=epsilon),
        classifier=ClassifierConfig(network=classifier, optimizer=classifier_optimizer),
        adversary=AdversaryConfig(generator=GeneratorConfig(network=generator, optimizer=generator_optimizer)),
        penalty=penalty or PenaltyConfig(),
        batch_size=batch_size,
        num_steps=num_steps,
        log_every=log_every,
        validation=validation or ValidationConfig(every=5_000, size=1_000),
    )
    return apply_method(debug(config) if budget == "debug" else config, name), name, budget

"""What the recipes of `configs/` share; in the package, because a recipe is loaded from wherever it lies."""

import copy
from collections.abc import Callable, Sequence

from robust_gan.config import (
    AdversaryConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    FGSMConfig,
    GeneratorConfig,
    OptimizerConfig,
    PenaltyConfig,
    PGDConfig,
    ThreatConfig,
    ValidationConfig,
)
from robust_gan.errors import UserError

BUDGETS = ("paper", "cpu", "smoke")
"""How long a recipe runs: as the released code, an evening on two cores, or some steps that show that all is there."""


def read(choice: str, budgets: Sequence[str] = BUDGETS) -> tuple[str, str]:
    """Reads what follows the colon of a recipe, `METHOD` or `METHOD/BUDGET`.

    Args:
        choice: A name of `METHODS` and perhaps a budget; `paper` where none is given.
        budgets: Those that the recipe has.

    Returns:
        The method and the budget.

    Raises:
        UserError: One of them is unknown.

    >>> read("pgd"), read("generator/smoke")
    (('pgd', 'paper'), ('generator', 'smoke'))
    """
    name, _, budget = choice.partition("/")
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: the methods are {', '.join(METHODS)}")
    if (budget or "paper") not in budgets:
        raise UserError(f"this recipe has no budget {budget!r}: it has {', '.join(budgets)}")
    return name, budget or "paper"


def method(config: Config, name: str) -> Config:
    """Returns the recipe of a method, given that of the game against the generator.

    All have the same schedule, weight decay and number of classifier updates. They differ in the adversary, and in how
    their authors weigh clean and adversarial images: PGD and FGSM training, and `cond_generator_adv_only` like
    them, learn from adversarial images alone, the released ensemble from three to a clean one, the others from one to
    one.

    Args:
        config: The recipe of `generator`, with its penalty.
        name: A name of `METHODS`.

    Returns:
        The same run with that adversary; the penalty is 0 where there is no generator to take it of.

    Raises:
        UserError: The name is unknown.

    >>> config = Config(penalty=PenaltyConfig(coefficient=0.01))
    >>> pgd = method(config, "pgd")
    >>> pgd.adversary.name, pgd.classifier.clean_weight, pgd.penalty.coefficient
    ('pgd', 0.0, 0.0)
    >>> method(config, "generator") == config
    True
    """
    read(name)
    config = copy.deepcopy(config)
    METHODS[name](config)
    if config.adversary.name != "generator":
        config.penalty.coefficient = 0.0
    return config


def as_released(config: Config, name: str) -> Config:
    """Returns the recipe of a method with what the released code does otherwise for the baselines that it trains.

    That is: weight decay 1e-4; PGD's last point, in PGD training and in the ensemble; and an ensemble of which each
    image stays clean or takes one of the three attacks with equal chances, in one batch, so that its weight is 1 in all
    and BatchNorm sees the mixture.

    Args:
        config: What `method` returned.
        name: The method.

    >>> config = as_released(method(Config(), "ensemble"), "ensemble")
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


def smoke(config: Config) -> Config:
    """Returns a recipe cut down to some steps on some images, which show that everything is in place.

    >>> smoke(Config()).num_steps
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


def _penalty(coefficient: float, form: str = "exact") -> Callable[[Config], None]:
    """The penalty as a multiple of the recipe's own coefficient."""

    def change(config: Config) -> None:
        config.penalty.coefficient *= coefficient
        config.penalty.form = form

    return change


def _released(config: Config) -> None:
    """The penalty as the released code computes it, of the other sign."""
    _penalty(-1.0, "finite_difference")(config)
    config.penalty.decay = True


def _conditioned(*names: str, num_refinements: int = 1, final_fgsm_step: float = 0.0) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        generator = config.adversary.generator
        generator.inputs, generator.num_refinements, generator.final_fgsm_step = names, num_refinements, final_fgsm_step
        # It follows the classifier from its gradient: one step for each of the classifier's is enough, and no penalty.
        generator.steps, config.penalty.coefficient = 1, 0.0

    return change


_refined = _conditioned("gradient", "perturbation", num_refinements=2, final_fgsm_step=0.5)


def _refined_adv_only(config: Config) -> None:
    """As PGD training, from adversarial images alone."""
    _refined(config)
    config.classifier.clean_weight = 0.0


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
    "generator_no_penalty": _penalty(0.0),
    "generator_negative_penalty": _penalty(-1.0),
    "generator_finite_difference": _penalty(1.0, "finite_difference"),
    "released": _released,
}
"""What each method changes in the recipe of the image-only `generator`, whose penalty is exact and positive.
`ensemble` and `ensemble_tramer` need `--config.adversary.ensemble.sources`; `released` is the game with the penalty
that the released code computes: with the constants of a recipe of the paper, the released game."""


def resnet_game(
    choice: str,
    *,
    data: DataConfig,
    epsilon: float,
    classifier: str,
    classifier_optimizer: OptimizerConfig,
    generator_optimizer: OptimizerConfig,
    penalty: PenaltyConfig,
    batch_size: int,
    num_steps: int,
    generator: str = "resnet_generator",
    validation_every: int = 5_000,
    released: bool = False,
) -> Config:
    """Returns a recipe of the game on 32x32 images, which the released code plays alike on all of them.

    That is: in L-infinity, against its residual generator, which takes 5 steps on each minibatch. PGD takes 10 steps;
    1,000 images are validated.

    Args:
        choice: The method and the budget, see `read`; there is no `cpu`.
        data: Which images.
        epsilon: Radius of the ball.
        classifier: The name of the classifier.
        classifier_optimizer: How it moves.
        generator_optimizer: How the generator moves.
        penalty: The gradient penalty against the generator.
        batch_size: Images in a minibatch.
        num_steps: Classifier steps.
        generator: The name of the generator.
        validation_every: Classifier steps between validations.
        released: Whether baselines are trained `as_released`.

    >>> config = resnet_game("generator", data=DataConfig(name="cifar10"), epsilon=8 / 256, classifier="resnet20",
    ...                      classifier_optimizer=OptimizerConfig(), generator_optimizer=OptimizerConfig(),
    ...                      penalty=PenaltyConfig(), batch_size=64, num_steps=200_000)
    >>> config.adversary.generator.network, config.adversary.generator.steps
    ('resnet_generator', 5)
    """
    name, budget = read(choice, ("paper", "smoke"))
    config = Config(
        data=data,
        threat=ThreatConfig(norm="linf", epsilon=epsilon),
        classifier=ClassifierConfig(network=classifier, optimizer=classifier_optimizer),
        adversary=AdversaryConfig(
            name="generator",
            pgd=PGDConfig(num_steps=10),
            generator=GeneratorConfig(network=generator, steps=5, optimizer=generator_optimizer),
        ),
        penalty=penalty,
        batch_size=batch_size,
        num_steps=num_steps,
        log_every=100,
        validation=ValidationConfig(every=validation_every, size=1_000, batch_size=500),
    )
    config = method(smoke(config) if budget == "smoke" else config, name)
    return as_released(config, name) if released else config

"""MNIST, epsilon 0.3.

    python launch/train.py --config=configs/mnist.py --workdir=runs/mnist
    python launch/train.py --config=configs/mnist.py:pgd/cpu --workdir=runs/mnist_pgd

The constants are those of Wang and Yu (ICLR 2019) as their released code runs them: 200,000 minibatches, 40,000
classifier steps.

What the released code computes as its gradient regulariser is --config.penalty.coefficient=-0.01
--config.penalty.form=finite_difference; here the sign damps the game and the gradient is exact.

Measured: the budget cpu, 1,000 updates, see the README; the paper's 40,000: not run.
"""

from robust_gan import recipes
from robust_gan.config import (
    AdversaryConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    GeneratorConfig,
    OptimizerConfig,
    PenaltyConfig,
    PGDConfig,
    ThreatConfig,
    ValidationConfig,
)


def get_config(choice: str = "generator") -> Config:
    """Returns the recipe of `CONTESTANT` or `CONTESTANT/BUDGET`, see `robust_gan.recipes`."""
    name, budget = recipes.read(choice)
    config = Config(
        data=DataConfig(name="mnist", validation_size=5_000),
        threat=ThreatConfig(norm="linf", epsilon=0.3),
        classifier=ClassifierConfig(
            network="mnist_cnn",
            optimizer=OptimizerConfig(
                name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-5, decay_steps=(20_000,)
            ),
        ),
        adversary=AdversaryConfig(
            name="generator",
            pgd=PGDConfig(num_steps=10),
            generator=GeneratorConfig(
                network="mnist_generator",
                steps=5,
                # The classifier moves on every fifth minibatch: 25 generator steps to one of its own.
                minibatches=5,
                optimizer=OptimizerConfig(name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-5),
            ),
        ),
        penalty=PenaltyConfig(coefficient=0.01, step=0.001),
        batch_size=64,
        num_steps=40_000,
        log_every=100,
        validation=ValidationConfig(every=1_000, size=1_000, batch_size=500),
    )
    if budget == "smoke":
        config = recipes.smoke(config)
    config = recipes.contestant(config, name)
    return _shortened(config) if budget == "cpu" else config


def _shortened(config: Config) -> Config:
    """Lets every contestant of MNIST be trained in half an hour on two cores, by Adam."""
    config.num_steps = 1_000
    config.validation.every = 250
    config.classifier.optimizer = OptimizerConfig(
        name="adam", learning_rate=0.001, weight_decay=1e-5, decay_steps=(750,)
    )
    config.adversary.generator.minibatches = 1
    config.adversary.generator.optimizer = OptimizerConfig(name="adam", learning_rate=0.0005, b1=0.5, weight_decay=1e-5)
    # From adversarial images alone this network learns nothing in its first 500 steps at epsilon 0.3; so here
    # `generator_hops_alone` is `generator_hops`.
    config.classifier.clean_weight = config.classifier.clean_weight or 1.0
    return config

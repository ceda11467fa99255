"""MNIST, epsilon 0.3.

    python launch/train.py --config=configs/mnist.py --workdir=runs/mnist
    python launch/train.py --config=configs/mnist.py:pgd --workdir=runs/mnist_pgd

The constants are those of Wang and Yu (ICLR 2019) as their released code runs them: 200,000 minibatches, 40,000
classifier steps.

What the released code computes as its gradient regulariser is --config.penalty.coefficient=-0.01
--config.penalty.form=finite_difference; here the sign damps the game and the gradient is exact.

Measured: not run.
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


def get_config(adversary: str = "generator") -> Config:
    """Returns the recipe of a contestant: none, pgd or generator."""
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
    return recipes.contestant(config, adversary)

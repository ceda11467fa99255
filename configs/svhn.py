"""SVHN with ResNet-20 and 80,000 images of its `extra` split, epsilon 0.05.

    python launch/train.py --config=configs/svhn.py --workdir=runs/svhn
    python launch/train.py --config=configs/svhn.py:pgd --workdir=runs/svhn_pgd

The constants are those of Wang and Yu (ICLR 2019) as their released code runs them, but 1,000 training images are
held out to choose the best checkpoint.

What the released code computes as its gradient regulariser is --config.penalty.coefficient=-0.01
--config.penalty.form=finite_difference; here the sign damps the game and the gradient is exact.

Measured: not run.
"""

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
    return Config(
        data=DataConfig(name="svhn_cropped", validation_size=1_000, extra_size=80_000),
        threat=ThreatConfig(norm="linf", epsilon=0.05),
        classifier=ClassifierConfig(
            network="resnet20_svhn",
            optimizer=OptimizerConfig(
                name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-4, decay_steps=(100_000,)
            ),
            # Adversarial training after Madry et al. learns from adversarial images alone.
            clean_weight=0.0 if adversary == "pgd" else 1.0,
        ),
        adversary=AdversaryConfig(
            name=adversary,
            pgd=PGDConfig(num_steps=10),
            generator=GeneratorConfig(
                network="resnet_generator",
                steps=5,
                optimizer=OptimizerConfig(name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-4),
            ),
        ),
        penalty=PenaltyConfig(coefficient=0.01 if adversary == "generator" else 0.0, step=0.001),
        batch_size=64,
        num_steps=200_000,
        log_every=100,
        validation=ValidationConfig(every=5_000, size=1_000, batch_size=500),
    )

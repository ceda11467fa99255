"""CIFAR-100 with ResNet-20, epsilon 8/256.

    python launch/train.py --config=configs/cifar100.py --workdir=runs/cifar100
    python launch/train.py --config=configs/cifar100.py:pgd --workdir=runs/cifar100_pgd

The set is in the paper's experiments, but missing from its released code: this is the recipe of CIFAR-10. 1,000
training images are held out to choose the best checkpoint.

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
        data=DataConfig(name="cifar100", validation_size=1_000, augmentation="crop_flip", padding=2),
        threat=ThreatConfig(norm="linf", epsilon=8 / 256),
        classifier=ClassifierConfig(
            network="resnet20",
            optimizer=OptimizerConfig(
                name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-5, decay_steps=(100_000,)
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
                optimizer=OptimizerConfig(name="adam", learning_rate=0.002, b1=0.5, b2=0.999, weight_decay=1e-5),
            ),
        ),
        penalty=PenaltyConfig(coefficient=0.01 if adversary == "generator" else 0.0, step=0.01),
        batch_size=64,
        num_steps=200_000,
        log_every=100,
        validation=ValidationConfig(every=5_000, size=1_000, batch_size=500),
    )

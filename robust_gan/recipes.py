"""What the recipes of `configs/` share; in the package, because a recipe is loaded from wherever it lies."""

import dataclasses

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


def contestant(config: Config, adversary: str) -> Config:
    """Returns the recipe of a contestant, given that of the game against the generator.

    Args:
        config: The recipe of `generator`, with its penalty.
        adversary: What follows the colon: `none`, `pgd` or `generator`.

    Returns:
        The same run with that adversary. Without a generator there is no penalty; against PGD the classifier learns
        from adversarial images alone, as in Madry et al., "Towards Deep Learning Models Resistant to Adversarial
        Attacks", ICLR 2018.

    >>> config = Config(penalty=PenaltyConfig(coefficient=0.01))
    >>> pgd = contestant(config, "pgd")
    >>> pgd.adversary.name, pgd.classifier.clean_weight, pgd.penalty.coefficient
    ('pgd', 0.0, 0.0)
    >>> contestant(config, "generator") == config
    True
    """
    config = dataclasses.replace(config, adversary=dataclasses.replace(config.adversary, name=adversary))
    if adversary != "generator":
        config = dataclasses.replace(config, penalty=dataclasses.replace(config.penalty, coefficient=0.0))
    if adversary == "pgd":
        config = dataclasses.replace(config, classifier=dataclasses.replace(config.classifier, clean_weight=0.0))
    return config


def resnet_game(
    adversary: str,
    *,
    data: DataConfig,
    epsilon: float,
    classifier: str,
    classifier_optimizer: OptimizerConfig,
    generator_optimizer: OptimizerConfig,
    penalty: PenaltyConfig,
    batch_size: int,
    num_steps: int,
) -> Config:
    """Returns a recipe of the paper's game on 32x32 images, which its released code plays alike on all of them.

    That is: in L-infinity, against its residual generator, which takes 5 steps on each minibatch. PGD takes 10 steps;
    every 5,000 steps 1,000 images are validated.

    Args:
        adversary: The contestant, see `contestant`.
        data: Which images.
        epsilon: Radius of the ball.
        classifier: The name of the classifier.
        classifier_optimizer: How it moves.
        generator_optimizer: How the generator moves.
        penalty: The gradient penalty against the generator.
        batch_size: Images in a minibatch.
        num_steps: Classifier steps.

    >>> config = resnet_game("generator", data=DataConfig(name="cifar10"), epsilon=8 / 256, classifier="resnet20",
    ...                      classifier_optimizer=OptimizerConfig(), generator_optimizer=OptimizerConfig(),
    ...                      penalty=PenaltyConfig(), batch_size=64, num_steps=200_000)
    >>> config.adversary.generator.network, config.adversary.generator.steps
    ('resnet_generator', 5)
    """
    generator = GeneratorConfig(network="resnet_generator", steps=5, optimizer=generator_optimizer)
    config = Config(
        data=data,
        threat=ThreatConfig(norm="linf", epsilon=epsilon),
        classifier=ClassifierConfig(network=classifier, optimizer=classifier_optimizer),
        adversary=AdversaryConfig(name="generator", pgd=PGDConfig(num_steps=10), generator=generator),
        penalty=penalty,
        batch_size=batch_size,
        num_steps=num_steps,
        log_every=100,
        validation=ValidationConfig(every=5_000, size=1_000, batch_size=500),
    )
    return contestant(config, adversary)

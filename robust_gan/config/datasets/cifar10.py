"""CIFAR-10 with ResNet-20, epsilon 8/256.

    robust-gan-train --config=cifar10 --workdir=runs/cifar10
    robust-gan-train --config=cifar10:pgd --workdir=runs/cifar10_pgd

The constants are the ones of the released code of Wang and Yu (ICLR 2019), but 1,000 training images are
held out to choose the best checkpoint.

The method `released` has the gradient penalty of the released code; the default, `generator`, has an exact one with the
sign that damps the game. docs/method.md lists the remaining differences from the released code.

Measured: not run.
"""

from robust_gan.config import Config, DataConfig, OptimizerConfig, PenaltyConfig, methods


def get_config(choice: str = "generator") -> Config:
    """Returns the config of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods.parse_choice`."""
    return methods.resnet_game(
        choice,
        data=DataConfig(name="cifar10", validation_size=1_000, augmentation="crop_flip", padding=2),
        epsilon=8 / 256,
        classifier="resnet20",
        classifier_optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.1,
            momentum=0.9,
            weight_decay=1e-5,
            decay_steps=(100_000,),
            restart_momentum=True,
        ),
        generator_optimizer=OptimizerConfig(name="adam", learning_rate=0.002, b1=0.5, b2=0.999, weight_decay=1e-5),
        penalty=PenaltyConfig(coefficient=0.01, step=0.01),
        batch_size=64,
        num_steps=200_000,
        released=True,
    )

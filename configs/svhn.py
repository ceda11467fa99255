"""SVHN with ResNet-20 and 80,000 images of its `extra` split, epsilon 0.05.

    python launch/train.py --config=configs/svhn.py --workdir=runs/svhn
    python launch/train.py --config=configs/svhn.py:pgd --workdir=runs/svhn_pgd

The constants are those of Wang and Yu (ICLR 2019) as their released code runs them, but 1,000 training images are
held out to choose the best checkpoint.

The method `released` is the game as the released code plays it; in `generator`, the default, the gradient penalty
has the sign that damps the game, and is exact. What still differs from the released code: docs/method.md.

Measured: not run.
"""

from robust_gan.config import Config, DataConfig, OptimizerConfig, PenaltyConfig, methods


def get_config(choice: str = "generator") -> Config:
    """Returns the recipe of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods`."""
    return methods.resnet_game(
        choice,
        data=DataConfig(name="svhn_cropped", validation_size=1_000, extra_size=80_000),
        epsilon=0.05,
        classifier="resnet20_svhn",
        generator="resnet_generator_svhn",
        classifier_optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.01,
            momentum=0.9,
            weight_decay=1e-4,
            decay_steps=(100_000,),
            restart_momentum=True,
        ),
        generator_optimizer=OptimizerConfig(name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-4),
        penalty=PenaltyConfig(coefficient=0.01, step=0.001),
        batch_size=64,
        num_steps=200_000,
        released=True,
    )

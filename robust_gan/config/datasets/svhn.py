"""SVHN with ResNet-20 and 80,000 images of its `extra` split, epsilon 0.05.

    robust-gan-train --config=svhn --workdir=runs/svhn
    robust-gan-train --config=svhn:pgd --workdir=runs/svhn_pgd

The constants are the ones of the released code of Wang and Yu (ICLR 2019), but 1,000 training images are
held out to choose the best checkpoint.

The method `released` has the gradient penalty of the released code; the default, `generator`, has an exact one with the
sign that damps the game. docs/method.md lists the remaining differences from the released code.

Measured: not run.
"""

from robust_gan.config import Config, DataConfig, OptimizerConfig, PenaltyConfig, methods


def get_config(choice: str = "generator") -> Config:
    """Returns the config of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods.parse_choice`."""
    config, name, _ = methods.build(
        choice,
        data=DataConfig(name="svhn_cropped", validation_size=1_000, extra_size=80_000),
        epsilon=0.05,
        classifier="resnet20_svhn",
        classifier_optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-4, decay_steps=(100_000,),
            restart_momentum=True,
        ),
        generator="resnet_generator_svhn",
        generator_optimizer=OptimizerConfig(name="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-4),
        penalty=PenaltyConfig(coefficient=0.01, step=0.001),
        batch_size=64,
        num_steps=200_000,
    )  # fmt: skip
    return methods.as_released(config, name)

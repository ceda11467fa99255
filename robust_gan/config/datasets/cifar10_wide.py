"""CIFAR-10 with the wide ResNet-20 (160/320/640), epsilon 8/256.

    robust-gan-train --config=cifar10_wide --workdir=runs/cifar10_wide
    robust-gan-train --config=cifar10_wide:pgd --workdir=runs/cifar10_wide_pgd

All other settings, methods and budgets are those of the config `cifar10`.

Measured: not run.
"""

from robust_gan.config import Config
from robust_gan.config.datasets import cifar10


def get_config(choice: str = "generator") -> Config:
    """Returns the config of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods.parse_choice`."""
    config = cifar10.get_config(choice)
    config.classifier.network = "resnet20_wide"
    return config

"""CIFAR-100 with ResNet-20, epsilon 8/256.

    robust-gan-train --config=cifar100 --workdir=runs/cifar100
    robust-gan-train --config=cifar100:pgd --workdir=runs/cifar100_pgd

The paper names this data set, but its released code does not have it: all other settings, methods and budgets are those
of the config `cifar10`.

Measured: not run.
"""

from robust_gan.config import Config
from robust_gan.config.datasets import cifar10


def get_config(choice: str = "generator") -> Config:
    """Returns the config of `METHOD` or `METHOD/BUDGET`, see `robust_gan.config.methods.parse_choice`."""
    config = cifar10.get_config(choice)
    config.data.name = "cifar100"
    return config

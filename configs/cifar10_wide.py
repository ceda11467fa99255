"""The built-in config `cifar10_wide` as a file: see `robust_gan/config/datasets/cifar10_wide.py`."""

from robust_gan.config.datasets.cifar10_wide import get_config as get_config

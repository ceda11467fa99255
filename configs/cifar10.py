"""The built-in config `cifar10` as a file: see `robust_gan/config/datasets/cifar10.py`."""

from robust_gan.config.datasets.cifar10 import get_config as get_config

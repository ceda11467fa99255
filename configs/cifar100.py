"""The built-in config `cifar100` as a file: see `robust_gan/config/datasets/cifar100.py`."""

from robust_gan.config.datasets.cifar100 import get_config as get_config

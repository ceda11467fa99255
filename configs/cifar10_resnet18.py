"""The built-in config `cifar10_resnet18` as a file: see `robust_gan/config/datasets/cifar10_resnet18.py`."""

from robust_gan.config.datasets.cifar10_resnet18 import get_config as get_config

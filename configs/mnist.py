"""The built-in config `mnist` as a file: see `robust_gan/config/datasets/mnist.py`."""

from robust_gan.config.datasets.mnist import get_config as get_config

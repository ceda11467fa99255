"""The built-in config `svhn` as a file: see `robust_gan/config/datasets/svhn.py`."""

from robust_gan.config.datasets.svhn import get_config as get_config

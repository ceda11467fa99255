"""The built-in config `digits` as a file: see `robust_gan/config/datasets/digits.py`."""

from robust_gan.config.datasets.digits import get_config as get_config

"""Training: the host loop around the game, what it measures, and what a run leaves behind."""

from robust_gan.training.loop import train
from robust_gan.training.writers import MetricWriter, load_writers

__all__ = ["MetricWriter", "load_writers", "train"]

"""Training: the host loop around the game, what it measures, and what a run leaves behind."""

from robust_gan.training.loop import train

__all__ = ["train"]

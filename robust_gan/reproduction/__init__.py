"""The experiments: every method trained alike, attacked by all others, and put into tables."""

from robust_gan.reproduction.plan import PAPER_METHODS, Plan, plan
from robust_gan.reproduction.run import InterruptedRunError, run

__all__ = ["PAPER_METHODS", "InterruptedRunError", "Plan", "plan", "run"]

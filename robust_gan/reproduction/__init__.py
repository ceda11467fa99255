"""The experiments: every contestant trained alike, attacked by all others, and put into tables."""

from robust_gan.reproduction.plan import OF_THE_PAPER, Plan, plan
from robust_gan.reproduction.run import InterruptedRunError, run

__all__ = ["OF_THE_PAPER", "InterruptedRunError", "Plan", "plan", "run"]

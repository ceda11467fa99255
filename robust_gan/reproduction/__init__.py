"""Experiments: trains all methods with the same settings, evaluates white-box and transfer attacks, writes tables."""

from robust_gan.reproduction.plan import PAPER_METHODS, Plan, plan
from robust_gan.reproduction.run import InterruptedRunError, run

__all__ = ["PAPER_METHODS", "InterruptedRunError", "Plan", "plan", "run"]

"""Runs `robust-gan-evaluate` from a clone: see `robust_gan/cli/evaluate.py`."""

from robust_gan.cli.evaluate import run

if __name__ == "__main__":
    run()

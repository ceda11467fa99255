"""Runs `robust-gan-train` from a clone: see `robust_gan/cli/train.py`."""

from robust_gan.cli.train import run

if __name__ == "__main__":
    run()

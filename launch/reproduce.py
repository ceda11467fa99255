"""Runs `robust-gan-reproduce` from a clone: see `robust_gan/cli/reproduce.py`."""

from robust_gan.cli.reproduce import run

if __name__ == "__main__":
    run()

"""Runs `robust-gan-prepare-data` from a clone: see `robust_gan/cli/prepare_data.py`."""

from robust_gan.cli.prepare_data import run

if __name__ == "__main__":
    run()

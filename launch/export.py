"""Runs `robust-gan-export` from a clone: see `robust_gan/cli/export.py`."""

from robust_gan.cli.export import run

if __name__ == "__main__":
    run()

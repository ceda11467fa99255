"""Runs `robust-gan-report` from a clone: see `robust_gan/cli/report.py`."""

from robust_gan.cli.report import run

if __name__ == "__main__":
    run()

"""Writes one HTML page on runs, evaluations and reproductions: plots and tables, readable without a network.

    robust-gan-report runs/digits runs/digits_pgd runs/report --output=report.html
    robust-gan-report runs/quickstart --output=report.html --csv=tables

Everything in the folders, and up to four levels below them, is found.
"""

from typing import NoReturn

from absl import flags

from robust_gan import cli
from robust_gan.errors import UserError

_OUTPUT = flags.DEFINE_string("output", "report.html", "The file.")

_CSV = flags.DEFINE_string("csv", "", "A folder in which each table of the page is written as a CSV file too.")

_GROUPS = {"Where": ["output=FILE.html", "csv=FOLDER"]}


def main(argv):
    """Writes the page."""
    if len(argv) < 2:
        raise UserError("no folder is given: name those of runs and evaluations, such as runs/quickstart")

    from robust_gan.reporting import html

    print(html.write(argv[1:], _OUTPUT.value, _CSV.value))
    return 0


def run() -> NoReturn:
    """Runs the command and exits."""
    cli.run(main, document=__doc__, groups=_GROUPS, positional=True)

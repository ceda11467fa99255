"""Tables of accuracies: their cells, with an interval for each, and their forms, Markdown and CSV."""

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robust_gan.evaluation import statistics


class Table(NamedTuple):
    """A table of the page.

    Attributes:
        title: The text above it.
        header: Of the columns.
        rows: The cells.
        note: The text below it.
        shares: For each row the shares in [0, 1] that shade the cells after its first; empty for no shading.
        framed: Whether cells whose row and column have the same name are framed.
        errors: Whether cells off the diagonal have another shade.
        words: Headers of columns that contain words, beside the first; the others contain numbers.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    shares: Sequence[Sequence[float | None]] = ()
    framed: bool = False
    errors: bool = False
    words: Sequence[str] = ()


def shaded(
    title: str, corner: str, rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float | None]],
    counts: int | Sequence[int], note: str = "",
) -> Table:  # fmt: skip
    """Returns a table of accuracies with their 95 % intervals and numbers of images, shaded by accuracy.

    Args:
        title: The text above it.
        corner: The header of the first column.
        rows: Names of the rows.
        columns: Names of the columns.
        shares: In [0, 1], None or NaN where there is none.
        counts: Number of images, or for each column its number.
        note: The text below it.

    >>> shaded("", "model", ["a"], ["fgsm", "pgd"], [[0.5, None]], 360).rows
    [['a', '50.0 (44.9 to 55.1), 180', '-']]
    """
    counts = [counts] * len(columns) if isinstance(counts, int) else counts
    cells = [[name, *map(format_count, row, counts)] for name, row in zip(rows, shares, strict=True)]
    return Table(title, [corner, *columns], cells, note=note, shares=shares)


def to_csv(table: Table) -> str:
    """Returns a table as CSV, with accuracy, ends of its interval, number of images and alarms in columns of their own.

    Args:
        table: The table.

    >>> print(to_csv(Table("", ["model", "clean"], [["a", "50.0 (44.9 to 55.1), 180"], ["b", "-"]])), end="")
    model,clean,clean: low,clean: high,clean: images
    a,50.0,44.9,55.1,180
    b,-,,,
    >>> print(to_csv(Table("", ["model"], [["⚠ a"], ["b"]])), end="")
    model,alarm fired
    a,yes
    b,no
    """
    pattern = re.compile(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)(?:, (\d+))?")
    columns: list[Sequence[str]] = []
    for name, cells in zip(table.header, zip(*table.rows, strict=True), strict=True):
        found = [pattern.fullmatch(cell) for cell in cells]
        if any(marked := [cell.startswith("⚠ ") for cell in cells]):
            columns.append([name, *(cell.removeprefix("⚠ ") for cell in cells)])
            columns.append(["alarm fired", *("yes" if fired else "no" for fired in marked)])
            continue
        if not any(found):
            columns.append([name, *cells])
            continue
        parts = [match.groups("") if match else (cell, "", "", "") for match, cell in zip(found, cells, strict=True)]
        columns += zip([name, *(f"{name}: {part}" for part in ("low", "high", "images"))], *parts, strict=True)
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(zip(*columns, strict=True))
    return written.getvalue()


def format_count(share: float | None, count: int) -> str:
    """Returns an accuracy in % with its 95 % interval and the number of images.

    Args:
        share: In [0, 1]; None or NaN where there is none.
        count: Number of all images; 0 where that is not known.

    >>> format_count(0.5, 360)
    '50.0 (44.9 to 55.1), 180'
    """
    text = statistics.format_accuracy(share, count)
    return text if share is None or text == "-" or not count else f"{text}, {round(share * count)}"


def format_shares(values: Sequence[float | None], count: int) -> str:
    """Returns shares in %: a single one with its interval, several as mean and standard deviation.

    Args:
        values: One for each seed; if one is missing, a dash is returned.
        count: Number of images.

    >>> format_shares([0.5], 100), format_shares([0.5, 0.6], 100), format_shares([None], 100)
    ('50.0 (40.4 to 59.6)', '55.0 ± 7.1', '-')
    """
    given = [value for value in values if value is not None]
    if len(given) < len(values) or not given:
        return "-"
    if len(given) == 1:
        return statistics.format_accuracy(given[0], count)
    return f"{100 * np.mean(given):.1f} ± {100 * np.std(given, ddof=1):.1f}"


def duration(seconds: float) -> str:
    """Returns a duration.

    >>> duration(42), duration(600), duration(36000)
    ('42 s', '10 min', '10.0 h')
    """
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with aligned columns.

    >>> print(markdown(["model", "clean"], [["a", "98.1"]]))
    | model | clean |
    |-------|------:|
    | a     |  98.1 |
    """
    header, *rows = [
        [" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in [header, *rows]
    ]  # Bars and line breaks would end the cell.
    widths = [max(len(line[index]) for line in [header, *rows]) for index in range(len(header))]

    def line(cells):
        first, *others = [cell.ljust(width) if not index else cell.rjust(width)
                          for index, (cell, width) in enumerate(zip(cells, widths, strict=True))]  # fmt: skip
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])

"""Shared parts of the page: tables, heat maps, figures, and a palette."""

import html
import math
from collections.abc import Sequence

from robust_gan.evaluation import statistics


class Palette:
    """Assigns each name a colour, the same in all figures.

    >>> palette = Palette()
    >>> palette["a"], palette["b"], palette["a"]
    (0, 1, 0)
    """

    def __init__(self) -> None:
        self._names: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        """Returns the index of a name's colour."""
        return self._names.setdefault(name, len(self._names))


def percent(share: float | None) -> str:
    """Returns a share in %, without the sign.

    >>> percent(0.5), percent(None)
    ('50.0', '-')
    """
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f}"


def duration(seconds: float) -> str:
    """Returns a duration.

    >>> duration(42), duration(600), duration(36000)
    ('42 s', '10 min', '10.0 h')
    """
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def figure(title: str, content: str, note: str = "") -> str:
    """Returns a figure with its title above and a note below."""
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{content}{below}</figure>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1) -> str:
    """Returns a table.

    Args:
        header: Of the columns.
        rows: Cells.
        text: How many of the first columns are words; the others are numbers.

    >>> table(["model", "clean"], [["<a>", "98.1"]]).count("&lt;a&gt;")
    1
    """

    def line(cells: Sequence[str], tag: str) -> str:
        inner = (
            f"<{tag}{'' if index < text else ' class=number'}>{html.escape(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        )
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    head = line(header, "th")
    return f'<div class="scroll"><table class="plain"><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    *,
    corner: str = "",
    framed: bool = False,
    errors: bool = False,
    counts: Sequence[int] = (),
) -> str:
    """Returns a heat map of shares, as a table.

    Args:
        rows: Their names.
        columns: Their names.
        shares: In [0, 1], None or NaN where there is none.
        corner: What rows and columns are.
        framed: Frame the cells whose row and column have one name.
        errors: Off the diagonal is another colour, and nothing is written where it is 0.
        counts: For each column of how many images its shares are: each cell then has its 95 % interval below.

    >>> heat(["a"], ["a"], [[0.5]], framed=True, counts=[360]).count("44.9 to 55.1")
    1
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = []
    for row, name in enumerate(rows):
        cells = []
        for column, other in enumerate(columns):
            share = shares[row][column]
            if share is None or math.isnan(share):
                cells.append("<td>-</td>")
                continue
            wrong = errors and row != column
            known = (("own", framed and name == other), ("wrong", wrong), ("high", share > 0.8))
            kinds = [kind for kind, there in known if there]
            kind = f' class="{" ".join(kinds)}"' if kinds else ""
            kind += f' title="of {counts[column]} images"' if counts else ""
            written = "" if wrong and share < 0.005 else f"{100 * share:.0f}" if errors else f"{100 * share:.1f}"
            if counts:
                low, high = statistics.interval_of(share, counts[column])
                written += f"<small>{100 * low:.1f} to {100 * high:.1f}</small>"
            cells.append(f'<td{kind} style="--v:{100 * share:.1f}%">{written}</td>')
        body.append(f"<tr><th>{html.escape(name)}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="heat"><thead><tr><th class="corner">{html.escape(corner)}</th>{head}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>"
    )

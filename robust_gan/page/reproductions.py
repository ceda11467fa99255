"""The part of the page on reproductions: what stands of every contestant, over all seeds."""

import statistics
from collections.abc import Sequence
from typing import Any

from robust_gan.page import parts, svg

WORST = "worst case"


def section(values: dict[str, Any]) -> str:
    """Returns the part on one reproduction.

    Args:
        values: What its `reproduction.json` holds.
    """
    kinds = {"clean": 0, "black box, worst case": 1, "white box, worst case": 2}
    marks, rows = [], []
    for name, found in values["contestants"].items():
        shares = (found["clean"], found["black_box"].get(WORST, []), found["white_box"].get(WORST, []))
        given = [[share for share in row if share is not None] for row in shares]
        marks.append((name, [(kind, index, row) for (kind, index), row in zip(kinds.items(), given, strict=True)]))
        seconds = statistics.mean(cost["seconds"] for cost in found["cost"])
        rows.append(
            [name, *map(_spread, given), parts.duration(seconds), str(found["cost"][0]["gradient_evaluations"])]
        )
    header = ["contestant", "clean", "black box", "white box", "time", "gradients per update"]
    picture = parts.figure("Every contestant, worst cases", svg.dots(marks) + svg.legend(list(kinds.items())))
    seeds = ", ".join(map(str, values["seeds"]))
    return (
        f"<p>{values['dataset']}, budget {values['budget']}, seeds {seeds}; attacks {values['attacks']}.</p>"
        f'<div class="figures">{picture}</div>{parts.table(header, rows)}'
    )


def _spread(shares: Sequence[float]) -> str:
    """Writes the mean, and the standard deviation where there are several.

    >>> _spread([0.5]), _spread([0.5, 0.6]), _spread([])
    ('50.0', '55.0 ± 7.1', '-')
    """
    if not shares:
        return "-"
    mean = parts.percent(statistics.mean(shares))
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.stdev(shares):.1f}"

"""The section on reproductions: the accuracies of every method, over all seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_gan.evaluation import statistics
from robust_gan.reporting.page import parts, svg

WORST = "worst case"


def section(values: dict[str, Any]) -> str:
    """Returns the section on one reproduction.

    Args:
        values: What its `reproduction.json` holds.
    """
    kinds = {"clean": 0, "black box, worst case": 1, "white box, worst case": 2}
    marks, rows = [], []
    for method, found in values["methods"].items():
        name = found.get("label", method)
        shares = (found["clean"], found["black_box"].get(WORST, []), found["white_box"].get(WORST, []))
        given = [[share for share in row if share is not None] for row in shares]
        marks.append((name, [(kind, index, row) for (kind, index), row in zip(kinds.items(), given, strict=True)]))
        seconds = float(np.mean([cost["seconds"] for cost in found["cost"]]))
        rows.append(
            [
                name,
                *(_spread(row, values["images"]) for row in given),
                parts.duration(seconds),
                str(found["cost"][0]["gradient_evaluations"]),
            ]
        )
    header = ["method", "clean", "black box", "white box", "time", "gradients per update"]
    picture = parts.figure(
        "Every method, worst cases", svg.dots(marks, values["images"]) + svg.legend(list(kinds.items()))
    )
    seeds = ", ".join(map(str, values["seeds"]))
    spread = "mean and standard deviation over the seeds" if len(values["seeds"]) > 1 else statistics.INTERVALS
    return (
        f"<p>{values['dataset']}, budget {values['budget']}, seeds {seeds}; attacks {values['attacks']}; "
        f"{values['images']} images; {spread}.</p>"
        f'<div class="figures">{picture}</div>{parts.table(header, rows)}'
    )


def _spread(shares: Sequence[float], count: int) -> str:
    """Returns one share with its interval, or the mean and the standard deviation of several.

    >>> _spread([0.5], 100), _spread([0.5, 0.6], 100), _spread([], 100)
    ('50.0 (40.4 to 59.6)', '55.0 ± 7.1', '-')
    """
    if len(shares) < 2:
        return statistics.format_accuracy(shares[0] if shares else None, count)
    return f"{parts.percent(float(np.mean(shares)))} ± {100 * np.std(shares, ddof=1):.1f}"

"""Charts as inline SVG, in the colours of the page's light or dark theme; whoever points at a mark reads its value."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from robust_gan.evaluation import statistics

COLOURS = 10
"""Of the theme, `--c0` to `--c9`; further series are dashed."""

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 42
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_MOST_MARKS = 40


class Series(NamedTuple):
    """A line.

    Attributes:
        name: Of what.
        colour: The index of it.
        xs: Where.
        ys: How much.
        low: Lower edge of a band around the line, where there is one.
        high: Upper edge.
    """

    name: str
    colour: int
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns round numbers from `low` to `high`, at most so many, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 1), ticks(0, 300)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 100.0, 200.0, 300.0])
    """
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(
    series: Sequence[Series], *, x: str, y: str, percent: bool = False, mark: tuple[float, str] | None = None
) -> str:
    """Draws lines over common axes.

    Args:
        series: The lines; values that are not finite are left out.
        x: What the horizontal axis is.
        y: What the vertical axis is.
        percent: The values are shares; the axis goes from 0 to 100 %.
        mark: A place on the horizontal axis and what is there.

    >>> drawn = lines([Series("a", 0, [0, 1], [0.5, 0.75])], x="step", y="accuracy", percent=True)
    >>> drawn.startswith("<svg"), "75.0 %" in drawn
    (True, True)
    """
    kept = [_finite(one) for one in series]
    xs = [value for one in kept for value in one.xs] or [0.0]
    ys = [value for one in kept for value in (*one.ys, *one.low, *one.high)] or [0.0]
    x_low, x_high = min(0.0, *xs) if len(xs) > 1 else 0.0, max(xs)
    y_low, y_high = (0.0, 1.0) if percent else _spread(ys)
    x_high = x_high if x_high > x_low else x_low + 1

    def across(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def down(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_frame(f"{y} against {x}")]
    for tick in ticks(y_low, y_high):
        parts.append(f'<path class="grid" d="M{_LEFT} {down(tick):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 8, down(tick) + 4, f"{100 * tick:.0f}" if percent else f"{tick:g}", "end"))
    for tick in ticks(x_low, x_high, 7):
        parts.append(f'<path class="tick" d="M{across(tick):.1f} {_HEIGHT - _BOTTOM}v4"/>')
        parts.append(_text(across(tick), _HEIGHT - _BOTTOM + 18, _number(tick), "middle"))
    parts.append(f'<path class="axis" d="M{_LEFT} {_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>')
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x, "middle", "title"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text class="title" text-anchor="middle" transform="translate(13 {middle:.0f}) rotate(-90)">'
                 f"{html.escape(y)}</text>")  # fmt: skip
    if mark is not None and x_low <= mark[0] <= x_high:
        parts.append(f'<path class="mark" d="M{across(mark[0]):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(_text(across(mark[0]) + 4, _TOP + 10, mark[1], "start"))
    for one in kept:
        points = [(across(a), down(b)) for a, b in zip(one.xs, one.ys, strict=True)]
        if not points:
            continue
        parts.append(f'<g class="series" {_style(one.colour)}>')
        if len(one.low):
            above = [(across(a), down(b)) for a, b in zip(one.xs, one.high, strict=True)]
            below = [(across(a), down(b)) for a, b in zip(one.xs, one.low, strict=True)]
            parts.append(f'<path class="band" d="M{_path([*above, *reversed(below)])}Z"/>')
        parts.append(f'<path class="line" d="M{_path(points)}"><title>{html.escape(one.name)}</title></path>')
        if len(points) <= _MOST_MARKS:
            for (left, top), a, b in zip(points, one.xs, one.ys, strict=True):
                value = f"{100 * b:.1f} %" if percent else f"{b:.4g}"
                title = html.escape(f"{one.name}: {value} at {a:g}")
                parts.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3"><title>{title}</title></circle>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def dots(rows: Sequence[tuple[str, Sequence[tuple[str, int, Sequence[float]]]]], count: int = 0) -> str:
    """Draws a row of marks for each model: its accuracies under this and that, from 0 to 100 %.

    Args:
        rows: For each model what, the index of its colour, and shares: their mean is the mark, and each a dot.
        count: Of how many images the shares are; a single share then has its 95 % interval as a line.

    >>> dots([("a", [("clean", 0, [0.5, 0.75])])]).count("<circle")
    3
    """
    left, step = 18 + 7.0 * max((len(name) for name, _ in rows), default=1), 30
    left = min(left, 250)
    height = step * len(rows) + 56
    parts = [_frame("accuracies", height)]
    bottom = height - 42

    def across(share: float) -> float:
        return left + share * (_WIDTH - left - _RIGHT - 6)

    for tick in ticks(0, 1):
        parts.append(f'<path class="grid" d="M{across(tick):.1f} 8V{bottom}"/>')
        parts.append(_text(across(tick), bottom + 18, f"{100 * tick:.0f}", "middle"))
    parts.append(_text((left + _WIDTH) / 2, height - 6, "accuracy in %", "middle", "title"))
    for index, (name, marks) in enumerate(rows):
        top = 8 + step * (index + 0.5)
        means = [sum(shares) / len(shares) for _, _, shares in marks if len(shares)]
        parts.append(_text(left - 10, top + 4, name, "end", "name"))
        if means:
            parts.append(f'<path class="span" d="M{across(min(means)):.1f} {top}H{across(max(means)):.1f}"/>')
        for what, colour, shares in marks:
            if not len(shares):
                continue
            mean = sum(shares) / len(shares)
            parts.append(f'<g {_style(colour)} class="dots">')
            if len(shares) > 1:
                parts += [f'<circle class="single" cx="{across(share):.1f}" cy="{top}" r="2.5"/>' for share in shares]
            value = f"{100 * mean:.1f}"
            if len(shares) == 1 and count:
                low, high = statistics.interval_of(mean, count)
                value = statistics.format_accuracy(mean, count)
                parts.append(f'<path class="error" d="M{across(low):.1f} {top}H{across(high):.1f}"/>')
            title = html.escape(f"{name}, {what}: {value} %")
            kind = 'class="ring" r="8"' if what.startswith("worst") else 'r="5"'  # It is one of the others as well.
            parts.append(f'<circle {kind} cx="{across(mean):.1f}" cy="{top}"><title>{title}</title></circle></g>')
    return "".join([*parts, "</svg>"])


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Names the colours.

    Args:
        names: Each with the index of its colour.

    >>> legend([("a", 0)]).count("<li>")
    1
    """
    keys = (
        f'<li><svg class="key" viewBox="0 0 22 8" aria-hidden="true"><g {_style(index)}>'
        f'<path class="line" d="M1 4H21"/><circle cx="11" cy="4" r="3"/></g></svg>{html.escape(name)}</li>'
        for name, index in names
    )
    return f'<ul class="legend">{"".join(keys)}</ul>'


def _frame(label: str, height: int = _HEIGHT) -> str:
    return f'<svg class="chart" role="img" aria-label="{html.escape(label)}" viewBox="0 0 {_WIDTH} {height}">'


def _style(index: int) -> str:
    dash = _DASHES[index // COLOURS % len(_DASHES)]
    return f'style="--c: var(--c{index % COLOURS})"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _number(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10000 and value % 100 == 0 else f"{value:g}"


def _spread(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    return (0.0 if 0 <= low < 0.5 * high else low - room), high + room


def _finite(one: Series) -> Series:
    kept = [index for index, pair in enumerate(zip(one.xs, one.ys, strict=True)) if all(map(math.isfinite, pair))]
    picked = ([float(row[index]) for index in kept] if len(row) else [] for row in (one.xs, one.ys, one.low, one.high))
    return Series(one.name, one.colour, *picked)

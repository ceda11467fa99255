"""Figures with matplotlib (extra `plot`): as PNG files, and as SVG in the colours of a page's light or dark theme."""

import contextlib
import importlib.util
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from robust_gan.errors import UserError, one_line
from robust_gan.evaluation import statistics
from robust_gan.reporting.noise_images import NoiseImages
from robust_gan.storage import workdir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0b65c2", "#c8384e", "#23863f", "#7d4cc9", "#c06a0b", "#12808f", "#a63a86", "#5d6672", "#6f7f14", "#8f5330")
"""For series; further ones are dashed."""
THEME = {"ink": "#1c2128", "soft": "#59636e", "rule": "#dfe3e8", "wrong": "#d2453f", "right": "#1a7f37"}
THEME |= {f"c{index}": colour for index, colour in enumerate(COLOURS)}
"""The colours of a figure by the names of their CSS variables, for a light page."""

_STYLE: Any = {
    "text.parse_math": False, "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "robust_gan",
    "image.composite_image": False, "text.color": THEME["ink"], "axes.labelcolor": THEME["soft"],
    "axes.edgecolor": THEME["soft"], "xtick.color": THEME["soft"], "ytick.color": THEME["soft"],
    "grid.color": THEME["rule"], "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osDv^P*X<>"
_MOST_MARKS = 40
_TIP = "tip: "


class Series(NamedTuple):
    """A line with an optional band.

    Attributes:
        name: Its name.
        colour: Index of its colour.
        xs: Positions.
        ys: Values.
        low: Lower edge of the band.
        high: Upper edge of the band.
    """

    name: str
    colour: int
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def can_plot() -> bool:
    """Returns whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_plot() -> None:
    """Checks that matplotlib is installed and works.

    Raises:
        UserError: It is not, or does not; the error names the extra.
    """
    if not can_plot():
        raise UserError("a picture needs matplotlib: pip install 'robust_gan[plot]', or leave --plots out")
    try:
        import matplotlib.figure  # noqa: F401
    except Exception as error:  # Its parts may not fit each other, and fail in any way.
        raise UserError(
            f"a picture needs matplotlib, which cannot be imported ({one_line(error)}): install it again, or leave "
            "--plots out"
        ) from error


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    """Applies the style; names are drawn literally, and missing glyphs give no warning."""
    check_plot()
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def save(figure: "Figure", path: epath.PathLike) -> None:
    """Writes a figure as a PNG file.

    Args:
        figure: Of a function of this module.
        path: The file.
    """
    drawn = io.BytesIO()
    with _styled():
        figure.savefig(drawn, dpi=150, format="png")
    workdir.write_bytes(epath.Path(path), drawn.getvalue())


def to_svg(figure: "Figure", label: str) -> str:
    """Returns a figure as an SVG element whose colours are the CSS variables of `THEME`.

    Args:
        figure: Of a function of this module.
        label: A description for screen readers, with no markup.

    >>> text = to_svg(lines([Series("<a>", 0, [0, 1], [0.5, 0.75])], x="step", y="accuracy", percent=True), "A line")
    >>> text.startswith('<svg class="chart"'), "var(--c0)" in text, "<title>&lt;a&gt;: 75.0 % at 1</title>" in text
    (True, True, True)
    """
    drawn = io.StringIO()
    with _styled():
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(f'<g id="{_TIP}([^"]*)">', r"<g><title>\1</title>", text)
    text = re.sub(r' id="[a-zA-Z]\w*_\d+"', "", text)  # They are no more than names, and every figure has the same.
    names = {colour: f"var(--{name})" for name, colour in THEME.items()}
    text = re.sub(r"(fill|stroke): (#\w{6})", lambda found: f"{found[1]}: {names.get(found[2], found[2])}", text)
    return text.replace("<svg", f'<svg class="chart" role="img" aria-label="{label}"', 1)


@_styled()
def lines(
    series: Sequence[Series], *, x: str, y: str, percent: bool = False, legend: bool = False,
    marks: Mapping[float, str] | None = None,
) -> "Figure":  # fmt: skip
    """Draws lines over common axes; values that are not finite are left out.

    Args:
        series: The lines.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        percent: The values are shares; the axis goes from 0 to 100 %.
        legend: Whether to draw a legend.
        marks: Positions on the horizontal axis with their labels, drawn as dotted lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axis = figure.subplots()
    _draw_lines(axis, series, percent)
    axis.set(xlabel=x, ylabel=y)
    for place, label in (marks or {}).items():
        axis.axvline(place, color=THEME["soft"], linestyle=":", linewidth=1)
        axis.annotate(label, (place, 1), xycoords=("data", "axes fraction"), textcoords="offset points", xytext=(3, -2),
                      fontsize=8, va="top", in_layout=False)  # fmt: skip
    if legend:
        axis.legend(fontsize=8)
    return figure


def _draw_lines(axis: "Axes", series: Sequence[Series], percent: bool) -> None:
    scale = 100 if percent else 1
    for one in series:
        style: dict[str, Any] = {"color": COLOURS[one.colour % len(COLOURS)]}
        ys = scale * np.asarray(one.ys, float)
        if len(one.low):
            low, high = (scale * np.asarray(row, float) for row in (one.low, one.high))
            axis.fill_between(one.xs, low, high, alpha=0.15, linewidth=0, gid="band", **style)
        dashes = _DASHES[one.colour // len(COLOURS) % len(_DASHES)]
        axis.plot(one.xs, ys, linestyle=dashes, label=one.name, gid=f"{_TIP}{one.name}", **style)
        for place, value in zip(one.xs, ys, strict=True) if len(ys) <= _MOST_MARKS else ():
            tip = f"{_TIP}{one.name}: {f'{value:.1f} %' if percent else f'{value:.4g}'} at {place:g}"
            axis.plot([place], [value], marker="o", markersize=4, gid=tip, **style)
    axis.grid(axis="y")
    if percent:
        axis.set_ylim(-2, 102)
    if series:
        axis.set_xlim(left=min(0.0, axis.get_xlim()[0]) if min(map(_least, series)) < 0 else 0.0)


def _least(one: Series) -> float:
    return min((place for place in one.xs if np.isfinite(place)), default=0.0)


@_styled()
def traces(found: Mapping[str, Any], colours: Mapping[str, int]) -> "Figure":
    """Draws loss, best loss (dotted) and the share of misclassified images by the steps of an attack.

    Args:
        found: Of `evaluation.traces.trace_steps`.
        colours: For each model the index of its colour.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    losses, shares = figure.subplots(1, 2)
    for name, rows in found["models"].items():
        steps = range(1, 1 + len(rows["loss"]))
        _draw_lines(losses, [Series(name, colours[name], steps, rows["loss"])], percent=False)
        best = np.asarray(rows["best_loss"], float)
        losses.plot(steps, best, linestyle=":", color=COLOURS[colours[name] % len(COLOURS)], label=f"{name}, best")
        _draw_lines(shares, [Series(name, colours[name], steps, rows["misclassified"])], percent=True)
    losses.set(xlabel=f"step of {found['attack']}", ylabel=f"loss, mean of {found['images']} images")
    shares.set(xlabel=f"step of {found['attack']}", ylabel="misclassified so far in %")
    for axes in (losses, shares):
        axes.xaxis.get_major_locator().set_params(integer=True)
    losses.legend(fontsize=8)
    return figure


def curve(
    robust_accuracy: Mapping[str, Sequence[float]], epsilons: Sequence[float], count: int, colours: Mapping[str, int]
) -> list[Series]:
    """Returns a line of robust accuracy against epsilon for each model, with the 95 % interval as its band.

    Args:
        robust_accuracy: For each model a share at each radius.
        epsilons: The radii.
        count: Number of images.
        colours: For each model the index of its colour.

    >>> curve({"a": [1.0, 0.5]}, [0, 0.1], 10, {"a": 3})[0].ys
    [1.0, 0.5]
    """
    return [
        Series(name, colours[name], epsilons, row, *zip(*(statistics.interval_of(share, count) for share in row),
                                                        strict=True))
        for name, row in robust_accuracy.items()
    ]  # fmt: skip


@_styled()
def accuracies(
    rows: Mapping[str, Mapping[str, Sequence[float | None]]], colours: Mapping[str, int], count: int = 0
) -> "Figure":
    """Draws, for each model or method, a row with a mark for each accuracy: the mean, and the single seeds.

    Args:
        rows: For each row the accuracies by name, as shares, one for each seed.
        colours: For each row the index of its colour; the shape of a mark stands for the name of the accuracy.
        count: Number of images; a single share then has its 95 % interval as a line. 0 for none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 0.32 * len(rows) + 1.3), layout="constrained")
    axis = figure.subplots()
    names = dict.fromkeys(name for row in rows.values() for name, shares in row.items() if _given(shares))
    markers = dict(zip(names, _MARKERS * len(names), strict=False))
    for height, (label, row) in enumerate(rows.items()):
        given = {name: shares for name in names if (shares := _given(row.get(name, ())))}
        means = {name: float(np.mean(shares)) for name, shares in given.items()}
        if means:
            ends = [100 * min(means.values()), 100 * max(means.values())]
            axis.plot(ends, [height] * 2, color=THEME["rule"], linewidth=3, zorder=1)
        colour = COLOURS[colours[label] % len(COLOURS)]
        for name, shares in given.items():
            value = statistics.format_accuracy(means[name], count if len(shares) == 1 else 0)
            if len(shares) > 1:
                axis.scatter(100 * np.asarray(shares), [height] * len(shares), s=8, color=colour, alpha=0.45)
            elif count:
                interval = 100 * np.asarray(statistics.interval_of(means[name], count))
                axis.plot(interval, [height] * 2, color=colour, alpha=0.5)
            axis.plot([100 * means[name]], [height], marker=markers[name], color=colour, markersize=6,
                      gid=f"{_TIP}{label}, {name}: {value} %", zorder=3)  # fmt: skip
    for name, marker in markers.items():
        axis.plot([], [], marker=marker, linestyle="none", color=THEME["soft"], label=name)
    axis.set_yticks(range(len(rows)), [textwrap.shorten(label, 40) for label in rows], color=THEME["ink"])
    axis.set(xlim=(-2, 102), ylim=(len(rows) - 0.4, -0.6), xlabel="accuracy in %")
    axis.grid(axis="x")
    figure.legend(loc="outside lower center", ncols=min(3, len(names)), fontsize=8)
    return figure


def _given(shares: Sequence[float | None]) -> list[float]:
    return [share for share in shares if share is not None]


@_styled()
def costs(rows: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> "Figure":
    """Draws robust accuracy on the validation split against the cost of training.

    Args:
        rows: For each method and seed the validations, with `seconds`, `gradient_evaluations` and
            `robust_accuracy`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {"seconds": "seconds of training", "gradient_evaluations": "gradients of the classifier, in minibatches"}
    for axis, (what, title) in zip(axes, titles.items(), strict=True):

        def means(seeds, name):
            return [float(np.mean([point[name] for point in points])) for points in zip(*seeds, strict=False)]

        series = [Series(method, index, means(seeds, what), means(seeds, "robust_accuracy"))
                  for index, (method, seeds) in enumerate(rows.items())]  # fmt: skip
        _draw_lines(axis, series, percent=True)
        axis.set_xlabel(title)
    axes[0].set_ylabel("robust accuracy in %, PGD, validation")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(6, len(rows)), fontsize=8)
    return figure


@_styled()
def transfer(targets: Sequence[str], sources: Sequence[str], shares: np.ndarray, attack: str) -> "Figure":
    """Draws robust accuracy by target and source of the attack; the diagonal, framed, is white-box.

    Args:
        targets: Names of the rows.
        sources: Names of the columns.
        shares: `[targets, sources]`, NaN where no such attack exists.
        attack: Its name.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(0.85 * len(sources) + 3.2, 0.5 * len(targets) + 2.2), layout="constrained")
    axis = figure.subplots()
    axis.imshow(100 * shares, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if np.isfinite(share):
            colour = "black" if share > 0.6 else "white"
            axis.text(column, row, f"{100 * share:.1f}", ha="center", va="center", color=colour)
        if targets[row] == sources[column]:
            place = (column - 0.48, row - 0.46)
            axis.add_patch(Rectangle(place, 0.96, 0.92, fill=False, edgecolor=THEME["wrong"], lw=2))
    axis.set_xticks(range(len(sources)), list(sources), rotation=30, ha="right")
    axis.set_yticks(range(len(targets)), list(targets))
    axis.set(xlabel=f"{attack} made on", ylabel="robust accuracy in % of")
    axis.spines[:].set_visible(False)
    return figure


def examples(
    images: np.ndarray, labels: Sequence[str], adversarial: Mapping[str, np.ndarray],
    predicted: Mapping[str, Sequence[str | None]],
) -> "Figure":  # fmt: skip
    """Draws clean images, and for each model the adversarial images with predictions and magnified perturbations.

    Args:
        images: `[N, H, W, C]` in [0, 1], one row each.
        labels: Names of the true classes, `[N]`.
        adversarial: For each model `[N, H, W, C]`.
        predicted: For each model the names of the predicted classes `[N]`, None where they are unknown.
    """
    largest = max((float(np.abs(made - images).max()) for made in adversarial.values()), default=0.0)
    gain = 1 / largest if largest else 1.0
    columns = [("clean", [(image, label, "ink") for image, label in zip(images, labels, strict=True)], False)]
    for name, made in adversarial.items():
        cells = []
        for image, label, guess in zip(made, labels, predicted[name], strict=True):
            caption = "" if guess is None else f"{guess} {'✓' if guess == label else '✗'}"
            cells.append((image, caption, "right" if guess == label else "wrong"))
        noise = [(gain * (one - image), "", "ink") for one, image in zip(made, images, strict=True)]
        columns += [(name, cells, False), (f"perturbation times {gain:.2g}", noise, True)]
    return _draw_grid(columns)


def noise(found: NoiseImages, steps: Sequence[int]) -> "Figure":
    """Draws the generator's noise on some images in the course of training.

    Args:
        found: The noise images of a run.
        steps: The steps to show.
    """
    columns = [("clean", [(image, "", "ink") for image in found.images], False)]
    columns += [(f"{step:,}", [(image, "", "ink") for image in found.noise[step]], True) for step in steps]
    return _draw_grid(columns)


@_styled()
def _draw_grid(columns: Sequence[tuple[str, Sequence[tuple[np.ndarray, str, str]], bool]]) -> "Figure":
    """Draws columns of images with a title, captions in a colour of the theme, and whether they are signed."""
    from matplotlib.figure import Figure

    captions = any(caption for _, cells, _ in columns for _, caption, _ in cells)
    step, count = 1.22 if captions else 0.98, len(columns[0][1])
    height = step * count + 0.7
    figure = Figure(figsize=(0.75 * len(columns), 0.75 * height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    for column, (title, cells, signed) in enumerate(columns):
        axis.text(column + 0.5, 0.6, textwrap.fill(title, 12), ha="center", va="bottom", fontsize=7)
        for row, (image, caption, colour) in enumerate(cells):
            left, top = column + 0.04, 0.7 + step * row
            if image.shape[-1] not in (1, 3):  # Neither grey nor RGB: the mean over the channels.
                image = image.mean(axis=-1, keepdims=True)
            if signed and image.shape[-1] == 3:  # About grey.
                image = (image + 1) / 2
            pixels = np.clip(image, -1 if signed and image.shape[-1] == 1 else 0, 1)
            wide, high = (0.92 * side / max(image.shape[:2]) for side in image.shape[1::-1])
            axis.imshow(pixels[..., 0] if image.shape[-1] == 1 else pixels, cmap="RdBu_r" if signed else "gray",
                        vmin=-1 if signed else 0, vmax=1, interpolation="none",
                        extent=(left, left + wide, top + high, top))  # fmt: skip
            axis.text(column + 0.5, top + 0.95, caption, ha="center", va="top", fontsize=6.5, color=THEME[colour])
    axis.set(xlim=(0, len(columns)), ylim=(height, 0), aspect="auto")
    return figure

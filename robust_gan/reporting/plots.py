"""Plots of examples, accuracies, curves and costs with matplotlib (extra `plot`)."""

import functools
import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import numpy as np
from etils import epath

from robust_gan.errors import UserError, one_line
from robust_gan.evaluation import Curve
from robust_gan.storage import workdir

_P = ParamSpec("_P")


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


def _draws(draw: Callable[_P, None]) -> Callable[_P, None]:
    """Draws names literally: `$` starts no formula, and missing glyphs give no warning."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> None:
        check_plot()
        import matplotlib

        with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            draw(*args, **kwargs)

    return drawn


@_draws
def draw_examples(
    path: epath.PathLike, images: np.ndarray, labels: Sequence[str], columns: Sequence[dict[str, Any]]
) -> None:
    """Draws clean images, and for each model the adversarial images with predictions and magnified perturbations.

    Args:
        path: A PNG file.
        images: `[N, H, W, C]` in [0, 1], one row each.
        labels: Names of the true classes, `[N]`.
        columns: For each model `name`, `adversarial` `[N, H, W, C]`, `predicted` names `[N]` and `right` bool `[N]`.
    """
    from matplotlib.figure import Figure

    count, width = len(images), 1 + 2 * len(columns)
    figure = Figure(figsize=(1.25 * width, 1.35 * count + 0.75), layout="constrained")
    axes = figure.subplots(count, width, squeeze=False)
    largest = max(float(np.abs(column["adversarial"] - images).max()) for column in columns)
    gain = 0.5 / largest if largest else 1.0
    for row in range(count):
        _show(axes[row, 0], images[row], labels[row])
        for index, column in enumerate(columns):
            adversarial = column["adversarial"][row]
            right = column["right"][row]
            _show(
                axes[row, 1 + 2 * index], adversarial, f"{column['predicted'][row]} {'✓' if right else '✗'}",
                "#1a7f37" if right else "#cf222e",
            )  # fmt: skip
            _show(axes[row, 2 + 2 * index], 0.5 + gain * (adversarial - images[row]), "", cmap="RdBu_r")
    axes[0, 0].set_title("clean", fontsize=9)
    for index, column in enumerate(columns):
        axes[0, 1 + 2 * index].set_title(column["name"], fontsize=9)
        axes[0, 2 + 2 * index].set_title(f"perturbation\ntimes {gain:.2g}", fontsize=7)
    _save(figure, path)


@_draws
def draw_accuracies(path: epath.PathLike, rows: dict[str, dict[str, Sequence[float]]]) -> None:
    """Draws, for each method, a line with a mark for each accuracy: the mean, and the single seeds.

    Args:
        path: A PNG file.
        rows: For each method the accuracies by name, as shares, one for each seed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.4), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    styles = dict(zip(names, zip(("#57606a", "#0969da", "#cf222e", "#8250df"), "osDv", strict=True), strict=False))
    for height, (method, row) in enumerate(rows.items()):
        means = {name: 100 * float(np.mean(values)) for name, values in row.items()}
        axis.plot([min(means.values()), max(means.values())], [height] * 2, color="#d0d7de", zorder=1)
        for name, values in row.items():
            colour, marker = styles[name]
            axis.scatter(100 * np.asarray(values), [height] * len(values), s=9, color=colour, alpha=0.4, zorder=2)
            label = name if method == next(iter(rows)) else None
            axis.scatter(means[name], height, s=46, color=colour, marker=marker, label=label, zorder=3)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set_xlim(-2, 102)
    axis.set_xlabel("accuracy in %")
    axis.grid(axis="x", color="#eaeef2")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False)
    _save(figure, path)


@_draws
def draw_costs(path: epath.PathLike, rows: dict[str, list[list[dict[str, float]]]]) -> None:
    """Draws robust accuracy on the validation split against the cost of training.

    Args:
        path: A PNG file.
        rows: For each method and seed the validations, with `seconds`, `gradient_evaluations` and
            `robust_accuracy`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    titles = {"seconds": "seconds of training", "gradient_evaluations": "gradients of the classifier, in minibatches"}
    for index, (method, seeds) in enumerate(rows.items()):
        robust = [100 * np.mean([point["robust_accuracy"] for point in points]) for points in zip(*seeds, strict=False)]
        for axis, (what, title) in zip((left, right), titles.items(), strict=True):
            paid = [np.mean([point[what] for point in points]) for points in zip(*seeds, strict=False)]
            style = {"color": f"C{index % 10}", "marker": "osDv^"[index // 10 % 5], "markersize": 4}
            axis.plot(paid, robust, label=method if axis is left else None, **style)
            axis.set_xlabel(title)
            axis.grid(color="#eaeef2")
            axis.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("robust accuracy in %, PGD, validation")
    figure.legend(loc="outside upper center", ncols=min(6, len(rows)), frameon=False, fontsize=8)
    _save(figure, path)


@_draws
def draw_curve(path: epath.PathLike, curve: Curve, epsilon: float, norm: str) -> None:
    """Draws robust accuracy against epsilon, a line for each model.

    Args:
        path: A PNG file.
        curve: Of `evaluation.trace_curve`.
        epsilon: The radius of the evaluation, drawn as a line.
        norm: Of the threat model.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for index, (name, row) in enumerate(curve.robust_accuracy.items()):
        marker = "osDv^"[index // 10 % 5]
        axis.plot(
            curve.epsilons, 100 * np.asarray(row), marker=marker, markersize=4, color=f"C{index % 10}", label=name
        )
    axis.axvline(epsilon, color="#57606a", linestyle=":", linewidth=1)
    axis.annotate(f"{epsilon:.3g}", (epsilon, 100), textcoords="offset points", xytext=(3, -2), fontsize=8, va="top")
    axis.set_xlabel(f"epsilon ({norm}, pixels in [0, 1])")
    axis.set_ylabel(f"robust accuracy in %, {curve.attack}")
    axis.set_ylim(-2, 102)
    axis.set_xlim(left=0)
    axis.grid(color="#eaeef2")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    _save(figure, path)


@_draws
def draw_transfer(
    path: epath.PathLike, targets: Sequence[str], sources: Sequence[str], shares: np.ndarray, attack: str
) -> None:
    """Draws robust accuracy by target and source of the attack; the diagonal, framed, is white-box.

    Args:
        path: A PNG file.
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
    for row, target in enumerate(targets):
        for column, maker in enumerate(sources):
            if np.isfinite(shares[row, column]):
                colour = "black" if shares[row, column] > 0.6 else "white"
                axis.text(column, row, f"{100 * shares[row, column]:.1f}", ha="center", va="center", color=colour)
            if target == maker:
                axis.add_patch(
                    Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor="#cf222e", lw=2)
                )
    axis.set_xticks(range(len(sources)), list(sources), rotation=30, ha="right")
    axis.set_yticks(range(len(targets)), list(targets))
    axis.set_xlabel(f"{attack} made on")
    axis.set_ylabel("robust accuracy in % of")
    axis.spines[:].set_visible(False)
    _save(figure, path)


def _save(figure: Any, path: epath.PathLike) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format="png")
    workdir.write_bytes(epath.Path(path), drawn.getvalue())


def _show(axis, image, caption, colour="#000000", cmap="gray"):
    if image.shape[-1] not in (1, 3):  # Neither grey nor RGB: the mean over the channels.
        image = image.mean(axis=-1, keepdims=True)
    image = np.clip(image, 0, 1)
    axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
    axis.set_xlabel(caption, fontsize=8, color=colour)
    axis.set_xticks([])
    axis.set_yticks([])

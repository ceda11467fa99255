"""The section on training runs: a table, losses and accuracies over time, and the generator's noise."""

import html
from collections.abc import Callable, Sequence

import numpy as np

from robust_gan.evaluation import statistics
from robust_gan.reporting.page import parts, pixels, svg
from robust_gan.reporting.page.finding import Run
from robust_gan.reporting.page.parts import Palette

_MOST_POINTS = 240
_MOST_FRAMES = 10
_MOST_FILMS = 8


def section(runs: Sequence[Run], palette: Palette) -> str:
    """Returns the section on runs.

    Args:
        runs: At least one.
        palette: Of the page.
    """
    groups = list(dict.fromkeys(run.group for run in runs))
    robust = _robust_name(runs)
    charts = [
        ("Loss of the classifier on clean images", "train/clean_loss", "cross-entropy", False),
        ("Loss of the classifier on adversarial images", "train/adversarial_loss", "cross-entropy", False),
        ("Loss of the generator", "train/generator_loss", "generator's loss", False),
        ("Clean accuracy, validation", "validation/clean_accuracy", "accuracy in %", True),
        (f"Robust accuracy, {robust.rpartition('/')[2]}, validation", robust, "accuracy in %", True),
    ]
    figures = []
    for title, name, unit, percent in charts:
        series = _series(runs, groups, palette, name, lambda run, step: float(step))
        if series:
            figures.append(parts.figure(title, svg.lines(series, x="step", y=unit, percent=percent)))
    paid = _series(runs, groups, palette, robust, _seconds)
    if paid:
        figures.append(
            parts.figure(
                "Robust accuracy against training time",
                svg.lines(paid, x="seconds of training", y="accuracy in %", percent=True),
            )
        )
    several = len(runs) > len(groups)
    note = "<p>Lines are means over seeds, bands reach from the least to the greatest.</p>" if several else ""
    films = [run for run in runs if run.film is not None]
    drawn = "".join(_film(run) for run in films[:_MOST_FILMS])
    if drawn:
        left_out = (
            f" Of {len(films)} runs with a generator the first {_MOST_FILMS}." if len(films) > _MOST_FILMS else ""
        )
        drawn = (
            "<h3>The generator's noise</h3><p>The perturbation of the same validation images as training goes on, in "
            f"units of epsilon: blue is darker, red is brighter.{left_out}</p>{drawn}"
        )
    return (
        f"{_table(runs, robust)}{note}{svg.legend([(group, palette[group]) for group in groups])}"
        f'<div class="figures">{"".join(figures)}</div>{drawn}'
    )


def _table(runs: Sequence[Run], robust: str) -> str:
    rows = []
    for run in runs:
        steps = run.metrics[-1]["step"] if run.metrics else 0
        threat = run.config.get("threat", {})
        count = run.config.get("validation", {}).get("size") or run.config.get("data", {}).get("validation_size", 0)
        rows.append(
            [
                run.name,
                str(run.config.get("data", {}).get("name", "")),
                str(run.config.get("classifier", {}).get("network", "")),
                str(run.config.get("adversary", {}).get("name", "")),
                f"{threat.get('norm', '')} {threat.get('epsilon', 0):.3g}",
                f"{steps:,} of {run.config.get('num_steps', 0):,}",
                f"{count:,}",
                statistics.format_accuracy(_last(run, "validation/clean_accuracy"), count),
                statistics.format_accuracy(_last(run, robust), count),
                parts.duration(sum(line.get("seconds", 0) for line in run.timing)),
            ]
        )
    header = ["run", "data", "classifier", "adversary", "threat", "steps", "images", "clean"]
    note = f'<p class="note">Accuracy in % of the validation images; {statistics.INTERVALS}.</p>'
    return parts.table([*header, robust.rpartition("/")[2], "time"], rows, text=5) + note


def _robust_name(runs: Sequence[Run]) -> str:
    """Returns the PGD metric of the validation that most runs have."""
    names = [name for run in runs for name in {key for line in run.metrics for key in line} if "validation/pgd" in name]
    return max(sorted(set(names)), key=names.count) if names else "validation/pgd"


def _last(run: Run, name: str) -> float | None:
    return next((line[name] for line in reversed(run.metrics) if name in line), None)


def _seconds(run: Run, step: int) -> float:
    return sum(line.get("seconds", 0) for line in run.timing if line["step"] <= step)


def _series(
    runs: Sequence[Run], groups: Sequence[str], palette: Palette, name: str, where: Callable[[Run, int], float]
) -> list[svg.Series]:
    """Returns a line for each group with a metric: the mean of its runs at their common steps, and a band."""
    series = []
    for group in groups:
        members = [run for run in runs if run.group == group]
        found = [{line["step"]: float(line[name]) for line in run.metrics if name in line} for run in members]
        steps = sorted(set.intersection(*(set(values) for values in found)))
        if not steps:
            continue
        values = np.array([[one[step] for step in steps] for one in found])
        xs = np.array([np.mean([where(run, step) for run in members]) for step in steps])
        rows = [xs, values.mean(axis=0), values.min(axis=0), values.max(axis=0)]
        if len(steps) > _MOST_POINTS:
            rows = [np.array([part.mean() for part in np.array_split(row, _MOST_POINTS)]) for row in rows]
        xs, ys, low, high = (row.tolist() for row in rows)
        several = len(members) > 1
        series.append(svg.Series(group, palette[group], xs, ys, low if several else (), high if several else ()))
    return series


def _film(run: Run) -> str:
    assert run.film is not None
    steps = list(run.film.noise)
    if len(steps) > _MOST_FRAMES:
        steps = [steps[index] for index in np.unique(np.linspace(0, len(steps) - 1, _MOST_FRAMES).round().astype(int))]
    head = "".join(f"<th>{step:,}</th>" for step in steps)
    body = "".join(
        f"<tr><td>{pixels.picture(image, f'image {index}')}</td>"
        + "".join(
            f"<td>{pixels.noise(run.film.noise[step][index], f'its noise at step {step}')}</td>" for step in steps
        )
        + "</tr>"
        for index, image in enumerate(run.film.images)
    )
    return (
        f'<figure class="wide"><figcaption>{html.escape(run.name)}</figcaption><div class="scroll"><table class="film">'
        f"<thead><tr><th>clean</th>{head}</tr></thead><tbody>{body}</tbody></table></div></figure>"
    )

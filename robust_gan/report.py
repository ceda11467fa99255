"""What an evaluation says: the paper's table, a JSON record, and a picture (matplotlib is the extra `plot`)."""

import datetime
import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from robust_gan.errors import UserError
from robust_gan.evaluation import Scores
from robust_gan.types import ThreatModel
from robust_gan.version import __version__

SCHEMA = "robust_gan.evaluation/1"
RECORD, TABLES, EXAMPLES = "report.json", "report.md", "examples.png"


def white_and_black_box(scores: Scores) -> str:
    """Returns the table of the paper as Markdown: each model clean, attacked in the open, and by transfer.

    Black box is the worst case, image by image, over everyone else on whom the attack was made.

    Args:
        scores: Of an evaluation.
    """
    others = {target: [maker for maker in scores.makers if maker != target] for target in scores.targets}
    header = ["model", "clean", *(f"{attack}, white box" for attack in scores.attacks)]
    has_black_box = any(scores.robust_accuracy(target, others[target]) is not None for target in scores.targets)
    if has_black_box:
        header += [f"{attack}, black box" for attack in scores.attacks]
    rows = []
    for target in scores.targets:
        row = [target, _percent(scores.clean_accuracy(target))]
        row += [_percent(scores.robust_accuracy(target, [target], [attack])) for attack in scores.attacks]
        if has_black_box:
            row += [_percent(scores.robust_accuracy(target, others[target], [attack])) for attack in scores.attacks]
        rows.append(row)
    return markdown(header, rows)


def by_source(scores: Scores) -> str:
    """Returns robust accuracy by target and source as Markdown, a row per (target, attack); the diagonal is white box.

    Args:
        scores: Of an evaluation.
    """
    header = ["model", "attack", *(f"made on {maker}" for maker in scores.makers)]
    rows = []
    for target in scores.targets:
        for attack in scores.attacks:
            row = []
            for maker in scores.makers:
                cell = _percent(scores.robust_accuracy(target, [maker], [attack]))
                row.append(f"*{cell}*" if maker == target and cell != "-" else cell)
            rows.append([target, attack, *row])
    return markdown(header, rows)


def record(
    scores: Scores, threat: ThreatModel, *, data: dict[str, Any], models: dict[str, Any], settings: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Returns everything a figure depends on, as a JSON-able dictionary.

    Args:
        scores: Of the evaluation.
        threat: The threat model.
        data: Data set, split and count.
        models: For each name where it comes from: checkpoint, step, configuration.
        settings: Seed, batch size and whatever else was chosen.
        seconds: Wall time.

    Returns:
        The record; accuracies are shares of all images.
    """
    targets = {}
    for target in scores.targets:
        by_attack: dict[str, dict[str, float]] = {}
        for _, maker, attack in (key for key in scores.robust if key[0] == target):
            by_attack.setdefault(attack, {})[maker] = scores.robust_accuracy(target, [maker], [attack])
        others = [maker for maker in scores.makers if maker != target]
        targets[target] = {
            "clean_accuracy": scores.clean_accuracy(target),
            "robust_accuracy": by_attack,
            "worst_case": {
                "white_box": scores.robust_accuracy(target, [target]),
                "black_box": scores.robust_accuracy(target, others),
                "all": scores.robust_accuracy(target, scores.makers),
            },
        }
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": data,
        "threat": {"norm": threat.norm, "epsilon": float(threat.epsilon), "bounds": list(threat.bounds)},
        "attacks": list(scores.attacks),
        "models": models,
        "targets": targets,
        "settings": settings,
        "seconds": round(seconds, 2),
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
        "versions": {"robust_gan": __version__}
        | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }


def write(directory: epath.PathLike, scores: Scores, values: dict[str, Any]) -> None:
    """Writes `report.json` and `report.md`.

    Args:
        directory: Made where there is none.
        scores: Of the evaluation.
        values: What `record` returned.
    """
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    data, threat = values["data"], values["threat"]
    conditions = (
        f"{data['name']}, {data['split']} split, {data['count']} images; "
        f"{threat['norm']} epsilon {threat['epsilon']:g} for pixels in [0, 1]; "
        f"seed {values['settings']['seed']}; {values['created']}; {values['device']}."
    )
    text = [
        "# Evaluation", conditions, "Robust accuracy in % of all images; robust is right clean and under attack.",
        "## White box and black box", white_and_black_box(scores),
        "Black box: the worst case, image by image, over attacks made on all the other models.",
        "## By source", by_source(scores), "Italics: white box.",
    ]  # fmt: skip
    (folder / TABLES).write_text("\n\n".join(text) + "\n")
    (folder / RECORD).write_text(json.dumps(values, indent=2) + "\n")


def can_plot() -> bool:
    """Tells whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def check_plot() -> None:
    """Refuses to go on where a picture is asked for and matplotlib is absent.

    Raises:
        UserError: Says which extra to install.
    """
    if not can_plot():
        raise UserError("a picture needs matplotlib: pip install 'robust_gan[plot]', or leave --examples out")


def draw_examples(
    path: epath.PathLike, images: np.ndarray, labels: Sequence[str], columns: Sequence[dict[str, Any]]
) -> None:
    """Draws clean images, and for each model the adversarial image with its prediction and the magnified perturbation.

    Args:
        path: A PNG file.
        images: `[N, H, W, C]` in [0, 1], one row each.
        labels: Names of the true classes, `[N]`.
        columns: For each model `name`, `adversarial` `[N, H, W, C]`, `predicted` names `[N]` and `right` bool `[N]`.
    """
    check_plot()
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
    figure.savefig(path, dpi=150)


def draw_accuracies(path: epath.PathLike, rows: dict[str, dict[str, Sequence[float]]]) -> None:
    """Draws, for each contestant, a line with a mark for each accuracy: the mean, and the single seeds behind it.

    Args:
        path: A PNG file.
        rows: For each contestant the accuracies by name, as shares, one for each seed.
    """
    check_plot()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.4), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    styles = dict(zip(names, zip(("#57606a", "#0969da", "#cf222e", "#8250df"), "osDv", strict=True), strict=False))
    for height, (contestant, row) in enumerate(rows.items()):
        means = {name: 100 * float(np.mean(values)) for name, values in row.items()}
        axis.plot([min(means.values()), max(means.values())], [height] * 2, color="#d0d7de", zorder=1)
        for name, values in row.items():
            colour, marker = styles[name]
            axis.scatter(100 * np.asarray(values), [height] * len(values), s=9, color=colour, alpha=0.4, zorder=2)
            label = name if contestant == next(iter(rows)) else None
            axis.scatter(means[name], height, s=46, color=colour, marker=marker, label=label, zorder=3)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set_xlim(-2, 102)
    axis.set_xlabel("accuracy in %")
    axis.grid(axis="x", color="#eaeef2")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=150)


def _show(axis, image, caption, colour="#000000", cmap="gray"):
    image = np.clip(image, 0, 1)
    axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
    axis.set_xlabel(caption, fontsize=8, color=colour)
    axis.set_xticks([])
    axis.set_yticks([])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as Markdown, aligned to be read as it is.

    >>> print(markdown(["model", "clean"], [["a", "98.1"]]))
    | model | clean |
    |-------|------:|
    | a     |  98.1 |
    """
    widths = [max(len(line[index]) for line in [header, *rows]) for index in range(len(header))]

    def line(cells):
        first, *others = [cell.ljust(width) if not index else cell.rjust(width)
                          for index, (cell, width) in enumerate(zip(cells, widths, strict=True))]  # fmt: skip
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])

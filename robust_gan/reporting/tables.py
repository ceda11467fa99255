"""What an evaluation found: tables with an interval for each accuracy, paired comparisons, and a JSON record."""

import collections
import datetime
import hashlib
import importlib.metadata
import importlib.resources
import itertools
import json
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from robust_gan.attacks.autoattack import VERSIONS
from robust_gan.evaluation import AttackResult, Curve, Scores, statistics
from robust_gan.evaluation.alarms import Alarm
from robust_gan.storage import workdir
from robust_gan.types import ThreatModel
from robust_gan.version import __version__

SCHEMA = "robust_gan.evaluation/4"
"""Of `report.json`: described by `schemas/evaluation.json`, see `schema`."""

USE_BATCH_STATS = (
    "**BatchNorm by the statistics of each batch**, as the released code evaluates: an image's prediction depends on "
    "which others share its batch, and the figures do not compare with any other."
)
RECORD, TABLES, EXAMPLES = "report.json", "report.md", "examples.png"
CURVE, TRANSFER, ADVERSARIAL, CARDS = "curve.png", "transfer.png", "adversarial.npz", "cards"

_MOST_PAIRED = 16
"""Models that are compared pair by pair: 120 pairs."""


def white_and_black_box(scores: Scores) -> str:
    """Returns a table as Markdown: the accuracy of each model clean, under white-box attacks, and under transfer.

    Black box is the worst case, image by image, over everyone else on whom the attack was made. Each accuracy is
    followed by its interval.

    Args:
        scores: Of an evaluation.

    >>> held = {("a", "a", "fgsm"): np.array([True, False]), ("a", "b", "fgsm"): np.array([True, True])}
    >>> print(white_and_black_box(Scores(("a",), ("a", "b"), ("fgsm",), np.array([[True, True]]), held)))
    | model |                 clean |    fgsm, white box |       fgsm, black box |
    |-------|----------------------:|-------------------:|----------------------:|
    | a     | 100.0 (34.2 to 100.0) | 50.0 (9.5 to 90.5) | 100.0 (34.2 to 100.0) |
    """
    count = scores.clean.shape[1]
    others = {target: [maker for maker in scores.makers if maker != target] for target in scores.targets}
    header = ["model", "clean", *(f"{attack}, white box" for attack in scores.attacks)]
    has_black_box = any(scores.robust_accuracy(target, others[target]) is not None for target in scores.targets)
    if has_black_box:
        header += [f"{attack}, black box" for attack in scores.attacks]
    rows = []
    for target in scores.targets:
        shares: list[float | None] = [scores.clean_accuracy(target)]
        shares += [scores.robust_accuracy(target, [target], [attack]) for attack in scores.attacks]
        if has_black_box:
            shares += [scores.robust_accuracy(target, others[target], [attack]) for attack in scores.attacks]
        rows.append([target, *(statistics.format_accuracy(share, count) for share in shares)])
    return markdown(header, rows)


def by_source(scores: Scores) -> str:
    """Returns robust accuracy by target and source as Markdown, a row per (target, attack); the diagonal is white box.

    Args:
        scores: Of an evaluation.

    >>> held = {("a", "a", "fgsm"): np.array([True, False]), ("a", "b", "fgsm"): np.array([True, True])}
    >>> print(by_source(Scores(("a",), ("a", "b"), ("fgsm",), np.array([[True, True]]), held)))
    | model | attack |            made on a |             made on b |
    |-------|-------:|---------------------:|----------------------:|
    | a     |   fgsm | *50.0 (9.5 to 90.5)* | 100.0 (34.2 to 100.0) |
    """
    header = ["model", "attack", *(f"made on {maker}" for maker in scores.makers)]
    rows = []
    for target in scores.targets:
        for attack in scores.attacks:
            row = []
            for maker in scores.makers:
                share = scores.robust_accuracy(target, [maker], [attack])
                cell = statistics.format_accuracy(share, scores.clean.shape[1])
                row.append(f"*{cell}*" if maker == target and cell != "-" else cell)
            rows.append([target, attack, *row])
    return markdown(header, rows)


def sequential(values: dict[str, Any]) -> str:
    """Returns what stood after each of the attacks in turn as Markdown; empty where there were none.

    Args:
        values: What `record` returned.

    >>> sequential({"targets": {"a": {"sequential": []}}})
    ''
    """
    rows = [
        [name, *(statistics.format_accuracy(result["robust_accuracy"], values["data"]["count"])
                 for result in target["sequential"]),
         f"{sum(result['seconds'] for result in target['sequential']):.0f}"]
        for name, target in values["targets"].items() if target["sequential"]
    ]  # fmt: skip
    if not rows:
        return ""
    first = next(target["sequential"] for target in values["targets"].values() if target["sequential"])
    return markdown(["model", *(result["attack"] for result in first), "seconds"], rows)


def paired_comparisons(values: dict[str, Any]) -> str:
    """Returns the comparisons of two models on the same images as Markdown; empty where there is one model.

    Args:
        values: What `record` returned.

    >>> row = {"first": "a", "second": "b", "under": "fgsm", "difference": 0.25, "interval": [-0.25, 0.5],
    ...        "first_only": 1, "second_only": 0, "p_value": 1.0}
    >>> print(paired_comparisons({"paired": [row]}))
    | models    | under | difference |  95 % interval | first alone | second alone | McNemar p |
    |-----------|------:|-----------:|---------------:|------------:|-------------:|----------:|
    | a minus b |  fgsm |      +25.0 | -25.0 to +50.0 |           1 |            0 |     1.000 |
    """
    rows = statistics.paired_cells(values["paired"])
    return markdown(statistics.PAIRED_HEADER, rows) if rows else ""


def format_alarms(values: dict[str, Any]) -> str:
    """Returns the alarms that fired, a line each, or that none did; and those that could not be asked, by the reason.

    Args:
        values: What `record` returned.

    >>> alarms = [{"name": "probabilities", "fired": True, "finding": "outputs lie in [0, 1] and sum to 1"}]
    >>> format_alarms({"targets": {"a": {"alarms": alarms}}})
    '- a: **probabilities**: outputs lie in [0, 1] and sum to 1'
    """
    lines, silent, asked = [], [], 0
    for name, target in values["targets"].items():
        asked += sum(alarm.get("asked", True) for alarm in target["alarms"])
        lines += [f"- {name}: **{alarm['name']}**: {alarm['finding']}" for alarm in target["alarms"] if alarm["fired"]]
        reasons: dict[str, list[str]] = {}
        for alarm in target["alarms"]:
            if not alarm.get("asked", True):
                reasons.setdefault(alarm["finding"], []).append(alarm["name"])
        silent += [f"- {name}: {', '.join(alarms)}: {reason}" for reason, alarms in reasons.items()]
    found = "\n".join(lines) or (f"None of {asked} fired." if asked else "No alarm was asked.")
    return found if not silent else "\n".join([*([found] if lines else [found, ""]), *silent])


def notes_told(values: dict[str, Any]) -> str:
    """Returns what could not be asked or written, a line each; empty where there is nothing of the kind.

    Args:
        values: What `record` returned.

    >>> notes_told({"notes": ["curve.png: not made: the disk is full."]})
    '- curve.png: not made: the disk is full.'
    """
    return "\n".join(f"- {note}" for note in values.get("notes", []))


def record(
    scores: Scores, threat: ThreatModel, *, data: dict[str, Any], models: dict[str, Any], settings: dict[str, Any],
    runs: Sequence[dict[str, Any]], sequential: dict[str, list[AttackResult]] | None = None,
    standing: dict[str, np.ndarray] | None = None, alarms: dict[str, list[Alarm]] | None = None,
    curve: Curve | None = None, notes: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Returns everything a figure depends on, as a JSON-able dictionary.

    Args:
        scores: Of the evaluation.
        threat: The threat model.
        data: Data set, split and count.
        models: For each name where it comes from: checkpoint, step, configuration.
        settings: Seed and whatever else was chosen; the batch size and the devices are those of the last run.
        runs: What `EvaluationState.runs` returns: those that made attacks, each with what `made_with` says and its
            wall time.
        sequential: For each target what attacks in turn did, see `evaluation.evaluate_sequential`.
        standing: For each target which images stood at their end.
        alarms: For each target what its alarms say.
        curve: Robust accuracy against epsilon, where it was traced.
        notes: Sentences on what could not be asked or written.

    Returns:
        The record; accuracies are shares of all images, each with its 95 % interval. The worst cases in the open count
        attacks in turn too.
    """
    targets: dict[str, Any] = {}
    standing, sequential, alarms = standing or {}, sequential or {}, alarms or {}
    count, seconds = scores.clean.shape[1], sum(run["seconds"] for run in runs)
    for target in scores.targets:
        by_attack: dict[str, dict[str, float | None]] = {}
        for _, maker, attack in (key for key in scores.robust if key[0] == target):
            by_attack.setdefault(attack, {})[maker] = scores.robust_accuracy(target, [maker], [attack])
        others = [maker for maker in scores.makers if maker != target]
        targets[target] = {
            "clean_accuracy": scores.clean_accuracy(target),
            "robust_accuracy": by_attack,
            "worst_case": {
                "white_box": scores.robust_accuracy(target, [target], also=standing.get(target)),
                "black_box": scores.robust_accuracy(target, others),
                "all": scores.robust_accuracy(target, scores.makers, also=standing.get(target)),
            },
            "sequential": [
                result._asdict() | {"interval": statistics.interval_of(result.robust_accuracy, count)}
                for result in sequential.get(target, [])
            ],
            "alarms": [alarm._asdict() for alarm in alarms.get(target, [])],
        }
        accuracies = ("clean_accuracy", "robust_accuracy", "worst_case")
        targets[target]["intervals"] = _intervals({name: targets[target][name] for name in accuracies}, count)
    return {
        "schema": SCHEMA,
        "created": runs[-1]["created"],
        "data": data,
        "threat": {"norm": threat.norm, "epsilon": float(threat.epsilon), "bounds": list(threat.bounds)},
        "attacks": list(scores.attacks),
        "models": models,
        "targets": targets,
        "paired": _paired(scores, standing),
        "curve": None if curve is None else curve._asdict() | {"intervals": _intervals(curve.robust_accuracy, count)},
        "notes": list(notes),
        "settings": settings | runs[-1]["settings"],
        "seconds": round(seconds, 2),
        "images_per_second": round(_attacked(scores, sequential) / max(seconds, 1e-9), 1),
        "device": "; ".join(dict.fromkeys(run["device"] for run in runs)),
        "versions": runs[-1]["versions"],
    }


def made_with(batch_size: int, num_devices: int) -> dict[str, Any]:
    """Returns what attacks are made with now, as a JSON-able dictionary.

    Args:
        batch_size: Images at once.
        num_devices: That share them.

    >>> sorted(made_with(500, 1))
    ['created', 'device', 'seconds', 'settings', 'versions']
    """
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "settings": {"batch_size": batch_size, "num_devices": num_devices},
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
        "versions": {"robust_gan": __version__}
        | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }


def write(directory: epath.PathLike, scores: Scores, values: dict[str, Any]) -> None:
    """Writes `report.json`, `report.md` and a model card for each target, each whole or not at all.

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
    if values["settings"].get("batch_norm") == "batch":
        conditions += " " + USE_BATCH_STATS
    text = [
        "# Evaluation", conditions,
        f"Robust accuracy in % of all {data['count']} images; robust is right clean and under attack; "
        f"{statistics.INTERVALS}.",
        "## White box and black box", white_and_black_box(scores),
        "Black box: the worst case, image by image, over attacks made on all the other models.",
        "## By source", by_source(scores), "Italics: white box.",
    ]  # fmt: skip
    if table := sequential(values):
        text += ["## Attacks in turn", "Each on the images that all before it left standing.", table]
    if table := paired_comparisons(values):
        text += ["## Paired comparisons", statistics.PAIRED, table]
    text += ["## Alarms", format_alarms(values)]
    if notes := notes_told(values):
        text += ["## Not made", notes]
    (folder / CARDS).mkdir(exist_ok=True)
    for name, file in card_names(list(values["targets"])).items():
        workdir.write_text(folder / CARDS / file, json.dumps(card(values, name), indent=2) + "\n")
    workdir.write_text(folder / TABLES, "\n\n".join(text) + "\n")
    workdir.write_text(folder / RECORD, json.dumps(values, indent=2) + "\n")


def card_names(names: Sequence[str]) -> dict[str, str]:
    """Returns for each model the name of the file of its card: one for each, whatever the models are called.

    Args:
        names: Of the models, no two alike.

    >>> card_names(["mine:m", "модель:первая", "a|b", "a/b"])["mine:m"]
    'mine_m.json'
    >>> len({file.casefold() for file in card_names(["A", "a", "?", "!", "x" * 300]).values()})
    5
    """
    plain = {name: re.sub(r"[^\w.-]+", "_", name).strip("._") for name in names}
    counts = collections.Counter(text.casefold() for text in plain.values())
    files = {}
    for name, text in plain.items():
        # No file system takes more than 255 bytes, and some take no difference of case.
        short = text.encode()[:180].decode(errors="ignore")
        if not text or short != text or counts[text.casefold()] > 1:
            short = f"{short or 'model'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        files[name] = f"{short}.json"
    return files


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of `report.json`.

    >>> schema()["properties"]["schema"]["const"] == SCHEMA
    True
    """
    return json.loads(importlib.resources.files("robust_gan").joinpath("schemas/evaluation.json").read_text())


def transfer_matrix(scores: Scores, attack: str) -> tuple[Sequence[str], Sequence[str], np.ndarray]:
    """Returns targets, makers, and the robust accuracy of each pair under an attack; NaN where it was not made.

    Args:
        scores: Of an evaluation.
        attack: Its name.

    >>> held = {("a", "a", "fgsm"): np.array([True, False]), ("a", "b", "fgsm"): np.array([True, True])}
    >>> transfer_matrix(Scores(("a",), ("a", "b"), ("fgsm",), np.array([[True, True]]), held), "fgsm")[2]
    array([[0.5, 1. ]])
    """
    rows = [[scores.robust_accuracy(target, [maker], [attack]) for maker in scores.makers] for target in scores.targets]
    return scores.targets, scores.makers, np.asarray(rows, float)


def card(values: dict[str, Any], target: str) -> dict[str, Any]:
    """Returns a model card in the form of RobustBench's `model_info`, as far as an evaluation knows it.

    Args:
        values: What `record` returned.
        target: Which model.

    References:
        Croce et al., "RobustBench: a standardized adversarial robustness benchmark", NeurIPS 2021,
        https://github.com/RobustBench/robustbench
    """
    model, found = values["models"].get(target, {}), values["targets"][target]
    sequential = [result["attack"] for result in found["sequential"]]
    is_autoattack = tuple(sequential[1:]) == VERSIONS["standard"]
    shares = {
        "clean_acc": found["clean_accuracy"],
        "autoattack_acc": found["sequential"][-1]["robust_accuracy"] if is_autoattack else None,
        "best_known_robust_acc": found["worst_case"]["all"],
    }
    count = values["data"]["count"]
    return {
        "name": target,
        "architecture": model.get("network"),
        "dataset": values["data"]["name"],
        "split": values["data"]["split"],
        "images": values["data"]["count"],
        "threat_model": values["threat"]["norm"],
        "eps": values["threat"]["epsilon"],
        **{name: None if share is None else f"{100 * share:.1f}" for name, share in shares.items()},
        "confidence_intervals": {
            name: [f"{100 * end:.1f}" for end in statistics.interval_of(share, count)]
            for name, share in shares.items()
            if share is not None
        },
        "additional_data": False if model.get("checkpoint") else None,
        "trained_with": model.get("trained_with"),
        "alarms": [alarm["name"] for alarm in found["alarms"] if alarm["fired"]],
    }


def _attacked(scores, sequential):
    """Counts adversarial images that were made."""
    made = len({(maker, attack) for _, maker, attack in scores.robust}) * scores.clean.shape[1]
    return made + sum(result.attacked for results in sequential.values() for result in results[1:])


def _intervals(shares: Any, count: int) -> Any:
    """Puts an interval in the place of each share, however they are nested; None stays."""
    if isinstance(shares, Mapping):
        return {name: _intervals(part, count) for name, part in shares.items()}
    if isinstance(shares, Sequence):
        return [_intervals(part, count) for part in shares]
    return None if shares is None else statistics.interval_of(shares, count)


def _paired(scores: Scores, standing: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Compares the first models pair by pair on clean images, under each white-box attack, and in the worst cases."""
    right: dict[str, dict[str, np.ndarray]] = {}
    for index, target in enumerate(scores.targets[:_MOST_PAIRED]):
        found: dict[str, np.ndarray | None] = {"clean": scores.clean[index]}
        found |= {attack: scores.robust_images(target, [target], [attack]) for attack in scores.attacks}
        found["attacks in turn"] = standing.get(target)
        if sum(images is not None for images in found.values()) > 2:  # Else it is the one attack over again.
            found[statistics.WORST_WHITE] = scores.robust_images(target, [target], also=standing.get(target))
        others = [maker for maker in scores.makers if maker != target]
        found[statistics.WORST_BLACK] = scores.robust_images(target, others)
        right[target] = {under: images for under, images in found.items() if images is not None}
    rows = []
    for first, second in itertools.combinations(right, 2):
        for under in (name for name in right[first] if name in right[second]):
            found_pair = statistics.paired_difference(right[first][under], right[second][under])
            rows.append(
                {"first": first, "second": second, "under": under, "difference": found_pair.difference,
                 "interval": (found_pair.low, found_pair.high), "first_only": found_pair.first_only,
                 "second_only": found_pair.second_only, "p_value": found_pair.p_value}
            )  # fmt: skip
    return rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as Markdown, aligned to be read as it is.

    >>> print(markdown(["model", "clean"], [["a", "98.1"]]))
    | model | clean |
    |-------|------:|
    | a     |  98.1 |
    """
    header, *rows = [
        [" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in [header, *rows]
    ]  # A bar ends a cell, and a new line the table.
    widths = [max(len(line[index]) for line in [header, *rows]) for index in range(len(header))]

    def line(cells):
        first, *others = [cell.ljust(width) if not index else cell.rjust(width)
                          for index, (cell, width) in enumerate(zip(cells, widths, strict=True))]  # fmt: skip
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])

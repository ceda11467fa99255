"""The report of an evaluation: tables with an interval for each accuracy, paired comparisons, and a JSON record."""

import collections
import csv
import datetime
import hashlib
import importlib.metadata
import importlib.resources
import io
import itertools
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from robust_gan.attacks.autoattack import VERSIONS
from robust_gan.evaluation import AttackResult, Curve, Scores, statistics
from robust_gan.evaluation.alarms import Alarm
from robust_gan.evaluation.requirements import Requirement
from robust_gan.storage import workdir
from robust_gan.types import ThreatModel
from robust_gan.version import __version__, made_by

SCHEMA = "robust_gan.evaluation/5"
"""Version of `report.json`, whose JSON Schema `schema` returns."""

USE_BATCH_STATS = (
    "**BatchNorm with batch statistics**, as the released code evaluates: the prediction of an image depends on the "
    "others in its batch, and the results are not comparable with others."
)
RECORD, TABLES, EXAMPLES = "report.json", "report.md", "examples.png"
CURVE, TRANSFER, TRACE = "curve.png", "transfer.png", "trace.png"
ADVERSARIAL, CARDS = "adversarial.npz", "cards"

SMOOTHED = {
    "clean_accuracy": "smoothed clean", "certified_accuracy": "smoothed certified", "abstained": "smoothed abstained",
}  # fmt: skip
"""Column of each share of the smoothed classifier."""

_SMOOTHED = (
    "Of another classifier, the majority vote of the model on images with Gaussian noise (sigma {smoothing_sigma:g}, "
    "{smoothing_samples} samples, alpha {smoothing_alpha:g}): these shares say nothing about the model itself."
)

CERTIFIED = "The true robust accuracy lies between the share of certified images and the worst case over all attacks."

CORRUPTED = "No attack and no threat model: the worst case over attacks does not include them."

_FEW_CLASSES = (
    "AutoAttack for fewer than 4 classes: the targeted DLR loss (`apgd_t`) needs 4, so `margin_pgd100x5` was run."
)
_SMALLEST = (
    "`{attack}` searches the nearest misclassified image, whatever epsilon: the median distance over the images that "
    "are classified correctly, and the share of all images with none within epsilon."
)
_MAX_PAIRED = 16
"""Number of models compared pair by pair: 120 pairs."""


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


def white_and_black_box(scores: Scores) -> str:
    """Returns clean, white-box and black-box accuracy of each model as a Markdown table, with intervals.

    Black-box accuracy is the worst case, image by image, over attacks transferred from all other models.

    Args:
        scores: Of an evaluation.

    >>> held = {("a", "a", "fgsm"): np.array([True, False]), ("a", "b", "fgsm"): np.array([True, True])}
    >>> print(white_and_black_box(Scores(("a",), ("a", "b"), ("fgsm",), np.array([[True, True]]), held)))
    | model |                 clean |    fgsm, white box |       fgsm, black box |
    |-------|----------------------:|-------------------:|----------------------:|
    | a     | 100.0 (34.2 to 100.0) | 50.0 (9.5 to 90.5) | 100.0 (34.2 to 100.0) |
    """
    count = scores.clean.shape[1]
    others = {target: [source for source in scores.sources if source != target] for target in scores.targets}
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
    """Returns robust accuracy by target, attack and source as a Markdown table; the diagonal is white-box.

    Args:
        scores: Of an evaluation.

    >>> held = {("a", "a", "fgsm"): np.array([True, False]), ("a", "b", "fgsm"): np.array([True, True])}
    >>> print(by_source(Scores(("a",), ("a", "b"), ("fgsm",), np.array([[True, True]]), held)))
    | model | attack |            made on a |             made on b |
    |-------|-------:|---------------------:|----------------------:|
    | a     |   fgsm | *50.0 (9.5 to 90.5)* | 100.0 (34.2 to 100.0) |
    """
    header = ["model", "attack", *(f"made on {source}" for source in scores.sources)]
    rows = []
    for target in scores.targets:
        for attack in scores.attacks:
            row = []
            for source in scores.sources:
                share = scores.robust_accuracy(target, [source], [attack])
                cell = statistics.format_accuracy(share, scores.clean.shape[1])
                row.append(f"*{cell}*" if source == target and cell != "-" else cell)
            rows.append([target, attack, *row])
    return markdown(header, rows)


def sequential(values: dict[str, Any]) -> str:
    """Returns robust accuracy after each sequential attack as a Markdown table; empty if there were none.

    Args:
        values: The output of `record`.

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
    names = [result["attack"] for result in first]
    few = tuple(names[1:5]) == VERSIONS["few_classes"]
    return markdown(["model", *names, "seconds"], rows) + (f"\n\n{_FEW_CLASSES}" if few else "")


def bracket(values: dict[str, Any]) -> list[float]:
    """Returns the certified and the attacked accuracy of a target of a report.

    Args:
        values: The target's part of the record.

    >>> bracket({"certified_accuracy": 0.5, "clean_accuracy": 0.9, "worst_case": {"all": 0.75}})
    [0.5, 0.75]
    """
    attacked = values["worst_case"]["all"]
    return [values["certified_accuracy"], values["clean_accuracy"] if attacked is None else attacked]


def certification(values: dict[str, Any]) -> str:
    """Returns for each model the bracket of its robust accuracy as a Markdown table; empty without certification.

    Args:
        values: The output of `record`.

    >>> target = {"certified_accuracy": 0.5, "clean_accuracy": 0.9, "worst_case": {"all": 0.75}}
    >>> print(certification({"data": {"count": 100}, "targets": {"a": target}}))
    | model |           certified |            attacked |
    |-------|--------------------:|--------------------:|
    | a     | 50.0 (40.4 to 59.6) | 75.0 (65.7 to 82.5) |
    """
    count = values["data"]["count"]
    rows = [[name, *(statistics.format_accuracy(share, count) for share in bracket(target))]
            for name, target in values["targets"].items() if "certified_accuracy" in target]  # fmt: skip
    return markdown(["model", "certified", "attacked"], rows) if rows else ""


def corruptions(values: dict[str, Any]) -> Table:
    """Returns the accuracy of each model under common corruptions of each severity, and its means.

    Args:
        values: The output of `record`; the table has no rows without corruptions.

    >>> target = {"corruptions": {"jpeg": {"accuracy": [0.9, 0.8, 0.7, 0.6, 0.5], "mean": 0.7}}}
    >>> corruptions({"data": {"count": 10}, "targets": {"a": target}}).rows[0][-2:]
    ['50.0 (23.7 to 76.3)', '70.0']
    """
    rows, count = [], values["data"]["count"]
    for name, target in values["targets"].items():
        found = target.get("corruptions", {})
        for corruption, row in found.items():
            cells = [statistics.format_accuracy(share, count) for share in row["accuracy"]]
            rows.append([name, corruption, *cells, f"{100 * row['mean']:.1f}"])
        if found:
            by_severity = np.mean([row["accuracy"] for row in found.values()], axis=0)
            means = [f"{100 * share:.1f}" for share in (*by_severity, by_severity.mean())]
            rows.append([name, "mean", *means])
    header = ["model", "corruption", *(f"severity {severity}" for severity in range(1, 6)), "mean"]
    return Table("Accuracy under common corruptions, in %", header, rows, words=("corruption",))


def smoothing(values: dict[str, Any]) -> str:
    """Returns what was measured of the smoothed classifiers, as a sentence and a Markdown table; empty without any.

    Args:
        values: The output of `record`.

    >>> found = {"clean_accuracy": 0.9, "certified_accuracy": 0.5, "abstained": 0.05}
    >>> config = {"smoothing_sigma": 0.25, "smoothing_samples": 1000, "smoothing_alpha": 0.001}
    >>> values = {"data": {"count": 100}, "config": config, "targets": {"a": {"smoothed": found}}}
    >>> print(smoothing(values).partition("\\n\\n")[2])
    | model |      smoothed clean |  smoothed certified | smoothed abstained |
    |-------|--------------------:|--------------------:|-------------------:|
    | a     | 90.0 (82.6 to 94.5) | 50.0 (40.4 to 59.6) |  5.0 (2.2 to 11.2) |
    """
    rows = [[name, *(statistics.format_accuracy(target["smoothed"][share], values["data"]["count"])
                     for share in SMOOTHED)]
            for name, target in values["targets"].items() if "smoothed" in target]  # fmt: skip
    if not rows:
        return ""
    return f"{_SMOOTHED.format(**values['config'])}\n\n{markdown(['model', *SMOOTHED.values()], rows)}"


def smallest_perturbations(values: dict[str, Any]) -> str:
    """Returns median distances, and robust accuracies beside those of the sequential attacks, as a Markdown table.

    Args:
        values: The output of `record`; the table is empty where no smallest perturbations were searched.

    >>> curve = {"attack": "fmn", "distances": {"a": [0.0, 0.1, 0.3, None]}}
    >>> print(smallest_perturbations({"curve": curve, "threat": {"epsilon": 0.2}, "data": {"count": 4},
    ...                               "targets": {"a": {"sequential": []}}}))
    | model | median distance |                 fmn | sequential attacks |
    |-------|----------------:|--------------------:|-------------------:|
    | a     |             0.3 | 50.0 (15.0 to 85.0) |                  - |
    """
    rows = []
    for name, found in ((values["curve"] or {}).get("distances") or {}).items():
        distances = np.array([math.inf if distance is None else distance for distance in found])
        last = [result["robust_accuracy"] for result in values["targets"][name]["sequential"][-1:]]
        shares = [float(np.mean(distances > values["threat"]["epsilon"])), *(last or [None])]
        median = np.median(distances[distances > 0]) if (distances > 0).any() else math.nan
        cells = (statistics.format_accuracy(share, values["data"]["count"]) for share in shares)
        rows.append([name, f"{median:.3g}", *cells])
    return markdown(["model", "median distance", values["curve"]["attack"], "sequential attacks"], rows) if rows else ""


def paired_comparisons(values: dict[str, Any]) -> str:
    """Returns the paired comparisons of models as a Markdown table; empty for a single model.

    Args:
        values: The output of `record`.

    >>> row = {"first": "a", "second": "b", "under": "fgsm", "difference": 0.25, "interval": [-0.25, 0.5],
    ...        "first_only": 1, "second_only": 0, "p_value": 1.0}
    >>> print(paired_comparisons({"paired": [row]}))
    | models    | under | difference |  95 % interval | first alone | second alone | McNemar p |
    |-----------|------:|-----------:|---------------:|------------:|-------------:|----------:|
    | a minus b |  fgsm |      +25.0 | -25.0 to +50.0 |           1 |            0 |     1.000 |
    """
    rows = statistics.paired_cells(values["paired"])
    return markdown(statistics.PAIRED_HEADER, rows) if rows else ""


def sort_alarms(values: dict[str, Any]) -> tuple[int, list[tuple[str, str, str]], list[str]]:
    """Returns the number of alarms that were evaluated, those that fired, and sentences on those that were not.

    Args:
        values: The output of `record`.

    Returns:
        The number; model, alarm and finding of each that fired; a sentence for each model and reason.

    >>> skipped = {"name": "zero_gradients", "fired": False, "finding": "not asked: no derivative", "asked": False}
    >>> sort_alarms({"targets": {"a": {"alarms": [skipped]}}})
    (0, [], ['a: zero_gradients: not asked: no derivative'])
    """
    found = [(name, alarm) for name, target in values["targets"].items() for alarm in target["alarms"]]
    fired = [(name, alarm["name"], alarm["finding"]) for name, alarm in found if alarm["fired"]]
    skipped: dict[tuple[str, str], list[str]] = {}
    for name, alarm in found:
        if not alarm.get("asked", True):
            skipped.setdefault((name, alarm["finding"]), []).append(alarm["name"])
    sentences = [f"{name}: {', '.join(alarms)}: {reason}" for (name, reason), alarms in skipped.items()]
    return len(found) - sum(map(len, skipped.values())), fired, sentences


def format_alarms(values: dict[str, Any]) -> str:
    """Returns the alarms that fired, and those that could not be evaluated, as Markdown.

    Args:
        values: The output of `record`.

    >>> alarms = [{"name": "probabilities", "fired": True, "finding": "outputs lie in [0, 1] and sum to 1"}]
    >>> format_alarms({"targets": {"a": {"alarms": alarms}}})
    '- a: **probabilities**: outputs lie in [0, 1] and sum to 1'
    """
    evaluated, fired, skipped = sort_alarms(values)
    none = f"None of {evaluated} fired." if evaluated else "No alarm was evaluated."
    lines = [f"- {name}: **{alarm}**: {finding}" for name, alarm, finding in fired]
    lines = lines or [none, *([""] if skipped else [])]
    return "\n".join([*lines, *(f"- {sentence}" for sentence in skipped)])


def format_requirements(values: dict[str, Any]) -> str:
    """Returns a line for each accuracy that was required, and whether it is met.

    Args:
        values: The output of `record`.

    >>> required = {"accuracy": "clean", "at_least": 0.9, "target": "a", "found": 0.95, "is_met": True}
    >>> format_requirements({"requirements": [required]})
    '- met: clean of a is 0.9500 (at least 0.9)'
    """
    rows = values.get("requirements", [])
    return "\n".join(
        f"- {'met' if row['is_met'] else 'missed'}: "
        + str(Requirement(**{name: row[name] for name in Requirement._fields}))
        for row in rows
    )


def format_notes(values: dict[str, Any]) -> str:
    """Returns the notes on outputs that could not be written, a line each.

    Args:
        values: The output of `record`.

    >>> format_notes({"notes": ["curve.png: not made: the disk is full."]})
    '- curve.png: not made: the disk is full.'
    """
    return "\n".join(f"- {note}" for note in values.get("notes", []))


def record(
    scores: Scores, threat: ThreatModel, *, data: dict[str, Any], models: dict[str, Any], settings: dict[str, Any],
    runs: Sequence[dict[str, Any]], sequential: dict[str, list[AttackResult]] | None = None,
    sequential_robust: dict[str, np.ndarray] | None = None, alarms: dict[str, list[Alarm]] | None = None,
    certified: dict[str, np.ndarray] | None = None, smoothed: dict[str, dict[str, float]] | None = None,
    curve: Curve | None = None, notes: Sequence[str] = (),
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the results and settings of an evaluation as a JSON-able dictionary.

    Args:
        scores: Of the evaluation.
        threat: The threat model.
        data: Data set, split and number of images.
        models: For each name its source: checkpoint, step, configuration.
        settings: The seed and further settings; batch size and devices are those of the last run.
        runs: The output of `EvaluationState.runs`: the runs that attacked, with the output of `made_with` and seconds.
        sequential: For each target the results of `evaluation.evaluate_sequential`.
        sequential_robust: For each target which images are robust under them.
        alarms: For each target its alarms.
        certified: For each target which images are certified, where that was asked for.
        smoothed: For each target the shares of its smoothed classifier, where that was asked for.
        curve: Robust accuracy against epsilon, if it was computed.
        notes: Sentences on outputs that could not be written.
        config: The part of the configuration that the results depend on.

    Returns:
        The record; accuracies are shares of all images, each with its 95 % interval. The white-box worst case includes
        the sequential attacks.
    """
    sequential, alarms, robust = sequential or {}, alarms or {}, sequential_robust or {}
    count, seconds = scores.clean.shape[1], sum(run["seconds"] for run in runs)
    targets = {
        target: _accuracies(
            scores, target, robust.get(target), (certified or {}).get(target), (smoothed or {}).get(target)
        ) | {
            "sequential": [
                result._asdict() | {"interval": statistics.interval_of(result.robust_accuracy, count)}
                for result in sequential.get(target, [])
            ],
            "alarms": [alarm._asdict() for alarm in alarms.get(target, [])],
        }
        for target in scores.targets
    }  # fmt: skip
    return {
        "schema": SCHEMA,
        "created": runs[-1]["created"],
        "data": data,
        "threat": {"norm": threat.norm, "epsilon": float(threat.epsilon), "bounds": list(threat.bounds)},
        "attacks": list(scores.attacks),
        "models": models,
        "targets": targets,
        "paired": _paired(scores, robust),
        "curve": None if curve is None else _curve(curve, count),
        "notes": list(notes),
        "config": config or {},
        "settings": settings | runs[-1]["settings"],
        "seconds": round(seconds, 2),
        "images_per_second": round(_count_attacked(scores, sequential) / max(seconds, 1e-9), 1),
        "device": "; ".join(dict.fromkeys(run["device"] for run in runs)),
        "versions": runs[-1]["versions"],
    }


def _accuracies(
    scores: Scores, target: str, also: np.ndarray | None, certified: np.ndarray | None,
    smoothed: dict[str, float] | None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the accuracies of a target, and under `intervals` the interval of each."""
    by_attack: dict[str, dict[str, float | None]] = {}
    for _, source, attack in (key for key in scores.robust if key[0] == target):
        by_attack.setdefault(attack, {})[source] = scores.robust_accuracy(target, [source], [attack])
    shares: dict[str, Any] = {
        "clean_accuracy": scores.clean_accuracy(target),
        "robust_accuracy": by_attack,
        "worst_case": {
            "white_box": scores.robust_accuracy(target, [target], also=also),
            "black_box": scores.robust_accuracy(target, [source for source in scores.sources if source != target]),
            "all": scores.robust_accuracy(target, scores.sources, also=also),
        },
    }
    if certified is not None:
        shares["certified_accuracy"] = float(certified.mean())
    if smoothed is not None:
        shares["smoothed"] = smoothed
    return shares | {"intervals": _intervals(shares, scores.clean.shape[1])}


def made_with(batch_size: int, num_devices: int) -> dict[str, Any]:
    """Returns date, command, commit, device and versions as a JSON-able dictionary.

    Args:
        batch_size: Images of a batch.
        num_devices: Devices that share it.

    >>> sorted(made_with(500, 1))
    ['created', 'device', 'seconds', 'settings', 'versions']
    """
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "settings": {"batch_size": batch_size, "num_devices": num_devices, **made_by()},
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
        "versions": {"robust_gan": __version__}
        | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
    }


def write(directory: epath.PathLike, scores: Scores, values: dict[str, Any]) -> None:
    """Writes `report.json`, `report.md` and a model card for each target, each atomically.

    Args:
        directory: Created if it does not exist.
        scores: Of the evaluation.
        values: The output of `record`.
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
        f"Robust accuracy in % of all {data['count']} images; robust: classified correctly clean and under attack; "
        f"{statistics.INTERVALS}.",
        "## White-box and black-box accuracy", white_and_black_box(scores),
        "Black-box: the worst case, image by image, over attacks transferred from all other models.",
        "## By source", by_source(scores), "Italics: white-box.",
    ]  # fmt: skip
    if table := sequential(values):
        text += ["## Sequential attacks", "Each attacks the remaining robust images.", table]
    if table := certification(values):
        text += ["## Certification", CERTIFIED, table]
    if table := smoothing(values):
        text += ["## Smoothed classifiers", table]
    if (corrupted := corruptions(values)).rows:
        text += ["## Common corruptions", CORRUPTED, markdown(corrupted.header, corrupted.rows)]
    if table := paired_comparisons(values):
        text += ["## Paired comparisons", statistics.PAIRED, table]
    if requirements := format_requirements(values):
        text += ["## Requirements", requirements]
    if table := smallest_perturbations(values):
        text += ["## Smallest perturbations", _SMALLEST.format(**values["curve"]), table]
    text += ["## Alarms", format_alarms(values)]
    if notes := format_notes(values):
        text += ["## Not written", notes]
    (folder / CARDS).mkdir(exist_ok=True)
    for name, file in card_names(list(values["targets"])).items():
        workdir.write_text(folder / CARDS / file, json.dumps(card(values, name), indent=2) + "\n")
    workdir.write_text(folder / TABLES, "\n\n".join(text) + "\n")
    workdir.write_text(folder / RECORD, json.dumps(values, indent=2) + "\n")


def card_names(names: Sequence[str]) -> dict[str, str]:
    """Returns a distinct, valid file name for the card of each model.

    Args:
        names: Distinct names of models.

    >>> card_names(["mine:m", "модель:первая", "a|b", "a/b"])["mine:m"]
    'mine_m.json'
    >>> len({file.casefold() for file in card_names(["A", "a", "?", "!", "x" * 300]).values()})
    5
    """
    plain = {name: re.sub(r"[^\w.-]+", "_", name).strip("._") for name in names}
    counts = collections.Counter(text.casefold() for text in plain.values())
    files = {}
    for name, text in plain.items():
        # File names have at most 255 bytes, and some file systems ignore case.
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
    """Returns targets, sources, and the robust accuracy of each pair under an attack; NaN if it was not computed.

    Args:
        scores: Of an evaluation.
        attack: Its name.

    >>> held = {("a", "a", "fgsm"): np.array([True, False]), ("a", "b", "fgsm"): np.array([True, True])}
    >>> transfer_matrix(Scores(("a",), ("a", "b"), ("fgsm",), np.array([[True, True]]), held), "fgsm")[2]
    array([[0.5, 1. ]])
    """
    rows = [
        [scores.robust_accuracy(target, [source], [attack]) for source in scores.sources] for target in scores.targets
    ]
    return scores.targets, scores.sources, np.asarray(rows, float)


def card(values: dict[str, Any], target: str) -> dict[str, Any]:
    """Returns a model card with the fields of RobustBench's `model_info` that an evaluation knows.

    Args:
        values: The output of `record`.
        target: Name of the model.

    References:
        Croce et al., "RobustBench: a standardized adversarial robustness benchmark", NeurIPS 2021,
        https://github.com/RobustBench/robustbench
    """
    model, found = values["models"].get(target, {}), values["targets"][target]
    sequential = [result["attack"] for result in found["sequential"]]
    is_autoattack = tuple(sequential[1:]) == VERSIONS["standard"]
    shares = {
        "clean_acc": found["clean_accuracy"],
        "certified_acc": found.get("certified_accuracy"),
        "autoattack_acc": found["sequential"][-1]["robust_accuracy"] if is_autoattack else None,
        "best_known_robust_acc": found["worst_case"]["all"],
    }
    smoothed = found.get("smoothed", {})
    shares |= {SMOOTHED[name].replace(" ", "_"): share for name, share in smoothed.items()}
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


def _curve(curve, count):
    found = curve._asdict() | {"intervals": _intervals(curve.robust_accuracy, count)}
    # JSON has no infinity.
    found["distances"] = {name: [float(f"{distance:.6g}") if np.isfinite(distance) else None for distance in distances]
                          for name, distances in curve.distances.items()}  # fmt: skip
    return found


def _count_attacked(scores, sequential):
    """Returns the number of adversarial images computed."""
    made = len({(source, attack) for _, source, attack in scores.robust}) * scores.clean.shape[1]
    return made + sum(result.attacked for results in sequential.values() for result in results[1:])


def _intervals(shares: Any, count: int) -> Any:
    """Replaces each share by its interval, in nested mappings and sequences."""
    if isinstance(shares, Mapping):
        return {name: _intervals(part, count) for name, part in shares.items()}
    if isinstance(shares, Sequence):
        return [_intervals(part, count) for part in shares]
    return None if shares is None else statistics.interval_of(shares, count)


def _paired(scores: Scores, robust: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Compares the first models pair by pair on clean images, under each white-box attack, and in the worst cases."""
    right: dict[str, dict[str, np.ndarray]] = {}
    for index, target in enumerate(scores.targets[:_MAX_PAIRED]):
        found: dict[str, np.ndarray | None] = {"clean": scores.clean[index]}
        found |= {attack: scores.robust_images(target, [target], [attack]) for attack in scores.attacks}
        found["sequential attacks"] = robust.get(target)
        if sum(images is not None for images in found.values()) > 2:  # Otherwise it equals the single attack.
            found[statistics.WORST_WHITE] = scores.robust_images(target, [target], also=robust.get(target))
        others = [source for source in scores.sources if source != target]
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

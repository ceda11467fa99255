"""The report of an evaluation as Markdown: the tables of its record, alarms and notes."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from robust_gan.attacks.autoattack import VERSIONS
from robust_gan.evaluation import Scores, statistics
from robust_gan.evaluation.requirements import Requirement
from robust_gan.reporting import evaluation_record
from robust_gan.reporting.tables import Table, markdown
from robust_gan.storage import workdir

USE_BATCH_STATS = (
    "**BatchNorm with batch statistics**, as the released code evaluates: the prediction of an image depends on the "
    "others in its batch, and the results are not comparable with others."
)
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
    rows = [[name, *(statistics.format_accuracy(share, count) for share in evaluation_record.bracket(target))]
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
                     for share in evaluation_record.SMOOTHED)]
            for name, target in values["targets"].items() if "smoothed" in target]  # fmt: skip
    if not rows:
        return ""
    return (
        f"{_SMOOTHED.format(**values['config'])}\n\n{markdown(['model', *evaluation_record.SMOOTHED.values()], rows)}"
    )


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


def find_requirements(values: dict[str, Any]) -> list[Requirement]:
    """Returns the accuracies that were required, with what was measured.

    Args:
        values: The output of `record`.

    >>> required = {"accuracy": "clean", "at_least": 0.9, "target": "a", "found": 0.95, "is_met": True}
    >>> find_requirements({"requirements": [required]})[0].is_met
    True
    """
    return [Requirement(*(row[name] for name in Requirement._fields)) for row in values.get("requirements", [])]


def format_requirements(values: dict[str, Any]) -> str:
    """Returns a line for each accuracy that was required, and whether it is met.

    Args:
        values: The output of `record`.

    >>> required = {"accuracy": "clean", "at_least": 0.9, "target": "a", "found": 0.95, "is_met": True}
    >>> format_requirements({"requirements": [required]})
    '- met: clean of a is 0.9500 (at least 0.9)'
    """
    return "\n".join(f"- {'met' if row.is_met else 'missed'}: {row}" for row in find_requirements(values))


def format_notes(values: dict[str, Any]) -> str:
    """Returns the notes on outputs that could not be written, a line each.

    Args:
        values: The output of `record`.

    >>> format_notes({"notes": ["curve.png: not made: the disk is full."]})
    '- curve.png: not made: the disk is full.'
    """
    return "\n".join(f"- {note}" for note in values.get("notes", []))


def sections(scores: Scores, values: dict[str, Any]) -> dict[str, str]:
    """Returns title and Markdown of each section after the first table, without those that have nothing to say.

    Args:
        scores: Of an evaluation.
        values: The output of `record`.

    >>> values = {"targets": {}, "paired": [], "curve": None, "data": {"count": 2}}
    >>> sections(Scores(("a",), ("a",), (), np.array([[True, True]]), {}), values)
    {'Alarms': 'No alarm was evaluated.'}
    """
    corrupted = corruptions(values)
    found = {
        "By source": ("Italics: white-box.", by_source(scores) if len(scores.sources) > 1 else ""),
        "Sequential attacks": ("Each attacks the remaining robust images.", sequential(values)),
        "Certification": (CERTIFIED, certification(values)),
        "Smoothed classifiers": ("", smoothing(values)),
        corrupted.title: (CORRUPTED, markdown(corrupted.header, corrupted.rows) if corrupted.rows else ""),
        "Paired comparisons": (statistics.PAIRED, paired_comparisons(values)),
        "Smallest perturbations": (
            _SMALLEST.format(**values["curve"] or {"attack": ""}),
            smallest_perturbations(values),
        ),
        "Alarms": ("", format_alarms(values)),
        "Not written": ("", format_notes(values)),
        "Requirements": ("", format_requirements(values)),
    }
    return {title: "\n\n".join(filter(None, [note, body])) for title, (note, body) in found.items() if body}


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
        *(f"## {title}\n\n{body}" for title, body in sections(scores, values).items()),
    ]  # fmt: skip
    (folder / evaluation_record.CARDS).mkdir(exist_ok=True)
    for name, file in evaluation_record.card_names(list(values["targets"])).items():
        workdir.write_text(
            folder / evaluation_record.CARDS / file, json.dumps(evaluation_record.card(values, name), indent=2) + "\n"
        )
    workdir.write_text(folder / evaluation_record.TABLES, "\n\n".join(text) + "\n")
    workdir.write_text(folder / evaluation_record.RECORD, json.dumps(values, indent=2) + "\n")


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

"""Joins the evaluations of the same models under several threat models."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from robust_gan.evaluation import CLEAN, EvaluationResult, statistics
from robust_gan.reporting import evaluation_record, tables
from robust_gan.reporting.details import SEQUENTIAL
from robust_gan.reporting.tables import Table
from robust_gan.storage import workdir
from robust_gan.types import ThreatModel

SCHEMA = "robust_gan.threats/1"
RECORD, TABLES = "threats.json", "threats.md"

_ALL, _WORST = "all threat models", "worst case, white box"
_NOTE = "Each column has one norm and one radius; the last one the worst case over them, image by image."


def folder_of(threat: ThreatModel) -> str:
    """Returns the name of the folder for the report of a threat model.

    >>> from robust_gan import LinfThreat
    >>> folder_of(LinfThreat(0.03125))
    'linf_0.03125'
    """
    return f"{threat.norm}_{float(threat.epsilon):g}"


def record(results: Sequence[EvaluationResult]) -> dict[str, Any]:
    """Returns accuracies by model, attack and threat model as a JSON-able dictionary.

    Args:
        results: Of the same models and images, a threat model each.

    Returns:
        The record; `accuracy` has a share of all images for each threat model, None where the attack was not made, and
        `all` the share of images that are robust under it in all of them.
    """
    rows = [{target: _rows(result, target) for target in result.scores.targets} for result in results]
    data, threats = results[0].subject.data, [result.subject.threat for result in results]
    targets: dict[str, Any] = {}
    for target in results[0].scores.targets:
        for attack in dict.fromkeys(name for row in rows for name in row[target]):
            found = [row[target].get(attack) for row in rows]
            made = [robust for robust in found if robust is not None]
            targets.setdefault(target, {})[attack] = {
                "accuracy": [None if robust is None else float(robust.mean()) for robust in found],
                "all": float(np.all(made, axis=0).mean()),
            }
    return {
        "schema": SCHEMA,
        "data": {"name": data.name, "split": data.split, "count": len(data.labels)},
        "seed": results[0].config.seed,
        "threats": [{"norm": threat.norm, "epsilon": float(threat.epsilon), "folder": folder_of(threat)}
                    for threat in threats],
        "targets": targets,
    }  # fmt: skip


def _rows(result: EvaluationResult, target: str) -> dict[str, np.ndarray]:
    """Returns which images are robust clean, under each white-box attack and in the worst case, bool `[N]` each."""
    scores = result.scores
    rows = {CLEAN: scores.clean[scores.targets.index(target)]}
    rows |= {attack: scores.robust[target, target, attack] for attack in scores.attacks
             if (target, target, attack) in scores.robust}  # fmt: skip
    if target in result.sequential:
        rows[SEQUENTIAL] = result.sequential[target].robust
    return rows | {_WORST: result.robust(target)}


def table(values: dict[str, Any]) -> Table:
    """Returns a row for each model and attack, and a column for each threat model.

    Args:
        values: The output of `record`.

    >>> threats = [{"norm": "linf", "epsilon": 0.1}, {"norm": "l2", "epsilon": 0.5}]
    >>> targets = {"a": {"fgsm": {"accuracy": [0.5, None], "all": 0.5}}}
    >>> data = {"name": "digits", "split": "test", "count": 10}
    >>> table({"data": data, "threats": threats, "targets": targets}).rows
    [['a', 'fgsm', '50.0 (23.7 to 76.3), 5', '-', '50.0 (23.7 to 76.3), 5']]
    """
    data = values["data"]
    rows = [
        [target, attack, *(tables.format_count(share, data["count"]) for share in (*row["accuracy"], row["all"]))]
        for target, attacks in values["targets"].items()
        for attack, row in attacks.items()
    ]
    columns = [f"{threat['norm']} epsilon {threat['epsilon']:.4g}" for threat in values["threats"]]
    title = f"{data['name']}, {data['split']} split, {data['count']} images; {len(columns)} threat models"
    note = f"Accuracy in %; {statistics.INTERVALS}; then the number of images. {_NOTE}"
    return Table(title, ["model", "attack", *columns, _ALL], rows, note=note, words=("attack",))


def markdown(values: dict[str, Any]) -> str:
    """Returns the table as Markdown, with its note.

    Args:
        values: The output of `record`.
    """
    found = table(values)
    return f"{tables.markdown(found.header, found.rows)}\n\n{found.note}"


def write(folder: epath.Path, values: dict[str, Any]) -> None:
    """Writes `threats.json` and `threats.md`, each atomically.

    Args:
        folder: Of the reports.
        values: The output of `record`.
    """
    reports = "\n".join(f"- {threat['folder']}/{evaluation_record.TABLES}" for threat in values["threats"])
    text = f"# Evaluation under several threat models\n\n{table(values).title}.\n\n{markdown(values)}\n\n{reports}\n"
    workdir.write_text(folder / TABLES, text)
    workdir.write_text(folder / RECORD, json.dumps(values, indent=2) + "\n")

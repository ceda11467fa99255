"""The record of an evaluation as JSON, with an interval for each accuracy, and a card for each of its models."""

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

from robust_gan.attacks.autoattack import VERSIONS
from robust_gan.evaluation import AttackResult, Curve, Scores, statistics
from robust_gan.evaluation.alarms import Alarm
from robust_gan.types import ThreatModel
from robust_gan.version import __version__, made_by

SCHEMA = "robust_gan.evaluation/5"
"""Version of `report.json`, whose JSON Schema `schema` returns."""

RECORD, TABLES, EXAMPLES = "report.json", "report.md", "examples.png"
CURVE, TRANSFER, TRACE = "curve.png", "transfer.png", "trace.png"
ADVERSARIAL, CARDS = "adversarial.npz", "cards"
FILES = (RECORD, TABLES, EXAMPLES, CURVE, TRANSFER, TRACE, ADVERSARIAL)
"""What an evaluation may leave in its folder, beside the folder of its cards."""

SMOOTHED = {
    "clean_accuracy": "smoothed clean", "certified_accuracy": "smoothed certified", "abstained": "smoothed abstained",
}  # fmt: skip
"""Column of each share of the smoothed classifier."""

_MAX_PAIRED = 16
"""Number of models compared pair by pair: 120 pairs."""


def bracket(values: dict[str, Any]) -> list[float]:
    """Returns the certified and the attacked accuracy of a target of a report.

    Args:
        values: The target's part of the record.

    >>> bracket({"certified_accuracy": 0.5, "clean_accuracy": 0.9, "worst_case": {"all": 0.75}})
    [0.5, 0.75]
    """
    attacked = values["worst_case"]["all"]
    return [values["certified_accuracy"], values["clean_accuracy"] if attacked is None else attacked]


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

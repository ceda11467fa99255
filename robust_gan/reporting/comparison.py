"""Tables that compare runs with each other, and evaluations on the same images."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robust_gan import config as config_lib
from robust_gan import optimizers
from robust_gan.attacks.autoattack import VERSIONS
from robust_gan.errors import UserError
from robust_gan.evaluation import statistics
from robust_gan.reporting import details as details_lib
from robust_gan.reporting import evaluation_record, tables
from robust_gan.reporting.record import Evaluation, Run
from robust_gan.reporting.tables import Table, format_count

LEARNING_RATE = "learning rate"
_OWN_COLUMN = ("seed", "robust_gan", "adversary.name")


class _Images(NamedTuple):
    """The images and the threat model of an evaluation: results in one table have all of these in common."""

    name: str
    split: str
    num_images: int
    norm: str
    epsilon: float
    labels: bytes


def run_table(runs: Sequence[Run], robust: str) -> Table:
    """Returns a row for each run, and for each group of seeds a row with mean and standard deviation.

    Args:
        runs: The runs.
        robust: The metric of robust accuracy.

    >>> run_table([Run("a", "a", "/a", {"seed": 3}, [], [], [], None)], "validation/pgd10").rows[0][:3]
    ['a', '', '3']
    """
    rows, accuracies = [], ("validation/clean_accuracy", robust)
    for run in runs:
        config, last = run.config, last_metrics(run)
        count = _validation_size(run)
        start = run.starts[-1] if run.starts else {}
        rows.append([
            ("⚠ " if any(value for name, value in last.items() if name.startswith("warning/")) else "") + run.name,
            method(config), str(config.get("seed", "")), str(config.get("data", {}).get("name", "")),
            f"{last.get('step', 0):,} of {config.get('num_steps', 0):,}",
            *(format_count(last.get(name), count) for name in accuracies),
            tables.duration(sum(line.get("seconds", 0) for line in run.timing)),
            _shorten_commit(start.get("commit", "")), start.get("command", "") or "-",
        ])  # fmt: skip
    for group, members in group_runs(runs).items():
        if len(members) > 1:
            means = [tables.format_shares([last_metrics(run).get(name) for run in members], 0) for name in accuracies]
            seeds = ", ".join(str(run.config.get("seed", "")) for run in members)
            rows.append([f"mean of {group}", method(members[0].config), seeds, *["-"] * 2, *means, *["-"] * 3])
    header = ["run", "method", "seed", "data", "steps", "clean", robust.rpartition("/")[2], "time", "commit", "command"]
    note = (
        f"Accuracy in % of the validation images; {statistics.INTERVALS}; the number of images. Means over seeds with "
        "their standard deviation. ⚠: the last validation has a warning."
    )
    return Table("", header, rows, note=note, words=("method", "data", "commit", "command"))


def config_table(runs: Sequence[Run]) -> Table:
    """Returns the fields in which the configurations of runs differ, a row each, except those with a column already.

    Args:
        runs: The runs.

    >>> runs = [Run(str(size), "", "", {"batch_size": size, "steps": 5}, [], [], [], None) for size in (32, 64)]
    >>> config_table(runs).rows
    [['batch_size', '32', '64']]
    """
    flat = [config_lib.flatten(run.config) for run in runs]
    names = [name for name in dict.fromkeys(itertools.chain(*flat)) if name not in _OWN_COLUMN]
    values = {name: [str(one.get(name, "-")) for one in flat] for name in names}
    rows = [[name, *row] for name, row in values.items() if len(set(row)) > 1]
    return Table("Config fields that differ", ["field", *(run.name for run in runs)], rows)


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs by the name of their group: those of one configuration that differ in the seed alone.

    >>> list(group_runs([Run(name, "pgd", "", {}, [], [], [], None) for name in "ab"]))
    ['pgd']
    """
    return {group: [run for run in runs if run.group == group] for group in dict.fromkeys(run.group for run in runs)}


def curves(run: Run) -> list[dict[str, Any]]:
    """Returns the metrics of a run, with the learning rate of its classifier at each logged step.

    Args:
        run: The run; of an earlier version, its configuration may not be readable.

    >>> curves(Run("a", "a", "/a", {}, [{"step": 1}], [], [], None))
    [{'step': 1, 'learning rate': 0.1}]
    """
    config = {name: value for name, value in run.config.items() if name != "robust_gan"}
    try:
        rate = optimizers.learning_rate(config_lib.from_dict(config).classifier.optimizer)
    except (UserError, ValueError):
        return run.metrics
    return [line | {LEARNING_RATE: float(rate(line["step"]))} for line in run.metrics]


def last_metrics(run: Run) -> dict[str, Any]:
    """Returns the last value of each metric of a run.

    >>> last_metrics(Run("a", "a", "/a", {}, [{"step": 1, "loss": 2}, {"step": 2}], [], [], None))
    {'step': 2, 'loss': 2}
    """
    return {name: value for line in run.metrics for name, value in line.items()}


def method(config: Mapping[str, Any]) -> str:
    """Returns the adversary of a configuration, with the loss where it is not the cross-entropy.

    >>> method({"adversary": {"name": "pgd"}, "classifier": {"loss": "trades"}})
    'pgd, trades'
    """
    loss = config.get("classifier", {}).get("loss", "cross_entropy")
    return config.get("adversary", {}).get("name", "") + (f", {loss}" if loss != "cross_entropy" else "")


def sequence(attacks: Sequence[str]) -> str:
    """Returns the names of sequential attacks in their order.

    >>> sequence(["apgd_ce", "square"])
    'apgd_ce → square'
    """
    version = next((version for version, names in VERSIONS.items() if tuple(attacks) == names), "")
    name = f"AutoAttack{'' if version == 'standard' else f' ({version})'}: " if version else ""
    return name + " → ".join(attacks)


def mark(report: Mapping[str, Any], name: str) -> str:
    """Returns the name of a model, with a sign where one of its alarms fired.

    >>> mark({"targets": {"a": {"alarms": [{"fired": True}]}}}, "a")
    '⚠ a'
    """
    return ("⚠ " if any(alarm["fired"] for alarm in report["targets"][name]["alarms"]) else "") + name


def accuracy_tables(evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> list[Table]:
    """Returns the accuracies of all models, a table for each set of images, norm and radius, a column for each attack.

    Args:
        evaluations: The evaluations.
        runs: Runs; models of one group have a row with mean and standard deviation over the seeds.

    >>> accuracy_tables([], [])
    []
    """
    made_tables, groups = [], {run.folder: run.group for run in runs}
    for images, members in _by_images(evaluations).items():
        lists = list(dict.fromkeys(_attacks(one.report) for one in members))
        letters = {attacks: f" {chr(65 + index % 26)}" if len(lists) > 1 else "" for index, attacks in enumerate(lists)}
        found = []
        for one in members:
            for name in one.report["targets"]:
                folder = one.report["models"][name].get("checkpoint", "").removesuffix("/checkpoints")
                shares = _shares(one.report, name, letters[_attacks(one.report)])
                found.append((one, name, groups.get(folder, ""), shares))
        named = dict.fromkeys(column for *_, shares in found for column in shares)
        columns = sorted(named, key=lambda column: column.startswith("worst case"))
        rows = []
        for one, name, _, shares in found:
            about = one.report["models"][name]
            cells = [format_count(shares.get(column), images.num_images) for column in columns]
            rows.append([mark(one.report, name), one.name, about.get("trained_with", "-"), str(about.get("seed", "-")),
                         *cells])  # fmt: skip
        rows += _means(found, columns)
        radius = f"{images.norm} epsilon {images.epsilon:.4g}"
        worst = "; ".join(f"{letter}: {_describe(made)}" if letter else _describe(made)
                          for made, letter in letters.items()).strip()  # fmt: skip
        note = (
            f"Accuracy in %; {statistics.INTERVALS}; then the number of images. ⚠: an alarm fired. Means over seeds "
            f"with their standard deviation. Attacks, over which worst cases are image by image: {worst}."
        )
        header = ["model", "evaluation", "trained with", "seed", *columns]
        title = f"{images.name}, {images.split} split, {images.num_images} images; {radius}"
        made_tables.append(Table(title, header, rows, note=note, words=("evaluation", "trained with")))
    return made_tables


def _means(found: Sequence[tuple[Evaluation, str, str, dict[str, float]]], columns: Sequence[str]) -> list[list[str]]:
    """Returns a row for each group of models that differ in the seed alone and were evaluated with the same attacks."""
    same: dict[tuple[str, tuple[str, ...]], dict[str, tuple[dict[str, Any], dict[str, float]]]] = {}
    for one, name, group, shares in found:
        about = one.report["models"][name]
        if group:
            same.setdefault((group, tuple(shares)), {})[str(about.get("seed", ""))] = about, shares
    rows = []
    for (group, made), seeds in same.items():
        if len(seeds) > 1:
            values = {column: [shares[column] for _, shares in seeds.values()] for column in made}
            cells = [tables.format_shares(values.get(column, []), 0) for column in columns]
            trained_with = next(iter(seeds.values()))[0].get("trained_with", "-")
            rows.append([f"mean of {group}", "-", trained_with, ", ".join(seeds), *cells])
    return rows


def paired_table(evaluations: Sequence[Evaluation]) -> Table:
    """Returns paired comparisons of models of different evaluations of the same images, under the attacks of both.

    Args:
        evaluations: The evaluations; those without details are left out.

    >>> paired_table([]).rows
    []
    """
    rows = []
    for members in _by_images([one for one in evaluations if one.details is not None]).values():
        models = [(one, name, f"{mark(one.report, name)} of {one.name}") for one in members
                  for name in one.report["targets"]]  # fmt: skip
        for (first, name, label), (second, other, other_label) in itertools.combinations(models, 2):
            if first is second or first.report["models"][name] == second.report["models"][other]:
                continue
            found, others = _right(first, name), _right(second, other)
            for under in (under for under in found if under in others):
                pair = statistics.paired_difference(found[under], others[under])
                values = {"first": label, "second": other_label, "under": under, "interval": (pair.low, pair.high)}
                rows.append(pair._asdict() | values)
    return Table("", statistics.PAIRED_HEADER, statistics.paired_cells(rows), words=("under",))


def _by_images(evaluations: Sequence[Evaluation]) -> dict[_Images, list[Evaluation]]:
    groups: dict[_Images, list[Evaluation]] = {}
    for one in evaluations:
        data, threat = one.report["data"], one.report["threat"]
        # Two files of images may have one name.
        labels = b"" if one.details is None else one.details.labels.astype(np.int64).tobytes()
        images = _Images(data["name"], data["split"], data["count"], threat["norm"], threat["epsilon"], labels)
        groups.setdefault(images, []).append(one)
    return groups


def _attacks(report: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Returns attacks on every model, sequential attacks in their order, and the models on which attacks were made.

    Of one model, or where all attacks are sequential, there are no such models: the attacks are white-box.
    """
    in_order: list[dict[str, Any]] = next((target["sequential"] for target in report["targets"].values()), [])
    models = tuple(report["models"]) if report["attacks"] and len(report["models"]) > 1 else ()
    return tuple(report["attacks"]), tuple(result["attack"] for result in in_order[1:]), models


def _describe(attacks: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]) -> str:
    parallel, in_order, models = attacks
    parts = [", ".join(parallel) + (f", made on {', '.join(models)}" if models else "")] if parallel else []
    return "; sequential ".join([*parts, sequence(in_order)] if in_order else parts) or "none"


def _shares(report: Mapping[str, Any], name: str, letter: str) -> dict[str, float]:
    """Returns the accuracies of a model by column."""
    target = report["targets"][name]
    shares = {"clean": target["clean_accuracy"]}
    shares |= {"certified": target["certified_accuracy"]} if "certified_accuracy" in target else {}
    shares |= {f"{attack}, white box": by.get(name) for attack, by in target["robust_accuracy"].items()}
    if target["sequential"]:
        *_, last = target["sequential"]
        shares[sequence(_attacks(report)[1])] = last["robust_accuracy"]
    worst = target["worst_case"]
    if len(shares) > 2:  # Otherwise it equals the single attack.
        shares[f"worst case{letter}, white box"] = worst["white_box"]
    if worst["black_box"] is not None:
        shares[f"worst case{letter}, black box"] = worst["black_box"]
        shares[f"worst case{letter}, white and black box"] = worst["all"]
    for column, share in target.get("smoothed", {}).items():
        shares[f"{evaluation_record.SMOOTHED[column]}, sigma {report['config']['smoothing_sigma']:g}"] = share
    return {column: share for column, share in shares.items() if share is not None}


def _right(one: Evaluation, name: str) -> dict[str, np.ndarray]:
    """Returns for clean images and each white-box attack on which images a model is right clean and under it."""
    assert one.details is not None
    in_order = sequence(_attacks(one.report)[1])
    right = {attack: row == one.details.labels for (target, attack), row in one.details.predicted.items()
             if target == name}  # fmt: skip
    clean = right.get(details_lib.CLEAN, np.True_)
    return {in_order if attack == details_lib.SEQUENTIAL else attack: row & clean for attack, row in right.items()}


def _validation_size(run: Run) -> int:
    return run.config.get("validation", {}).get("size") or run.config.get("data", {}).get("validation_size", 0)


def _shorten_commit(commit: str) -> str:
    name, dirty, _ = commit.partition("-dirty")
    return name[:12] + dirty or "-"

"""Runs an experiment, and resumes one that was stopped."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from robust_gan import checkpoint, data, training
from robust_gan.errors import CheckpointError, UserError
from robust_gan.evaluation import EvaluationConfig
from robust_gan.reporting import evaluation_record, plots
from robust_gan.reporting import folder as folder_lib
from robust_gan.reporting import run as run_lib
from robust_gan.reproduction import cost, tables
from robust_gan.reproduction.plan import NETWORK, SEED, Plan, run_folder
from robust_gan.storage import files, workdir
from robust_gan.training import setup

RECORD, TABLES, PICTURE, COSTS = "reproduction.json", "reproduction.md", "reproduction.png", "costs.png"
SCHEMA = "robust_gan.reproduction/3"

_KEY, _BEGUN, _DATA = "key.json", "begun.json", "data.json"


class InterruptedRunError(Exception):
    """A signal stopped a run, whose state is saved."""


def run(
    plan: Plan,
    output: epath.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    platform: str = "",
    batch_size: int = 500,
    progress: bool | None = None,
    log_fn: Callable[[str], Any] = print,
) -> tuple[str, dict[str, Any]]:
    """Trains every run of a plan, evaluates each seed, and writes the tables.

    On the same folder it resumes: finished runs and evaluations are not repeated.

    Args:
        plan: The experiment.
        output: Its folder: `runs/seed-SEED/NAME` for the runs, `seed-SEED` for the evaluations, and the tables
            `reproduction.md`, `reproduction.json` and, with the extra `plot`, the plots `reproduction.png`
            and `costs.png`.
        devices: The devices; None for all of a platform, but in training as `training.train`.
        platform: `cpu`, `gpu` or `tpu` where devices is None; empty for the best available.
        batch_size: Batch size of the evaluation.
        progress: Whether to show progress bars; None shows them if stderr is a terminal.
        log_fn: Called with a sentence.

    Returns:
        The tables as Markdown, and the content of `reproduction.json`.

    Raises:
        UserError: The data are not prepared, or the folder holds another experiment.
        InterruptedRunError: A signal stopped a run.

    Guarantees:
        `test_a_killed_experiment_goes_on_to_the_same_tables`.
    """
    folder = epath.Path(output).expanduser()
    for (seed, name), config in plan.runs.items():
        workdir.check(run_folder(folder, seed, name), config)
    dataset = setup.load_data(next(iter(plan.runs.values())))
    _check_data(folder, dataset)  # Before the first folder is made.
    for note in (*dataset.notes, *data.find_overlap(dataset)):
        log_fn(note)
    _train(plan, folder, devices, platform, progress, log_fn)
    reports, costs = {}, {}
    for seed in plan.seeds:
        log_fn(f"attacking the methods of seed {seed}")
        reports[seed] = _evaluate(plan, seed, folder, devices, platform, batch_size, progress)
        runs = {name: run_folder(folder, seed, name) for name in plan.methods}
        info = checkpoint.read_record(runs[plan.methods[0]]).data
        costs[seed] = {name: cost.measure(plan.runs[seed, name], where, info) for name, where in runs.items()}
    table = tables.summarise(plan, reports, costs)
    text = tables.write_up(plan, table, reports)
    values = {
        "schema": SCHEMA,
        "dataset": plan.dataset,
        "budget": plan.budget,
        "seeds": list(plan.seeds),
        "attacks": plan.attacks,
        "images": reports[plan.seeds[0]]["data"]["count"],
        "methods": table,
        "reports": {str(seed): f"seed-{seed}/{evaluation_record.RECORD}" for seed in plan.seeds},
    }
    workdir.write_text(folder / TABLES, text)
    workdir.write_text(folder / RECORD, json.dumps(values, indent=2) + "\n")
    if plots.can_plot():
        _plot(plan, table, folder)
    return text, values


def _plot(plan, table, folder):
    rows = tables.columns(plan, table)
    plots.save(plots.accuracies(rows, {name: index for index, name in enumerate(rows)}), folder / PICTURE)
    histories = {row["label"]: [paid["history"] for paid in row["cost"]] for row in table.values()}
    plots.save(plots.costs(histories), folder / COSTS)


def _check_data(folder, dataset):
    """Refuses to go on where runs were trained on other data: images of one shape have the same configuration."""
    here = {"checksums": data.checksums(dataset)}
    if (folder / _DATA).exists() and not _is_at(folder / _DATA, here):
        raise UserError(
            f"{folder} holds an experiment on other images or labels of {dataset.name}: give another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_text(folder / _DATA, json.dumps(here) + "\n")


def _train(plan, folder, devices, platform, progress, log_fn):
    """Trains the runs that are not finished."""
    for index, ((seed, name), config) in enumerate(plan.runs.items(), 1):
        where = run_folder(folder, seed, name)
        log_fn(f"[{index}/{len(plan.runs)}] {name}, seed {config.seed}")
        if _is_finished(where, config):
            continue
        result = training.train(config, where, devices=devices, platform=platform, progress=progress, log_fn=None)
        if not result.finished:
            raise InterruptedRunError(f"stopped at step {result.step} of {where}; rerun the same command to resume")


def _is_finished(where, config):
    """Returns whether a run is finished by its newest record, without loading data."""
    try:
        return checkpoint.read_record(where, "last").step >= config.num_steps
    except CheckpointError:
        return False


def _is_at(path, key):
    try:
        return files.read_json(path) == json.loads(json.dumps(key))
    except (FileNotFoundError, files.UnreadableError):
        return False


def _evaluate(plan, seed, folder, devices, platform, batch_size, progress):
    """Evaluates a seed, unless its checkpoints, attacks and versions are those of a finished evaluation."""
    output = folder / f"seed-{seed}"
    targets = [run_folder(folder, seed, name) for name in plan.methods]
    sources = [run_folder(folder, seed, name) for name in (SEED, NETWORK)]
    records = [checkpoint.read_record(where) for where in (*targets, *sources)]
    key = {
        "attacks": plan.attacks,
        "models": [[str(record.directory), record.step, record.leaves] for record in records],
        "versions": evaluation_record.made_with(batch_size, len(devices or ()))["versions"],
    }
    if (output / _KEY).exists() and (output / evaluation_record.RECORD).exists():
        try:
            if _is_at(output / _KEY, key):
                values = files.read_json(output / evaluation_record.RECORD)
                if values["schema"] == evaluation_record.SCHEMA:
                    return values
        except (files.UnreadableError, KeyError, TypeError):
            pass  # Incomplete: evaluated again.
    begun = _is_at(output / _BEGUN, key)
    if not begun:
        output.mkdir(parents=True, exist_ok=True)
        (output / folder_lib.STATE).unlink(missing_ok=True)  # The files there belong to another evaluation.
        workdir.write_text(output / _BEGUN, json.dumps(key) + "\n")
    config = EvaluationConfig(
        tuple(targets),
        surrogates=tuple(sources),
        attacks=plan.attacks,
        batch_size=batch_size,
        output=output,
        overwrite=not begun,  # A stopped evaluation is resumed.
        progress=progress,
        platform=platform,
    )
    _, values = run_lib.run(config, devices=devices)
    workdir.write_text(output / _KEY, json.dumps(key))
    return json.loads(json.dumps(values))

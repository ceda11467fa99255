"""Runs an evaluation from checkpoints and other classifiers to a report.

Models and attacks are tried on a few images before the first attack. The report is written as soon as the attacks are
done. What follows (alarms, curve, plots) is added to it, or a note in it gives the reason.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from robust_gan import evaluation, parallel
from robust_gan.errors import UserError, one_line, writing
from robust_gan.evaluation import EvaluationConfig, EvaluationResult, EvaluationState, Scores, loading
from robust_gan.evaluation.certified import check_methods
from robust_gan.evaluation.evaluate import add_alarms, run_attacks
from robust_gan.evaluation.external import load_external
from robust_gan.evaluation.loading import load_attack
from robust_gan.evaluation.plan import AttackPlan, plan_attacks
from robust_gan.evaluation.subject import Subject, get_threat, prepare_each
from robust_gan.parallel import interruption
from robust_gan.reporting import details, evaluation_record, evaluation_report, threats
from robust_gan.reporting import folder as folder_lib
from robust_gan.reporting import plots as plots_lib
from robust_gan.reporting.progress import Progress
from robust_gan.reporting.run import additions


class UnwrittenError(UserError):
    """An evaluation whose report could not be written; it carries the result.

    Attributes:
        scores: As `run` returns them.
        values: The record.
    """

    def __init__(self, sentence: str, scores: Scores, values: dict[str, Any]) -> None:
        """Keeps the result."""
        super().__init__(sentence)
        self.scores, self.values = scores, values


def run(config: EvaluationConfig, *, devices: Sequence[jax.Device] | None = None) -> tuple[Scores, dict[str, Any]]:
    """Evaluates checkpoints and other models, white-box and by transfer, and writes a report.

    Args:
        config: What to evaluate, and where to write.
        devices: Devices to use in place of those that the configuration names.

    Returns:
        The scores, and the record that `report.json` contains.

    Raises:
        UserError: A checkpoint is missing, damaged or does not fit the first one; an attack or split is unknown; a
            model or an attack fails, or a model has no derivative and an attack needs one; the report folder cannot be
            written, or contains another evaluation. Nothing is written then.
        UnwrittenError: The attacks were made, but the report could not be written.
    """
    _ = config.radius  # Refuses several.
    [(result, values)], _ = run_threats(config, devices=devices)
    return result.scores, values


def run_threats(
    config: EvaluationConfig, *, devices: Sequence[jax.Device] | None = None
) -> tuple[list[tuple[EvaluationResult, dict[str, Any]]], dict[str, Any] | None]:
    """Evaluates models under each threat model of a configuration, `EvaluationConfig.per_threat`.

    Several have a report each, in a folder of their own in the report folder, and `threats.md` and `threats.json`
    beside them; each is resumed where it was stopped.

    Args:
        config: What to evaluate, and where to write.
        devices: Devices to use in place of those that the configuration names.

    Returns:
        For each threat model the result, and the record that its `report.json` contains; and the record of several, the
        content of `threats.json`, None for a single threat model.

    Raises:
        UserError: As `run`.
        UnwrittenError: As `run`.
    """
    # A model's own module may choose strict promotion, under which attacks cannot be traced.
    with jax.numpy_dtype_promotion("standard"):
        _check_folder(config)
        found = []
        for part, subject in _load(config, devices or parallel.find_devices(config.platform, config.num_devices)):
            found.append(_run(part, subject))
        joined = threats.record([result for result, _ in found]) if len(found) > 1 else None
        if joined is not None and config.output and parallel.is_primary():
            with writing(config.output, _resuming(config.output)):
                threats.write(epath.Path(config.output), joined)
    return found, joined


def _check_folder(config: EvaluationConfig) -> epath.Path | None:
    if not config.output:
        return None
    folder = epath.Path(parallel.broadcast_from_primary(lambda: os.fspath(folder_lib.check(config.output))))
    parallel.broadcast_from_primary(lambda: additions.check_files(folder))
    return folder


def _run(config: EvaluationConfig, subject: Subject) -> tuple[EvaluationResult, dict[str, Any]]:
    folder = _check_folder(config)
    writes = folder is not None and parallel.is_primary()
    with folder_lib.lock(folder), interruption.exit_at_sigterm():
        state = _claim(config, folder, subject)
        with Progress(subject.num_attacked(), unit="image", show=config.progress) as bar:
            made_with = evaluation_record.made_with(config.batch_size, len(subject.devices))
            state.start(made_with)
            result = _attack(config, folder, subject, state, bar)
            state.stop()
            record = functools.partial(additions.record, result, state.runs() or [made_with])
            if writes:
                _write_first(folder, result, record())
            add_alarms(result, state)
        if writes:
            additions.draw(folder, result)
        values = record()
        if writes:
            result.attempt("the report with its alarms", lambda: evaluation_report.write(folder, result.scores, values))
            values["notes"] = list(result.notes)
    return result, values


def load(config: EvaluationConfig, devices: Sequence[jax.Device]) -> Subject:
    """Loads what `run` evaluates and tries it on a few images, without an attack on all and without a report.

    Args:
        config: What to evaluate.
        devices: The devices.

    Raises:
        UserError: As `run`, except for those on the report folder.
    """
    with jax.numpy_dtype_promotion("standard"):
        _ = config.radius  # Refuses several.
        [(_, subject)] = _load(config, devices)
        return subject


def _plan(config: EvaluationConfig) -> AttackPlan:
    """Reads the attacks; refuses what no model and no image could make valid."""
    if not config.checkpoints and not config.models:
        raise UserError("give at least one checkpoint, or a model of your own, to evaluate")
    suite = evaluation.get_suite(
        config.suite, *(None if names is None else ",".join(names) for names in (config.attacks, config.sequential))
    )
    named = [name for names in suite for name in evaluation.attack_names(names)]
    functions = {
        name: parallel.run_on_all_processes(functools.partial(load_attack, name)) for name in named if ":" in name
    }
    if config.adversarial:
        external = parallel.run_on_all_processes(lambda: load_external(config.adversarial))
        if external.name in (evaluation.CLEAN, *named):
            raise UserError(f"{config.adversarial} has the name of the attack {external.name}: give it another one")
        functions[external.name] = external
    if config.plots:
        plots_lib.check_plot()
    return plan_attacks(config, functions)


def _load(config: EvaluationConfig, devices: Sequence[jax.Device]) -> list[tuple[EvaluationConfig, Subject]]:
    """Loads models and images, determines the threat models, and tries all of it on a few images."""
    configs = config.per_threat()
    plans = [_plan(part) for part in configs]
    given, own = parallel.run_on_all_processes(
        lambda: (
            loading.from_checkpoints([*config.checkpoints, *config.surrogates], use_batch_stats=config.use_batch_stats),
            loading.from_functions(config.models),
        )
    )
    targets = [*given[: len(config.checkpoints)], *own]
    models = [*targets, *given[len(config.checkpoints) :]]
    if config.attacks is None and all(evaluated.model.generator is None for evaluated in models):
        # Of a suite; where it is named, its column has dashes.
        plans = [
            plan._replace(names=tuple(name for name in plan.names if name != evaluation.GENERATOR)) for plan in plans
        ]
    first = next((evaluated.record for evaluated in models if evaluated.record is not None), None)
    if first is None and config.epsilon is None:
        raise UserError("--epsilon is missing: a model of your own does not say it; give it in units of [0, 1]: 8/255")
    radii = [first.config.threat.epsilon if first and part.radius is None else part.radius for part in configs]
    norms = [part.norm or (first.config.threat.norm if first else "linf") for part in configs]
    for norm, radius in zip(norms, radii, strict=True):
        get_threat(norm, radius)
    check_methods(config, norms)
    data = parallel.run_on_all_processes(lambda: loading.load_data(models, config))
    balls = [get_threat(*pair, data.images.shape[1:]) for pair in zip(norms, radii, strict=True)]
    subjects = parallel.run_on_all_processes(
        lambda: prepare_each(models, len(targets), data, balls, plans, config.batch_size, devices)
    )
    if len(configs) > 1 and config.output:
        configs = [dataclasses.replace(part, output=os.path.join(config.output, threats.folder_of(ball)))
                   for part, ball in zip(configs, balls, strict=True)]  # fmt: skip
    return list(zip(configs, subjects, strict=True))


def _claim(config: EvaluationConfig, folder: epath.Path | None, subject: Subject) -> EvaluationState:
    """Makes the folder this evaluation's, and returns the state that is saved there."""
    state = EvaluationState()
    outputs = {"batch_size": config.batch_size, "output": config.output, "plots": [*config.plots]}
    identity = folder_lib.identify(config, subject)
    parallel.assert_equal_across_processes(identity | outputs)
    if folder is None:
        return state

    def claim() -> EvaluationState:
        return folder_lib.claim(folder, identity, subject, config)

    return parallel.run_on_all_processes(claim if parallel.is_primary() else lambda: state).shared()


def _attack(
    config: EvaluationConfig, folder: epath.Path | None, subject: Subject, state: EvaluationState, bar: Progress
) -> EvaluationResult:
    """Runs the attacks; explains what failed while they ran."""
    try:
        shown = details.choose(subject.data.labels).tolist()
        return run_attacks(subject, config, state, shown=shown, progress_fn=bar.update)
    except UserError:
        raise
    except OSError as error:
        if folder is None:
            raise
        raise UserError(
            f"{folder} cannot be written ({(error.strerror or str(error)).lower()}): {_resuming(folder)}"
        ) from error
    except Exception as error:  # A model is the user's own program, and may raise anything.
        is_ours = all(evaluated.record is not None for evaluated in subject.models) and not subject.attacks.functions
        if is_ours and not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        smaller = ": give a smaller --batch_size" if "RESOURCE_EXHAUSTED" in str(error) else ""
        raise UserError(f"an attack failed while it ran: {one_line(error)}{smaller}; {_resuming(folder)}") from error


def _resuming(folder):
    return "nothing is saved without --output" if folder is None else "rerun the same command to resume"


def _write_first(folder: epath.Path, result: EvaluationResult, values: dict[str, Any]) -> None:
    """Writes the result of the attacks before anything else can fail."""
    try:
        early = "Alarms had not been checked when this was written: rerun the same command; no attack is repeated."
        evaluation_report.write(folder, result.scores, values | {"notes": [*values["notes"], early]})
        if result.config.save_adversarial:
            adversarial = {
                name: found.adversarial for name, found in result.sequential.items() if found.adversarial is not None
            }
            additions.write_adversarial(folder, result.subject.data.labels, adversarial)
    except OSError as error:
        raise UnwrittenError(
            f"the report {folder} cannot be written ({(error.strerror or str(error)).lower()}): make room, or give "
            "another --output",
            result.scores,
            values,
        ) from error

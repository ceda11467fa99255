"""From checkpoints and other classifiers to a report: loads them, tries them, attacks them, writes what was found.

What can fail on a model is tried on a few images before the first attack. The report is written as soon as the attacks
are done. What comes after (alarms, the curve, images) is added to it, or a sentence in it says why not.
"""

import functools
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from etils import epath

from robust_gan import attacks as attacks_lib
from robust_gan import evaluation, networks, parallel, threat_model
from robust_gan.config import NORMS, ThreatConfig, check_epsilon
from robust_gan.errors import UserError, one_line
from robust_gan.evaluation import Scores, loading, trying
from robust_gan.evaluation.sharded_model import ShardedModel, place
from robust_gan.parallel import interruption
from robust_gan.reporting import details, tables
from robust_gan.reporting import folder as folder_lib
from robust_gan.reporting import plots as pictures_lib
from robust_gan.reporting.run import additions
from robust_gan.reporting.run.additions import Found
from robust_gan.reporting.run.request import PLOTS, Request
from robust_gan.types import ThreatModel

_DRAWN, _DRAWN_BY_QUERIES = "pgd40", "square"


class UnwrittenError(UserError):
    """An evaluation whose report could not be written; it carries what was found.

    Attributes:
        scores: As `compare` returns them.
        values: The record.
    """

    def __init__(self, sentence: str, scores: Scores, values: dict[str, Any]) -> None:
        """Keeps what was found."""
        super().__init__(sentence)
        self.scores, self.values = scores, values


class _Attacks(NamedTuple):
    """The attacks of an evaluation: made on every model, made in turn, and the one of pictures and curve."""

    names: tuple[str, ...]
    sequential: tuple[str, ...]
    drawn: str


class _Subject(NamedTuple):
    """What is evaluated: models, those under attack first, images, and the threat model; and which have no derivative.

    Of every model that has none, `missing` says why.
    """

    everyone: list[loading.EvaluatedModel]
    num_targets: int
    chosen: loading.EvaluationData
    threat: ThreatModel
    missing: dict[str, str]
    placed: list[ShardedModel]

    @property
    def targets(self) -> list[ShardedModel]:
        return self.placed[: self.num_targets]

    @property
    def sources(self) -> list[ShardedModel]:
        return self.placed[self.num_targets :]


def compare(targets: Sequence[str] = (), **settings: Any) -> tuple[Scores, dict[str, Any]]:
    """Evaluates checkpoints and other models, white box and by transfer, and writes a report.

    Args:
        targets: `DIR[@STEP]` each: the models under attack; their attacks are tried on each other too.
        **settings: The other fields of `Request`.

    Returns:
        The scores, and the record that `report.json` holds.

    Raises:
        UserError: A checkpoint is missing, damaged or does not fit the first one; an attack or split is unknown; a
            model fails, or has no derivative and an attack needs one; the report folder cannot be written, or holds
            another evaluation. Nothing is written then.
        UnwrittenError: The attacks were made, but the report could not be written.
    """
    # A model's own module may choose strict promotion, under which attacks cannot be traced.
    with jax.numpy_dtype_promotion("standard"):
        return _compare(Request(tuple(targets), **settings))


def _compare(request: Request) -> tuple[Scores, dict[str, Any]]:
    """Evaluates as `compare` does."""
    chosen_attacks = _read(request)
    folder = None
    if request.output is not None:
        output = request.output
        folder = epath.Path(parallel.broadcast_from_primary(lambda: os.fspath(folder_lib.check(output))))
        parallel.broadcast_from_primary(lambda: additions.check_files(folder))
    subject, chosen_attacks = _choose(request, chosen_attacks)
    devices = request.devices or parallel.find_devices()
    subject = parallel.run_on_all_processes(lambda: _try(request, subject, chosen_attacks, devices))
    writes = parallel.is_primary()
    with folder_lib.held(folder), interruption.exit_at_sigterm():
        kept = _claim(request, folder, subject, chosen_attacks, devices)
        progress = writes and (sys.stderr.isatty() if request.progress is None else request.progress)
        with tqdm.tqdm(total=_total(subject, chosen_attacks), unit="image", disable=not progress) as bar:
            given = {"batch_size": request.batch_size, "seed": request.seed, "devices": devices, "kept": kept,
                     "advance": bar.update}  # fmt: skip
            made_with = tables.made_with(request.batch_size, len(devices))
            kept.start(made_with)
            found = _attack(request, folder, subject, chosen_attacks, given)
            kept.stop()
            record = functools.partial(_record, request, subject, found, kept.runs() or [made_with])
            if folder is not None and writes:
                _write_first(folder, found, record())
            additions.examine(request, found, subject.missing, -(-request.batch_size // len(devices)), given)
        if folder is not None and writes:
            additions.draw(request, folder, found)
        values = record()
        if folder is not None and writes:
            found.attempt("the report with its alarms", lambda: tables.write(folder, found.scores, values))
            values["notes"] = list(found.notes)
    return found.scores, values


def _total(subject: _Subject, attacks: _Attacks) -> int:
    """Returns how many images are attacked, for the bar."""
    count = len(subject.chosen.labels)
    sequential = (1 + len(attacks.sequential)) * count if attacks.sequential else 0
    return evaluation.total(subject.targets, subject.sources, attacks.names, count) + len(subject.targets) * sequential


def _read(request: Request) -> _Attacks:
    """Reads what was asked for; refuses what no model and no image could make right."""
    chosen = evaluation.get_suite(request.suite, request.attacks, request.sequential)
    names, turns = (evaluation.attack_names(text) for text in chosen)
    if request.batch_size < 1 or request.count < 0:
        raise UserError(
            f"batch_size must be at least 1 and count at least 0, not {request.batch_size} and {request.count}"
        )
    if request.norm and request.norm not in NORMS:
        raise UserError(f"the norm must be one of {', '.join(NORMS)}, not {request.norm!r}")
    if not request.targets and not request.models:
        raise UserError("give at least one checkpoint, or a model of your own, to evaluate")
    if unknown := [name for name in request.pictures if name not in PLOTS]:
        raise UserError(f"there is no picture {unknown[0]!r}: the pictures are {', '.join(PLOTS)}")
    if request.output is None and (request.pictures or request.save_adversarial):
        raise UserError("pictures and adversarial images go to the report folder: give --output")
    if "transfer" in request.pictures and not names:
        raise UserError("transfer.png shows an attack that is made on every model: name one with --attacks")
    if request.save_adversarial and not turns:
        raise UserError("adversarial.npz holds what attacks in turn broke: give --suite=autoattack or --sequential")
    if request.pictures:
        pictures_lib.check_plot()
    on_pixels = [name for name in names if name not in (evaluation.GENERATOR, *evaluation.RETRAINED)]
    return _Attacks(names, turns, on_pixels[-1] if on_pixels else _DRAWN)


def _choose(request: Request, attacks: _Attacks) -> tuple[_Subject, _Attacks]:
    """Loads models and images, and finds the threat model."""
    given, brought = parallel.run_on_all_processes(
        lambda: (
            loading.from_checkpoints([*request.targets, *request.sources], use_batch_stats=request.use_batch_stats),
            loading.from_functions(request.models),
        )
    )
    attackable = [*given[: len(request.targets)], *brought]
    everyone = [*attackable, *given[len(request.targets) :]]
    if request.attacks is None and all(entrant.model.generator is None for entrant in everyone):
        # Of a suite; who names it sees a dash.
        attacks = attacks._replace(names=tuple(name for name in attacks.names if name != evaluation.GENERATOR))
    first = next((entrant.record for entrant in everyone if entrant.record is not None), None)
    epsilon = request.epsilon
    if first is None and epsilon is None:
        raise UserError("--epsilon is missing: a model of your own does not say it; give it in units of [0, 1]: 8/255")
    norm = request.norm or (first.config.threat.norm if first else "linf")
    epsilon = first.config.threat.epsilon if first and epsilon is None else epsilon
    check_epsilon(epsilon, norm=norm)
    threat = threat_model.from_config(ThreatConfig(norm, float(epsilon)))  # type: ignore[arg-type]
    chosen = parallel.run_on_all_processes(
        lambda: loading.choose_data(
            everyone,
            dataset=request.dataset,
            split=request.split,
            data_dir=request.data_dir,
            count=request.count,
            channels=request.channels,
        )
    )
    check_epsilon(epsilon, norm=norm, image_shape=chosen.images.shape[1:])
    return _Subject(everyone, len(attackable), chosen, threat, {}, []), attacks


def _try(request: Request, subject: _Subject, attacks: _Attacks, devices: Sequence[jax.Device]) -> _Subject:
    """Tries on a few images what the models will have to do, and places them."""
    num_devices = len(devices)
    images, names = subject.chosen.images, [*dict.fromkeys([*attacks.names, *attacks.sequential])]
    if set(names) & set(evaluation.RETRAINED):
        networks.generator_for(images.shape[1:])
    num_classes = max(2, int(subject.chosen.labels.max()) + 1, len(subject.chosen.label_names))
    most = -(-request.batch_size // num_devices)
    everyone: list[loading.EvaluatedModel] = []
    missing, widest = {}, 0
    for entrant in subject.everyone:
        model = entrant.model
        if entrant.record is None:
            model = trying.try_model(model, images, most, num_classes)
            if why := trying.without_derivative(model.logits_fn, evaluation.to_unit(images[:1])):
                missing[model.name] = why
        classes = jax.eval_shape(model.logits_fn, jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)).shape[-1]
        widest = max(widest, classes)
        for name in sorted(names):
            if classes < (needed := attacks_lib.classes_needed(name)):
                raise UserError(
                    f"{name} needs a classifier of at least {needed} classes, but {model.name} has {classes}: "
                    "leave it out with --attacks or --sequential"
                )
        if entrant.record is None:
            width = min(most, -(-len(images) // num_devices))
            on_targets = attacks.sequential if len(everyone) < subject.num_targets else ()
            trying.try_attacks(
                model, images, subject.threat, [*attacks.names, *on_targets], width, missing.get(model.name, "")
            )
        everyone.append(entrant._replace(model=model))
    # The labels of a file may lack classes that a model knows.
    more = tuple(map(str, range(len(subject.chosen.label_names), widest)))
    chosen = subject.chosen._replace(label_names=subject.chosen.label_names + more)
    placed = place([entrant.model for entrant in everyone], images, chosen.labels, devices)
    return subject._replace(everyone=everyone, chosen=chosen, missing=missing, placed=placed)


def _claim(
    request: Request,
    folder: epath.Path | None,
    subject: _Subject,
    attacks: _Attacks,
    devices: Sequence[jax.Device],
) -> evaluation.EvaluationState:
    """Makes the folder this evaluation's, and returns what is known already."""
    kept = evaluation.EvaluationState()
    what = folder_lib.subject(
        subject.everyone, subject.chosen, subject.threat, attacks=attacks.names, sequential=attacks.sequential,
        seed=request.seed, use_batch_stats=request.use_batch_stats, save_adversarial=request.save_adversarial,
        # By the statistics of a batch, and only so, figures depend on its size.
        **({"batch_size": request.batch_size} if request.use_batch_stats else {}),
    )  # fmt: skip
    same = {
        "batch_size": request.batch_size,
        "output": os.fspath(request.output or ""),
        "pictures": [*request.pictures],
    }
    parallel.assert_equal_across_processes(what | same)
    if folder is None:
        return kept
    chosen, names = subject.chosen, [*attacks.names, *attacks.sequential]

    def differs(there: evaluation.EvaluationState) -> str:
        return there.differs(
            subject.placed, chosen.images, chosen.labels, subject.threat, request.seed, attacks=names,
            batch_size=request.batch_size, devices=devices,
        )  # fmt: skip

    def claim() -> evaluation.EvaluationState:
        return folder_lib.claim(folder, what, overwrite=request.overwrite, differs=differs)

    return parallel.run_on_all_processes(claim if parallel.is_primary() else lambda: kept).shared()


def _attack(
    request: Request, folder: epath.Path | None, subject: _Subject, attacks: _Attacks, given: dict[str, Any]
) -> Found:
    """Makes the attacks, going on where they were stopped."""
    chosen, threat, kept = subject.chosen, subject.threat, given["kept"]
    images, labels, names = chosen.images, chosen.labels, attacks.names
    drawn = (
        attacks.drawn if not subject.missing or attacks.drawn in names else [_DRAWN_BY_QUERIES, *attacks.sequential][-1]
    )
    shown = details.choose(labels)
    try:
        scores = evaluation.evaluate(
            subject.targets, images, labels, threat, attacks=names, sources=subject.sources, shown=shown.tolist(),
            **given,
        )  # fmt: skip
        found = Found(
            [model.model for model in subject.targets],
            subject.targets,
            chosen,
            threat,
            scores,
            drawn,
            shown,
            dict(scores.predicted),
        )
        for model in subject.targets if attacks.sequential else ():
            if request.save_adversarial:
                found.broken[model.name] = kept.rows(f"adversarial: {model.name}", evaluation.to_unit(images))
            taken = kept.array(f"predicted in turn: {model.name}", np.full(len(labels), -1, np.int32))
            broken_by = np.full(len(labels), -1, np.int16)
            found.standing[model.name], found.results[model.name] = evaluation.evaluate_sequential(
                model, images, labels, threat, attacks=attacks.sequential, adversarial=found.broken.get(model.name),
                predicted=taken, broken_by=broken_by, **given,
            )  # fmt: skip
            found.broke[model.name] = {
                result.attack: broken_by == place for place, result in enumerate(found.results[model.name])
            }
            found.predicted[model.name, details.SEQUENTIAL] = np.where(found.standing[model.name], labels, taken)
    except UserError:
        raise
    except OSError as error:
        if folder is None:
            raise
        raise UserError(
            f"{folder} cannot be written ({(error.strerror or str(error)).lower()}): {_going_on(folder)}"
        ) from error
    except Exception as error:  # A model is the user's own program, and may raise anything.
        if all(entrant.record is not None for entrant in subject.everyone) and not isinstance(
            error, jax.errors.JaxRuntimeError
        ):
            raise
        smaller = ": give a smaller --batch_size" if "RESOURCE_EXHAUSTED" in str(error) else ""
        raise UserError(f"an attack failed while it ran: {one_line(error)}{smaller}; {_going_on(folder)}") from error
    return found


def _going_on(folder):
    return "nothing is kept without --output" if folder is None else "the same command goes on with what was found"


def _record(request: Request, subject: _Subject, found: Found, runs: list[dict[str, Any]]) -> dict[str, Any]:
    chosen = subject.chosen
    return tables.record(
        found.scores,
        subject.threat,
        data={"name": chosen.name, "split": chosen.split, "count": len(chosen.labels)},
        models={entrant.model.name: entrant.description for entrant in subject.everyone},
        settings={
            "seed": request.seed,
            "batch_norm": "batch" if request.use_batch_stats else "running",
        },
        runs=runs,
        sequential=found.results,
        sequential_robust=found.standing,
        alarms=found.alarms,
        curve=found.curve,
        notes=found.notes,
    )


def _write_first(folder: epath.Path, found: Found, values: dict[str, Any]) -> None:
    """Writes what the attacks found, before anything else can fail."""
    try:
        early = (
            "Alarms had not been asked when this was written: the same command asks them, and attacks nothing again."
        )
        tables.write(folder, found.scores, values | {"notes": [*values["notes"], early]})
        if found.broken:
            additions.write_adversarial(folder, found)
    except OSError as error:
        raise UnwrittenError(
            f"the report {folder} cannot be written ({(error.strerror or str(error)).lower()}): make room, or give "
            "another --output",
            found.scores,
            values,
        ) from error

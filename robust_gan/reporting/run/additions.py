"""Adds files and plots to a report when the attacks are done; what fails becomes a note."""

import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from robust_gan import attacks as attacks_lib
from robust_gan import evaluation, prng
from robust_gan.certification.smoothing import ABSTAINED
from robust_gan.data.array_files import chunks
from robust_gan.errors import UserError
from robust_gan.evaluation import EvaluationResult, state
from robust_gan.evaluation.result import predictions
from robust_gan.evaluation.sharded_model import compiled
from robust_gan.evaluation.state import Rows
from robust_gan.reporting import details, evaluation_record, evaluation_report
from robust_gan.reporting import plots as plots_lib
from robust_gan.storage import workdir

_EXAMPLES = 6
"""Examples in the plot; the page shows more."""


def record(result: EvaluationResult, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the record of a result for `report.json`, see `evaluation_record.record`.

    Args:
        result: Of an evaluation.
        runs: Of `EvaluationState.runs`.
    """
    data, config = result.subject.data, result.config
    values = evaluation_record.record(
        result.scores,
        result.subject.threat,
        data={"name": data.name, "split": data.split, "count": len(data.labels)},
        models={evaluated.model.name: evaluated.description for evaluated in result.subject.models},
        settings={"seed": config.seed, "batch_norm": "batch" if config.use_batch_stats else "running"},
        config=config.identity(),
        runs=runs,
        sequential={name: found.attacks for name, found in result.sequential.items()},
        sequential_robust={name: found.robust for name, found in result.sequential.items()},
        alarms=result.alarms,
        certified=result.certified,
        smoothed=_smoothed(result),
        curve=result.curve,
        notes=result.notes,
    )
    if requirements := result.requirements():
        values["requirements"] = [found._asdict() | {"is_met": found.is_met} for found in requirements]
    if result.traces is not None:
        values["traces"] = result.traces
    for name, found in result.corrupted.items():
        values["targets"][name]["corruptions"] = {
            corruption: {"accuracy": correct.mean(1).tolist(), "mean": float(correct.mean())}
            for corruption, correct in found.items()
        }
    return values


def _smoothed(result: EvaluationResult) -> dict[str, dict[str, float]]:
    """Returns for each target the shares of the images on which its smoothed classifier is right, and abstains."""
    labels, epsilon = result.subject.data.labels, result.subject.threat.epsilon
    return {
        name: {
            "clean_accuracy": float(np.mean(found.predicted == labels)),
            # The class is certain within the open ball, attacks have the closed one.
            "certified_accuracy": float(np.mean((found.predicted == labels) & (found.radius > epsilon))),
            "abstained": float(np.mean(found.predicted == ABSTAINED)),
        }
        for name, found in result.smoothed.items()
    }


def check_files(folder: epath.Path) -> None:
    """Refuses a folder where something else has the name of a file of the report.

    Raises:
        UserError: Says which.
    """
    for name in (evaluation_record.RECORD, evaluation_record.TABLES, details.FILE, evaluation_record.ADVERSARIAL):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a folder, where the report has a file: give another --output")


def draw(folder: epath.Path, result: EvaluationResult) -> None:
    """Writes the details image by image, and the plots that were asked for.

    Args:
        folder: Of the report.
        result: Of the evaluation; notes are added to it.
    """
    subject, plots, scores = result.subject, result.config.plots, result.scores
    data, plotted = subject.data, subject.attacks.plotted
    shown = details.choose(data.labels)
    images = evaluation.to_unit(data.images[shown])
    adversarial = {name: made for (name, attack), made in scores.shown.items() if attack == plotted}
    attack = plotted
    if not adversarial:
        adversarial = {name: one.adversarial[shown] for name, one in result.sequential.items()
                       if one.adversarial is not None}  # fmt: skip
        attack = details.SEQUENTIAL if adversarial else plotted
    if "examples" in plots and not adversarial:
        adversarial = result.attempt(evaluation_record.EXAMPLES, lambda: _craft(result, images, shown)) or {}
    found = details.Details(
        labels=data.labels,
        label_names=data.label_names,
        robust=details.get_robust(scores, {name: found.robust for name, found in result.sequential.items()}),
        predicted=predictions(result),
        images=images,
        positions=shown,
        adversarial=adversarial,
        attack=attack if adversarial else "",
    )
    result.attempt(details.FILE, lambda: details.write(folder, found))
    if "examples" in plots and adversarial:
        result.attempt(evaluation_record.EXAMPLES, lambda: _draw_examples(folder, result, found))
    if (curve := result.curve) is not None:
        colours = {name: index for index, name in enumerate(curve.robust_accuracy)}
        epsilon, norm = float(subject.threat.epsilon), subject.threat.norm

        def draw_curve() -> None:
            series = plots_lib.curve(curve.robust_accuracy, curve.epsilons, len(data.labels), colours)
            labels = {"x": f"epsilon ({norm}, pixels in [0, 1])", "y": f"robust accuracy in %, {curve.attack}"}
            marks = {epsilon: f"{epsilon:.3g}"}
            drawn = plots_lib.lines(series, percent=True, legend=True, marks=marks, **labels)
            plots_lib.save(drawn, folder / evaluation_record.CURVE)

        result.attempt(evaluation_record.CURVE, draw_curve)
    if (traces := result.traces) is not None:
        numbers = {name: index for index, name in enumerate(traces["models"])}
        path = folder / evaluation_record.TRACE
        result.attempt(evaluation_record.TRACE, lambda: plots_lib.save(plots_lib.traces(traces, numbers), path))
    if "transfer" in plots:
        made = plotted if plotted in scores.attacks else scores.attacks[-1]
        matrix = evaluation_report.transfer_matrix(scores, made)
        path = folder / evaluation_record.TRANSFER
        result.attempt(evaluation_record.TRANSFER, lambda: plots_lib.save(plots_lib.transfer(*matrix, made), path))


def write_adversarial(folder: epath.Path, labels: np.ndarray, adversarial: Mapping[str, Rows]) -> None:
    """Writes the adversarial images of a sequential evaluation by the names of the models, and the labels.

    Args:
        folder: Of the report.
        labels: `[N]`.
        adversarial: For each model its images.
    """
    # Not np.savez: it needs whole arrays, and its own arguments, `file` for one, are no names of arrays there. Not
    # compressed: it takes longer than cheap attacks do, and gains little on noise.
    with workdir.open_atomically(folder / evaluation_record.ADVERSARIAL) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("labels.npy", "w") as member:
            np.lib.format.write_array(member, labels, allow_pickle=False)
        for name, rows in adversarial.items():
            # A model may be called `labels`.
            name = f"adversarial: {name}" if name == "labels" else name
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": rows.shape}
                np.lib.format.write_array_header_1_0(member, header)
                for part in chunks(rows, state.PART):
                    member.write(np.ascontiguousarray(part, "<f4").data)


def _craft(result, images, shown):
    """Makes the attack of the plots on the images that are shown."""
    subject = result.subject
    key, labels = prng.make_key(result.config.seed), subject.data.labels[shown].astype(np.int32)
    attack = attacks_lib.by_name(subject.attacks.plotted)
    return {
        target.name: np.asarray(compiled(attack, target.model.logits_fn)(key, images, labels, subject.threat))
        for target in subject.targets
    }


def _draw_examples(folder, result, found):
    """Draws some images of different classes under a white-box attack."""
    names = found.label_names
    adversarial = {name: images[:_EXAMPLES] for name, images in found.adversarial.items()}
    predicted = {}
    for target in result.subject.targets:
        classes = np.argmax(np.asarray(target.model.logits_fn(jnp.asarray(adversarial[target.name]))), axis=-1)
        predicted[target.name] = [names[index] for index in classes]
    labels = [names[index] for index in found.labels[found.positions[:_EXAMPLES]]]
    plots_lib.save(plots_lib.examples(found.images[:_EXAMPLES], labels, adversarial, predicted),
                   folder / evaluation_record.EXAMPLES)  # fmt: skip

"""What is added to a report when the attacks are done: alarms, the curve, images. What fails is said in a sentence."""

import dataclasses
import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from robust_gan import attacks as attacks_lib
from robust_gan import evaluation, prng
from robust_gan.errors import UserError, one_line
from robust_gan.evaluation import AttackResult, Curve, Model, Scores, alarms
from robust_gan.evaluation.alarms import Alarm
from robust_gan.evaluation.loading import EvaluationData
from robust_gan.evaluation.sharded_model import ShardedModel, compiled
from robust_gan.evaluation.state import Rows
from robust_gan.reporting import details, tables
from robust_gan.reporting import plots as pictures_lib
from robust_gan.reporting.run.request import Request
from robust_gan.storage import workdir
from robust_gan.types import ThreatModel

_EXAMPLES = 6
"""In the picture; the page has more."""


@dataclasses.dataclass
class Found:
    """What an evaluation has found so far.

    Attributes:
        targets: The models under attack.
        placed: The same on their devices.
        chosen: The images.
        threat: The threat model.
        scores: Of the attacks that were made on every model.
        drawn: The attack of pictures and curve.
        shown: `[E]`, positions of the images to look at.
        predicted: As in `details.Details`.
        standing: For each target bool `[N]`, what stood under attacks in turn.
        results: For each target what attacks in turn did.
        broke: For each target which images fell to which attack in turn.
        broken: For each target the images that attacks in turn broke, where they are kept.
        alarms: For each target.
        curve: Robust accuracy against epsilon, where it was asked for.
        notes: Sentences: what could not be asked or written.
    """

    targets: list[Model]
    placed: list[ShardedModel]
    chosen: EvaluationData
    threat: ThreatModel
    scores: Scores
    drawn: str
    shown: np.ndarray
    predicted: dict[tuple[str, str], np.ndarray]
    standing: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    results: dict[str, list[AttackResult]] = dataclasses.field(default_factory=dict)
    broke: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    broken: dict[str, Rows] = dataclasses.field(default_factory=dict)
    alarms: dict[str, list[Alarm]] = dataclasses.field(default_factory=dict)
    curve: Curve | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def attempt(self, what: str, make: Callable[[], Any]) -> Any:
        """Returns what a function returns; where it fails, notes why and returns None."""
        try:
            return make()
        except Exception as error:  # A model is the user's own program, and a report is not lost for a picture.
            told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
            self.notes.append(f"{what}: not made: {told.rstrip('.')}.")
            return None


def check_files(folder: epath.Path) -> None:
    """Refuses a folder where something else has the name of a file of the report.

    Raises:
        UserError: Says which.
    """
    for name in (tables.RECORD, tables.TABLES, details.FILE, tables.ADVERSARIAL):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a folder, where the report has a file: give another --output")


def examine(request: Request, found: Found, missing: Mapping[str, str], most: int, given: Mapping[str, Any]) -> None:
    """Traces the curve and asks the alarms.

    Args:
        request: What was asked for.
        found: Added to.
        missing: For models without a derivative why they have none.
        most: Images at once on one device.
        given: What `evaluation.evaluate` takes.
    """
    images, labels, threat = found.chosen.images, found.chosen.labels, found.threat
    if "curve" in request.pictures:

        def trace() -> Curve:
            return evaluation.trace_curve(found.placed, images, labels, threat, attack=found.drawn, **given)

        found.curve = found.attempt(tables.CURVE, trace)
    for model in found.targets:
        check_scores = alarms.check_scores(
            found.scores, model.name, found.broke.get(model.name, {}), predicted=found.predicted
        )

        def ask(model: Model = model) -> list[Alarm]:
            # Those of the run that attacked: a record does not mix two runs.
            name, kept = f"alarms of {model.name}", given["kept"]
            if (told := kept.recall(name)) is not None:
                return [Alarm(*alarm) for alarm in told]
            asked = alarms.check_model(
                model.logits_fn, images, labels, threat, batch_size=most, seed=request.seed,
                underivable=missing.get(model.name, ""),
                robust={attack: found.scores.robust[name, maker, attack] for name, maker, attack in found.scores.robust
                        if name == maker == model.name},
                predicted=found.scores.predicted.get((model.name, evaluation.CLEAN)),
            )  # fmt: skip
            kept.remember(name, asked)
            return asked

        check_model = found.attempt(f"alarms on {model.name}", ask) or []
        check_curve = [] if found.curve is None else alarms.check_curve(found.curve, model.name, len(labels))
        given["kept"].flush()
        found.alarms[model.name] = [*check_model, *check_scores, *check_curve]


def draw(request: Request, folder: epath.Path, found: Found) -> None:
    """Writes what was found image by image, and draws the pictures that were asked for.

    Args:
        request: What was asked for.
        folder: Of the report.
        found: Whose notes are added to.
    """
    images = evaluation.to_unit(found.chosen.images[found.shown])
    adversarial = {name: made for (name, attack), made in found.scores.shown.items() if attack == found.drawn}
    if "examples" in request.pictures and not adversarial:
        adversarial = found.attempt(tables.EXAMPLES, lambda: _craft(found, images, request.seed)) or {}
    found_by_image = details.Details(
        labels=found.chosen.labels,
        label_names=found.chosen.label_names,
        robust=details.get_robust(found.scores, found.standing),
        predicted=found.predicted,
        images=images,
        positions=found.shown,
        adversarial=adversarial,
        attack=found.drawn if adversarial else "",
    )
    found.attempt(details.FILE, lambda: details.write(folder, found_by_image))
    if "examples" in request.pictures and adversarial:
        found.attempt(tables.EXAMPLES, lambda: _draw_examples(folder, found.targets, found_by_image))
    curve = found.curve
    if curve is not None:
        epsilon, norm = float(found.threat.epsilon), found.threat.norm
        found.attempt(tables.CURVE, lambda: pictures_lib.draw_curve(folder / tables.CURVE, curve, epsilon, norm))
    if "transfer" in request.pictures:
        made = found.drawn if found.drawn in found.scores.attacks else found.scores.attacks[-1]
        matrix = tables.transfer_matrix(found.scores, made)
        found.attempt(
            tables.TRANSFER, lambda: pictures_lib.draw_transfer(folder / tables.TRANSFER, *matrix, made)
        )  # fmt: skip


def write_adversarial(folder: epath.Path, found: Found) -> None:
    """Writes the images that attacks in turn broke, by the names of the models, and the labels.

    Args:
        folder: Of the report.
        found: Whose images.
    """
    # Not np.savez: its own arguments, `file` for one, are no names of arrays there. A model may be called `labels`.
    arrays = {"labels": found.chosen.labels} | {
        f"adversarial: {name}" if name == "labels" else name: rows.array for name, rows in found.broken.items()
    }
    buffer = io.BytesIO()  # Not compressed: it takes longer than cheap attacks do, and gains little on noise.
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    workdir.write_bytes(folder / tables.ADVERSARIAL, buffer.getvalue())


def _craft(found, images, seed):
    """Makes the attack of the pictures on the images that are shown."""
    key, labels = prng.make_key(seed), found.chosen.labels[found.shown].astype(np.int32)
    attack = attacks_lib.by_name(found.drawn)
    return {
        model.name: np.asarray(compiled(attack, model.logits_fn)(key, images, labels, found.threat))
        for model in found.targets
    }


def _draw_examples(folder, models, found):
    """Draws some images of different classes, attacked in the open."""
    names, labels = found.label_names, found.labels[found.positions[:_EXAMPLES]]
    columns = []
    for model in models:
        adversarial = found.adversarial[model.name][:_EXAMPLES]
        predicted = np.argmax(np.asarray(model.logits_fn(jnp.asarray(adversarial))), axis=-1)
        columns.append(
            {
                "name": model.name,
                "adversarial": adversarial,
                "predicted": [names[index] for index in predicted],
                "right": predicted == labels,
            }
        )
    pictures_lib.draw_examples(
        folder / tables.EXAMPLES, found.images[:_EXAMPLES], [names[index] for index in labels], columns
    )

"""From checkpoints and other classifiers to a report: loads them, scores them on one split, writes what was found."""

import io
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from robust_gan import attacks as attacks_lib
from robust_gan import details, entrants, evaluation, networks, parallel, report, report_folder, threat_model, workdir
from robust_gan import pictures as pictures_lib
from robust_gan.config import NORMS, ThreatConfig, check_epsilon
from robust_gan.errors import UserError
from robust_gan.evaluation import Scores, alarms

PICTURES = ("examples", "curve", "transfer")
"""What can be drawn: adversarial images, robust accuracy against epsilon, and who breaks whom."""

_EXAMPLES = 6
"""In the picture; the page has more."""
_DRAWN = "pgd40"


def compare(
    targets: Sequence[str] = (),
    *,
    models: Sequence[str] = (),
    sources: Sequence[str] = (),
    attacks: str | None = None,
    in_turn: str | None = None,
    suite: str = "",
    dataset: str = "",
    split: str = "test",
    count: int = 0,
    norm: str = "",
    epsilon: float | None = None,
    batch_size: int = 500,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    data_dir: str = "",
    output: epath.PathLike | None = None,
    overwrite: bool = False,
    pictures: Sequence[str] = (),
    save_adversarial: bool = False,
    batch_statistics: bool = False,
    progress: bool | None = None,
) -> tuple[Scores, dict[str, Any]]:
    """Evaluates checkpoints, white box and by transfer, and writes a report.

    Args:
        targets: `DIR[@STEP]` each: the models under attack; their attacks are tried on each other too.
        models: `package.module:function` each: further models under attack; the function returns a `logits_fn`.
        sources: `DIR[@STEP]` each: further models to make attacks on.
        attacks: Names, separated by commas: each is made on every model and tried on every target. None for those of
            the suite.
        in_turn: Names, separated by commas: made on each target alone, each on the images that all before it left
            standing, as AutoAttack does. None for those of the suite.
        suite: A name of `evaluation.SUITES`; without one `clean,fgsm,pgd10,generator`.
        dataset: A TFDS data set, or an `.npz` of images and labels; empty for that of the first checkpoint.
        split: `test`, `validation` or `train`.
        count: Only the first images of the split; 0 for all.
        norm: `linf` or `l2`; empty for that of the first target's training.
        epsilon: Radius in the unit of [0, 1]; None for that of the first target's training.
        batch_size: Images at once.
        seed: Of the attacks.
        devices: Where; None for all.
        data_dir: Where the prepared data lie; empty for what the first target was trained with.
        output: Folder of the report; None for no report. Stopped, the same evaluation goes on there.
        overwrite: Begin anew where the folder holds another evaluation.
        pictures: Any of `PICTURES`, drawn into the folder (needs the extra `plot`).
        save_adversarial: Write the images that attacks in turn broke to `adversarial.npz`.
        batch_statistics: Normalise with the statistics of each evaluated batch, as the released code of the paper does:
            lenient, and dependent on the batch size; the report says so.
        progress: A bar; None for only where stderr is a terminal.

    Returns:
        The scores, and the record that `report.json` holds.

    Raises:
        UserError: A checkpoint is missing, damaged or does not fit the first one; an attack or split is unknown; the
            report folder cannot be written, or holds another evaluation. Nothing is written then.
    """
    chosen_suite = evaluation.suite_of(suite, attacks, in_turn)
    names, turns = (evaluation.attack_names(text) for text in chosen_suite)
    if batch_size < 1 or count < 0:
        raise UserError(f"batch_size must be at least 1 and count at least 0, not {batch_size} and {count}")
    if norm and norm not in NORMS:
        raise UserError(f"the norm must be one of {', '.join(NORMS)}, not {norm!r}")
    if not targets and not models:
        raise UserError("give at least one checkpoint, or a model of your own, to evaluate")
    on_gradient = [name for name in names if name not in (evaluation.GENERATOR, *evaluation.FRESH)]
    drawn = on_gradient[-1] if on_gradient else _DRAWN
    _check_outputs(pictures, save_adversarial, output, names, turns)
    writes = parallel.is_first()
    folder = None
    if output is not None:
        folder = epath.Path(parallel.from_first(lambda: os.fspath(report_folder.check(output))))

    given, brought = parallel.together(
        lambda: (
            entrants.from_checkpoints([*targets, *sources], batch_statistics=batch_statistics),
            entrants.from_functions(models),
        )
    )
    attackable = [*given[: len(targets)], *brought]
    everyone = [*attackable, *given[len(targets) :]]
    if attacks is None and all(entrant.model.generator is None for entrant in everyone):
        names = tuple(name for name in names if name != evaluation.GENERATOR)  # Of a suite; who names it sees a dash.
    first = next((entrant.record for entrant in everyone if entrant.record is not None), None)
    if first is None and epsilon is None:
        raise UserError("--epsilon is missing: a model of your own does not say it; give it in units of [0, 1]: 8/255")
    norm = norm or (first.config.threat.norm if first else "linf")
    epsilon = first.config.threat.epsilon if first and epsilon is None else epsilon
    check_epsilon(epsilon, norm=norm)
    threat = threat_model.from_config(ThreatConfig(norm, float(epsilon)))  # type: ignore[arg-type]
    chosen = parallel.together(
        lambda: entrants.choose_data(everyone, dataset=dataset, split=split, data_dir=data_dir, count=count)
    )
    images, labels = chosen.images, chosen.labels
    attacked, extra = ([entrant.model for entrant in part] for part in (attackable, everyone[len(attackable) :]))
    _check_attacks({*names, *turns}, everyone, images.shape[1:])
    kept, broken = evaluation.Kept(), {}
    what = report_folder.subject(
        everyone, chosen, threat, attacks=names, in_turn=turns, seed=seed, batch_statistics=batch_statistics,
        save_adversarial=save_adversarial,
        # By the statistics of a batch, and only so, figures depend on its size.
        **({"batch_size": batch_size} if batch_statistics else {}),
    )  # fmt: skip
    parallel.check_same(what | {"batch_size": batch_size, "output": os.fspath(output or ""), "pictures": [*pictures]})
    if folder is not None:
        everybody = [entrant.model for entrant in everyone]

        def claim() -> evaluation.Kept:
            return report_folder.claim(
                folder, what, overwrite=overwrite,
                differs=lambda found: found.differs(everybody, images, labels, threat, seed),
            )  # fmt: skip

        kept = parallel.together(claim if writes else lambda: kept).shared()

    began = time.perf_counter()
    in_turn_images = (1 + len(turns)) * len(labels) if turns else 0
    progress = writes and (sys.stderr.isatty() if progress is None else progress)
    with tqdm.tqdm(
        total=evaluation.total(attacked, extra, names, len(labels)) + len(attacked) * in_turn_images,
        unit="image",
        disable=not progress,
    ) as bar:
        settings = {"batch_size": batch_size, "seed": seed, "devices": devices, "kept": kept, "advance": bar.update}
        shown = details.choose(labels).tolist()
        scores = evaluation.evaluate(
            attacked, images, labels, threat, attacks=names, sources=extra, shown=shown, **settings
        )  # fmt: skip
        standing, rungs, broke = {}, {}, {}
        predicted = dict(scores.predicted)
        for model in attacked if turns else ():
            if save_adversarial:
                broken[model.name] = kept.array(f"adversarial: {model.name}", evaluation.to_unit(images))
            taken = kept.array(f"predicted in turn: {model.name}", np.full(len(labels), -1, np.int16))
            fell_to = np.full(len(labels), -1, np.int16)
            standing[model.name], rungs[model.name] = evaluation.survive(
                model, images, labels, threat, attacks=turns, adversarial=broken.get(model.name), predicted=taken,
                fell_to=fell_to, **settings,
            )  # fmt: skip
            broke[model.name] = {rung.attack: fell_to == place for place, rung in enumerate(rungs[model.name])}
            predicted[model.name, details.IN_TURN] = np.where(standing[model.name], labels, taken)
        curve = None
        if "curve" in pictures:
            curve = evaluation.trace_curve(attacked, images, labels, threat, attack=drawn, **settings)
    found = {
        model.name: [
            *alarms.of_model(model.logits_fn, images, labels, threat, seed=seed),
            *alarms.of_scores(scores, model.name, broke.get(model.name, {})),
            *([] if curve is None else alarms.of_curve(curve, model.name, len(labels))),
        ]
        for model in attacked
    }
    values = report.record(
        scores,
        threat,
        data={"name": chosen.name, "split": chosen.split, "count": len(labels)},
        models={entrant.model.name: entrant.description for entrant in everyone},
        settings={
            "seed": seed,
            "batch_size": batch_size,
            "num_devices": len(devices or parallel.find_devices()),
            "batch_norm": "batch" if batch_statistics else "running",
        },
        seconds=time.perf_counter() - began,
        in_turn=rungs,
        standing=standing,
        alarms=found,
        curve=curve,
    )
    if folder is not None and writes:
        report.write(folder, scores, values)
        if broken:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, labels=labels, **broken)  # type: ignore[arg-type]
            workdir.write_bytes(folder / report.ADVERSARIAL, buffer.getvalue())
        adversarial = {name: found for (name, attack), found in scores.shown.items() if attack == drawn}
        if "examples" in pictures and not adversarial:
            adversarial = _craft(attacked, images[shown], labels[shown], drawn, threat, seed)
        found_by_image = details.Details(
            labels=labels,
            label_names=chosen.label_names,
            stood=details.stood_of(scores, standing),
            predicted=predicted,
            images=evaluation.to_unit(images[shown]),
            positions=np.asarray(shown),
            shown=adversarial,
            attack=drawn if adversarial else "",
        )
        details.write(folder, found_by_image)
        if "examples" in pictures:
            _draw(folder / report.EXAMPLES, attacked, found_by_image)
        if curve is not None:
            pictures_lib.draw_curve(folder / report.CURVE, curve, float(threat.epsilon), threat.norm)
        if "transfer" in pictures:
            made = scores.attacks[-1] if drawn not in scores.attacks else drawn
            pictures_lib.draw_transfer(folder / report.TRANSFER, *report.transfer_matrix(scores, made), made)
    return scores, values


def _check_attacks(names, everyone, image_shape):
    """Refuses attacks that cannot be made, before the first one is."""
    if names & set(evaluation.FRESH):
        networks.generator_for(image_shape)
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    for model in (entrant.model for entrant in everyone):
        num_classes = jax.eval_shape(model.logits_fn, images).shape[-1]
        for name in sorted(names):
            if num_classes < (needed := attacks_lib.classes_needed(name)):
                raise UserError(
                    f"{name} needs a classifier of at least {needed} classes, but {model.name} has {num_classes}: "
                    "leave it out with --attacks or --in_turn"
                )


def _check_outputs(pictures, save_adversarial, output, names, turns):
    if unknown := [name for name in pictures if name not in PICTURES]:
        raise UserError(f"there is no picture {unknown[0]!r}: the pictures are {', '.join(PICTURES)}")
    if output is None and (pictures or save_adversarial):
        raise UserError("pictures and adversarial images go to the report folder: give --output")
    if "transfer" in pictures and not names:
        raise UserError("transfer.png shows an attack that is made on every model: name one with --attacks")
    if save_adversarial and not turns:
        raise UserError("adversarial.npz holds what attacks in turn broke: give --suite=autoattack or --in_turn")
    if pictures:
        pictures_lib.check_plot()


def _craft(models, images, labels, attack, threat, seed):
    craft, images = jax.jit(attacks_lib.by_name(attack)), evaluation.to_unit(images)
    return {
        model.name: np.asarray(craft(model.logits_fn, jax.random.key(seed), images, labels, threat)) for model in models
    }


def _draw(path, models, found):
    """Draws some images of different classes, attacked in the open."""
    names, labels = found.label_names, found.labels[found.positions[:_EXAMPLES]]
    columns = []
    for model in models:
        adversarial = found.shown[model.name][:_EXAMPLES]
        predicted = np.argmax(model.logits_fn(adversarial), axis=-1)
        columns.append(
            {
                "name": model.name,
                "adversarial": adversarial,
                "predicted": [names[index] for index in predicted],
                "right": predicted == labels,
            }
        )
    pictures_lib.draw_examples(path, found.images[:_EXAMPLES], [names[index] for index in labels], columns)

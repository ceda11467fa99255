"""From checkpoints to a report: loads the models, checks that they fit one another, scores them on one split."""

import dataclasses
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
from robust_gan import checkpoint, data, evaluation, parallel, pictures, report, threat_model
from robust_gan.checkpoint import Record
from robust_gan.config import NORMS, ThreatConfig, check_epsilon
from robust_gan.errors import UserError
from robust_gan.evaluation import Model, Scores, alarms

SPLITS = ("test", "validation", "train")

_EXAMPLES = 6


def compare(
    targets: Sequence[str],
    *,
    sources: Sequence[str] = (),
    attacks: str | None = None,
    in_turn: str | None = None,
    suite: str = "",
    split: str = "test",
    count: int = 0,
    norm: str = "",
    epsilon: float | None = None,
    batch_size: int = 500,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    data_dir: str = "",
    output: epath.PathLike | None = None,
    examples: bool = False,
    batch_statistics: bool = False,
    progress: bool | None = None,
) -> tuple[Scores, dict[str, Any]]:
    """Evaluates checkpoints, white box and by transfer, and writes a report.

    Args:
        targets: `DIR[@STEP]` each: the models under attack; their attacks are tried on each other too.
        sources: `DIR[@STEP]` each: further models to make attacks on.
        attacks: Names, separated by commas: each is made on every model and tried on every target. None for those of
            the suite.
        in_turn: Names, separated by commas: made on each target alone, each on the images that all before it left
            standing, as AutoAttack does. None for those of the suite.
        suite: A name of `evaluation.SUITES`; without one `clean,fgsm,pgd10,generator`.
        split: `test`, `validation` or `train`.
        count: Only the first images of the split; 0 for all.
        norm: `linf` or `l2`; empty for that of the first target's training.
        epsilon: Radius in the unit of [0, 1]; None for that of the first target's training.
        batch_size: Images at once.
        seed: Of the attacks.
        devices: Where; None for all.
        data_dir: Where the prepared data lie; empty for what the first target was trained with.
        output: Folder of the report; None for no report.
        examples: Draw a picture too (needs the extra `plot`).
        batch_statistics: Normalise with the statistics of each evaluated batch, as the released code of the paper does:
            lenient, and dependent on the batch size; the report says so.
        progress: A bar; None for only where stderr is a terminal.

    Returns:
        The scores, and the record that `report.json` holds.

    Raises:
        UserError: A checkpoint is missing, damaged or does not fit the first one; an attack or split is unknown; the
            report folder cannot be written. Nothing is written then.
    """
    chosen_suite = evaluation.suite_of(suite, attacks, in_turn)
    names, turns = (evaluation.attack_names(text) for text in chosen_suite)
    if split not in SPLITS:
        raise UserError(f"the split must be one of {', '.join(SPLITS)}, not {split!r}")
    if batch_size < 1 or count < 0:
        raise UserError(f"batch_size must be at least 1 and count at least 0, not {batch_size} and {count}")
    if norm and norm not in NORMS:
        raise UserError(f"the norm must be one of {', '.join(NORMS)}, not {norm!r}")
    if not targets:
        raise UserError("give at least one checkpoint to evaluate")
    drawn = next((name for name in reversed(names) if name != evaluation.GENERATOR), None)
    if examples:
        if output is None:
            raise UserError("the picture of examples goes to the report folder: give --output")
        if drawn is None:
            raise UserError("a picture needs an attack on the classifier among --attacks, such as pgd10")
        pictures.check_plot()
    folder = None if output is None else _check_output(output)

    records = _read_records([*targets, *sources])
    first = next(iter(records.values()))
    for name, record in records.items():
        _check_fits(name, record, first)
    norm = norm or first.config.threat.norm
    epsilon = first.config.threat.epsilon if epsilon is None else epsilon
    check_epsilon(epsilon, norm=norm)
    threat = threat_model.from_config(ThreatConfig(norm, float(epsilon)))
    chosen = _load_split(first, split, data_dir)
    if count > len(chosen.labels):
        raise UserError(f"count is {count}, but the {split} split of {first.data.name} has {len(chosen.labels)} images")
    images, labels = chosen.images[: count or None], chosen.labels[: count or None]
    models = [
        Model(
            name,
            checkpoint.classifier_of(record, batch_statistics=batch_statistics),
            checkpoint.attack_of(record) if checkpoint.has_generator(record) else None,
        )
        for name, record in records.items()
    ]
    attacked, extra = models[: len(targets)], models[len(targets) :]
    if folder is not None:
        _make(folder)

    began = time.perf_counter()
    in_turn_images = (1 + len(turns)) * len(labels) if turns else 0
    progress = sys.stderr.isatty() if progress is None else progress
    with tqdm.tqdm(
        total=evaluation.total(attacked, extra, names, len(labels)) + len(attacked) * in_turn_images,
        unit="image",
        disable=not progress,
    ) as bar:
        scores = evaluation.evaluate(
            attacked, images, labels, threat, attacks=names, sources=extra, batch_size=batch_size, seed=seed,
            devices=devices, advance=bar.update,
        )  # fmt: skip
        standing, rungs = {}, {}
        for model in attacked if turns else ():
            standing[model.name], rungs[model.name] = evaluation.survive(
                model, images, labels, threat, attacks=turns, batch_size=batch_size, seed=seed, devices=devices,
                advance=bar.update,
            )  # fmt: skip
    found = {
        model.name: [
            *alarms.of_model(model.logits_fn, images, labels, threat, seed=seed),
            *alarms.of_scores(scores, model.name, standing.get(model.name)),
        ]
        for model in attacked
    }
    values = report.record(
        scores,
        threat,
        data={"name": first.data.name, "split": split, "count": len(labels)},
        models={
            name: {
                "checkpoint": str(record.directory),
                "step": record.step,
                "trained_with": record.config.adversary.name,
                "network": record.config.classifier.network,
                "seed": record.config.seed,
            }
            for name, record in records.items()
        },
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
    )
    if folder is not None:
        report.write(folder, scores, values)
        if examples:
            _draw(folder / report.EXAMPLES, attacked, images, labels, drawn, threat, seed, first)
    return scores, values


def _read_records(locations: Sequence[str]) -> dict[str, Record]:
    """Reads the records by name: the folder's last part, or the whole path where two share it."""
    if "" in locations:
        raise UserError("an empty name is among the checkpoints: give DIR[@STEP], separated by single commas")
    parsed = [checkpoint.parse_location(location) for location in locations]
    short = [_short_name(directory) for directory, _ in parsed]
    names = [name if short.count(name) == 1 else location for name, location in zip(short, locations, strict=True)]
    records: dict[str, Record] = {}
    for name, location in zip(names, parsed, strict=True):
        record = checkpoint.read_record(*location)
        # A model beside itself would pass its white box attacks off as black box.
        if name in records or any((record.directory, record.step) == (r.directory, r.step) for r in records.values()):
            raise UserError(f"the checkpoint {name} is given twice (step {record.step} of {record.directory})")
        records[name] = record
    return records


def _short_name(directory: str) -> str:
    path = epath.Path(directory).expanduser().resolve()
    return path.parent.name if path.name == checkpoint.FOLDER else path.name


def _check_fits(name: str, record: Record, first: Record) -> None:
    for what, here, there in (
        ("images of shape", record.data.image_shape, first.data.image_shape),
        ("classes:", record.data.num_classes, first.data.num_classes),
        ("the data set", record.data.name, first.data.name),
    ):
        if here != there:
            raise UserError(
                f"{name} was trained on {what} {here}, the first checkpoint on {there}: "
                "attacks transfer only between models of the same data"
            )


def _load_split(record: Record, split: str, data_dir: str) -> data.Split:
    config = record.config.data
    chosen = getattr(data.from_config(dataclasses.replace(config, data_dir=data_dir or config.data_dir)), split)
    evaluation.check_images(chosen.images, chosen.labels, record.data.num_classes)
    if chosen.images.shape[1:] != record.data.image_shape:
        raise UserError(
            f"{config.name} has images of shape {chosen.images.shape[1:]} here, but the checkpoint was trained on "
            f"{record.data.image_shape}"
        )
    return chosen


def _check_output(directory: epath.PathLike) -> epath.Path:
    """Refuses a folder that cannot be written as far as can be seen without making it."""
    path = epath.Path(directory).expanduser().resolve()
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"the output {path} is a file, or lies below one: give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"the output {path} cannot be written (permission denied): give another folder")
    return path


def _make(path: epath.Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the output {path} cannot be made ({str(error.strerror).lower()}): give another folder"
        ) from error


def _draw(path, models, images, labels, attack, threat, seed, record) -> None:
    """Draws some images of different classes, attacked in the open with the last attack of the evaluation."""
    _, rows = np.unique(labels, return_index=True)
    rows = np.sort(rows)[:_EXAMPLES]
    clean, columns = evaluation.to_unit(images[rows]), []
    for model in models:
        craft = jax.jit(attacks_lib.by_name(attack))
        adversarial = craft(model.logits_fn, jax.random.key(seed), clean, labels[rows], threat)
        predicted = np.argmax(model.logits_fn(adversarial), axis=-1)
        columns.append(
            {
                "name": model.name,
                "adversarial": np.asarray(adversarial),
                "predicted": [record.data.label_names[index] for index in predicted],
                "right": predicted == labels[rows],
            }
        )
    pictures.draw_examples(path, clean, [record.data.label_names[index] for index in labels[rows]], columns)

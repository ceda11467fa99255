"""Who is evaluated and on what: checkpoints and classifiers that people bring, and images that fit them all."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from robust_gan import checkpoint, data, evaluation
from robust_gan.checkpoint import Record
from robust_gan.config import DataConfig
from robust_gan.errors import UserError
from robust_gan.evaluation import Model, user_inputs
from robust_gan.storage import paths

SPLITS = ("test", "validation", "train")


_NO_DATA = (".npy", ".pt", ".pth", ".pkl", ".csv", ".zip")
"""What people take for data."""


class EvaluatedModel(NamedTuple):
    """A model and where it comes from.

    Attributes:
        model: It.
        description: For the report.
        record: Of its checkpoint; None for a classifier that somebody brought.
    """

    model: Model
    description: dict[str, Any]
    record: Record | None = None


class EvaluationData(NamedTuple):
    """The images of an evaluation.

    Attributes:
        name: Of the data set or file.
        split: Of the data set; `all` for a file.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        label_names: Of the classes.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]


def from_checkpoints(locations: Sequence[str], *, use_batch_stats: bool = False) -> list[EvaluatedModel]:
    """Loads checkpoints, `DIR[@STEP]` each, named by the folder's last part, or the whole where two share it.

    Args:
        locations: Where.
        use_batch_stats: See `checkpoint.get_classifier`.

    Raises:
        UserError: One is missing, damaged, given twice, or of other data than the first.
    """
    records = _read_records(locations)
    for name, record in records.items():
        _check_fits(name, record, next(iter(records.values())))
    return [
        EvaluatedModel(
            Model(
                name,
                checkpoint.get_classifier(record, use_batch_stats=use_batch_stats),
                checkpoint.get_attack(record) if checkpoint.has_generator(record) else None,
            ),
            {
                "checkpoint": str(record.directory),
                "step": record.step,
                "trained_with": record.config.adversary.name,
                "network": record.config.classifier.network,
                "seed": record.config.seed,
            },
            record,
        )
        for name, record in records.items()
    ]


def from_functions(names: Sequence[str]) -> list[EvaluatedModel]:
    """Loads classifiers that people bring, `package.module:function` each.

    Raises:
        UserError: See `bringing.load_model`; or one is given twice.
    """
    if len(set(names)) < len(names):
        raise UserError(f"a model is given twice among {', '.join(names)}")
    return [EvaluatedModel(Model(name, user_inputs.load_model(name)), {"function": name}) for name in names]


def choose_data(
    entrants: Sequence[EvaluatedModel], *, dataset: str, split: str, data_dir: str, count: int, channels: str = ""
) -> EvaluationData:
    """Loads the images, and checks that all models can take them.

    Args:
        entrants: Whom to evaluate.
        dataset: A TFDS data set, or an `.npz` file of `images` and `labels`; empty for that of the first checkpoint.
        split: `test`, `validation` or `train`; of no meaning for a file.
        data_dir: Where prepared data lie; empty for where the first checkpoint's training found them.
        count: Only the first images; 0 for all.
        channels: `last` to take the images of a file as they are, whatever their shape looks like.

    Raises:
        UserError: There is no such split, there are too few images, or a model does not fit them.
        DataError: The data are not prepared, or not what can be scored.
    """
    if split not in SPLITS:
        raise UserError(f"the split must be one of {', '.join(SPLITS)}, not {split!r}")
    first = next((entrant.record for entrant in entrants if entrant.record is not None), None)
    if epath.Path(dataset).suffix in _NO_DATA:
        raise UserError(f"--data is a data set such as mnist, or an .npz of images and labels, not {dataset}")
    if dataset.endswith(".npz"):
        arrays = user_inputs.load_arrays(dataset, channels=channels)
        num_classes = int(arrays.labels.max()) + 1 if arrays.labels.size else 0
        names = first.data.label_names if first else tuple(map(str, range(num_classes)))
        chosen = EvaluationData(epath.Path(dataset).name, "all", *arrays, names)
    else:
        if not dataset and first is None:
            raise UserError("--data is missing: give a data set such as mnist, or an .npz of images and labels")
        same = first is not None and dataset in ("", first.data.name)
        config = first.config.data if first is not None and same else DataConfig(dataset)
        config = dataclasses.replace(config, data_dir=data_dir or config.data_dir)
        loaded = data.load_split(config, split, count=count, was_trained_on=same)
        chosen = EvaluationData(loaded.name, split, loaded.images, loaded.labels, loaded.label_names)
    num_classes = first.data.num_classes if first is not None else len(chosen.label_names)
    evaluation.check_images(chosen.images, chosen.labels, num_classes)
    if count > len(chosen.labels):
        raise UserError(
            f"count is {count}, but the {chosen.split} split of {chosen.name} has {len(chosen.labels)} images"
        )
    for entrant in entrants:
        shape = chosen.images.shape[1:]
        if entrant.record is not None and entrant.record.data.image_shape != shape:
            raise UserError(
                f"{chosen.name} has images of shape {shape} here, but {entrant.model.name} was trained on "
                f"{entrant.record.data.image_shape}"
            )
    return chosen._replace(images=chosen.images[: count or None], labels=chosen.labels[: count or None])


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
    path = paths.locate(directory)
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

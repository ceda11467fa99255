"""Loads the models, attacks and images of an evaluation, and checks that they fit."""

import dataclasses
import os
import sys
from collections.abc import Sequence

from robust_gan import checkpoint, data, interop
from robust_gan.attacks._checks import check_signature
from robust_gan.checkpoint import Record
from robust_gan.config import DataConfig, imports
from robust_gan.data import own
from robust_gan.data.array_files import check_images
from robust_gan.errors import DataError, UserError
from robust_gan.evaluation.config import EvaluationConfig
from robust_gan.evaluation.models import EvaluatedModel, EvaluationData, Model
from robust_gan.storage import paths
from robust_gan.types import Attack, LogitsFn

SPLITS = ("test", "validation", "train")


def from_checkpoints(locations: Sequence[str], *, use_batch_stats: bool = False) -> list[EvaluatedModel]:
    """Loads checkpoints, named by the last part of their location, or by the whole of it where two share the last.

    Args:
        locations: `DIR[@STEP]`, exported files, or `zoo:NAME`.
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


def load_model(name: str) -> LogitsFn:
    """Imports a function and calls it once; it must return a classifier.

    Args:
        name: `package.module:function`, see `config.imports.load_function`.

    Returns:
        What the function returns: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`. A PyTorch module is taken by
        `interop.from_torch`; a line on stderr says how.

    Raises:
        UserError: There is no such module or function, or it returns no classifier.

    >>> load_model("os.path:join")
    Traceback (most recent call last):
    robust_gan.errors.UserError: os.path:join cannot be called without arguments (missing a required argument: 'a'): \
give a function that returns a classifier
    """
    try:
        logits_fn = imports.call_function(name, "model", "a classifier")
    except UserError as error:
        raise UserError(interop.advise(str(error))) from error
    if interop.is_torch_module(logits_fn):
        module, logits_fn = logits_fn, interop.from_torch(logits_fn)
        print(f"{name}: {interop.describe(module, logits_fn)}", file=sys.stderr)
    if not callable(logits_fn):
        raise UserError(
            f"{name} must return a function of images, not {type(logits_fn).__name__}: it is called once, and what it "
            "returns is called with images"
        )
    return logits_fn


def load_attack(name: str) -> Attack:
    """Imports an attack of the user's own, which is not called yet.

    Args:
        name: `package.module:function`, see `config.imports.import_function`.

    Raises:
        UserError: There is no such module or function, or it cannot be called as an `Attack`.

    >>> load_attack("os.path:exists")
    Traceback (most recent call last):
    robust_gan.errors.UserError: os.path:exists cannot be called as attack(logits_fn, key, images, labels, threat): \
too many positional arguments
    """
    function = imports.import_function(name, "attack")
    check_signature(name, function)
    return function


def from_functions(names: Sequence[str]) -> list[EvaluatedModel]:
    """Loads classifiers that people bring, `package.module:function` each.

    Raises:
        UserError: See `load_model`; or one is given twice.
    """
    if len(set(names)) < len(names):
        raise UserError(f"a model is given twice among {', '.join(names)}")
    return [EvaluatedModel(Model(name, load_model(name)), {"function": name}) for name in names]


def load_data(models: Sequence[EvaluatedModel], config: EvaluationConfig) -> EvaluationData:
    """Loads the images, and checks that they fit all models.

    Args:
        models: Models to evaluate.
        config: Its fields on images: `data`, `split`, `data_dir`, `num_examples` and `channels`.

    Raises:
        UserError: There is no such split, there are too few images, or a model does not fit them.
        DataError: The data are not prepared, or cannot be scored.
    """
    if config.split not in SPLITS:
        raise UserError(f"the split must be one of {', '.join(SPLITS)}, not {config.split!r}")
    count = config.num_examples
    first = next((evaluated.record for evaluated in models if evaluated.record is not None), None)
    found = _load_files(config, first) or _load_split(config, first)
    check_images(found.images, found.labels, first.data.num_classes if first else len(found.label_names))
    if count > len(found.labels):
        raise UserError(
            f"num_examples is {count}, but the {found.split} split of {found.name} has {len(found.labels)} images"
        )
    shape = found.images.shape[1:]
    for evaluated in models:
        if evaluated.record is not None and evaluated.record.data.image_shape != shape:
            raise UserError(
                f"{found.name} has images of shape {shape} here, but {evaluated.model.name} was trained on "
                f"{evaluated.record.data.image_shape}"
            )
    return found._replace(images=found.images[:count], labels=found.labels[:count]) if count else found


def _load_files(config: EvaluationConfig, first: Record | None) -> EvaluationData | None:
    """Loads files of the user's own that no model was trained on; None where `--data` names a data set."""
    location = own.locate(config.data) if config.data or first is None else ""
    if not location or (first is not None and _was_trained_on(location, first)):
        return None
    found = own.read(location, image_size=config.image_size, channels=config.channels)
    arrays = found.train if found.test is None or config.split != "test" else found.test
    names = first.data.label_names if first else found.label_names
    return EvaluationData(found.name, "all" if found.test is None else config.split, *arrays, names)


def _was_trained_on(location: str, record: Record) -> bool:
    """Returns whether files are those of the training, there or elsewhere."""
    if location == record.config.data.name:
        return True
    if os.path.basename(location.split(",")[0]) != record.data.name or not record.data.digest:
        return False
    try:
        found = data.from_config(dataclasses.replace(record.config.data, name=location))
    except DataError:  # It cannot be split as that of the training was.
        return False
    return data.digest(data.checksums(found)) == record.data.digest


def _load_split(config: EvaluationConfig, first: Record | None) -> EvaluationData:
    location = own.locate(config.data) if config.data else ""
    same = first is not None and (config.data in ("", first.data.name) or location != "")
    chosen = first.config.data if first is not None and same else DataConfig(config.data)
    name, data_dir = location or chosen.name, config.data_dir or chosen.data_dir
    chosen = dataclasses.replace(chosen, name=name, data_dir=data_dir)
    loaded = data.load_split(chosen, config.split, count=config.num_examples, was_trained_on=same)
    return EvaluationData(loaded.name, config.split, loaded.images, loaded.labels, loaded.label_names)


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
    name = path.parent.name if path.name == checkpoint.FOLDER else path.name
    return name.removesuffix(checkpoint.SUFFIX)


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

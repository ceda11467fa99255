"""Loads the networks of a checkpoint, without any other information, and exports them to one file."""

import copy
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from robust_gan import adversaries, networks, prng
from robust_gan.checkpoint import exported, metadata
from robust_gan.checkpoint.metadata import Record, read_record
from robust_gan.checkpoint.restoring import fill
from robust_gan.errors import CheckpointError
from robust_gan.networks import inference
from robust_gan.storage import leaves as leaves_lib
from robust_gan.types import Attack, LogitsFn, Network, PyTree


def load_classifier(directory: epath.PathLike, step: str | int = "best") -> LogitsFn:
    """Loads the classifier of a checkpoint.

    Args:
        directory: A run's workdir, or its `checkpoints` folder; or a file of `export`, or `zoo:NAME`.
        step: A number, `best` (by validation) or `last`.

    Returns:
        Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`, with running BatchNorm statistics, and averaged
        weights if the run has them: a `jax.tree_util.Partial`, which jitted functions take as an argument.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, or does not match the architecture in its configuration.
    """
    return get_classifier(read_record(directory, step))


def load_generator(directory: epath.PathLike, step: str | int = "best") -> Callable[[jax.Array], jax.Array]:
    """Loads the generator of a checkpoint.

    Args:
        directory: As for `load_classifier`.
        step: A number, `best` (by validation) or `last`.

    Returns:
        Images `[B, H, W, C]` in [0, 1] to noise `[B, H, W, C]` in [-1, 1], with running BatchNorm statistics. A
        generator with further inputs takes `[B, H, W, C']`, see `attacks.generator.generator_inputs`.

    Raises:
        CheckpointError: As for `load_classifier`, or the run had no generator.
    """
    return get_generator(read_record(directory, step))


def load_attack(directory: epath.PathLike, step: str | int = "best") -> Attack:
    """Loads the generator of a checkpoint as an attack, with its inputs, refinements and final FGSM step.

    Args:
        directory: As for `load_classifier`.
        step: A number, `best` (by validation) or `last`.

    Returns:
        `(logits_fn, key, images, labels, threat) -> images`, against any classifier of the same images and classes.

    Raises:
        CheckpointError: As for `load_generator`.
    """
    return get_attack(read_record(directory, step))


def get_classifier(record: Record, *, use_batch_stats: bool = False) -> LogitsFn:
    """Loads the classifier of a record; see `load_classifier`.

    Args:
        record: The record.
        use_batch_stats: See `networks.inference.classify`.
    """
    name, num_classes = record.config.classifier.network, record.data.num_classes
    filled = fill(_classifier_like(record), record)[_player(record)]
    classify = inference.classify(name, num_classes, use_batch_stats=use_batch_stats)
    return jax.tree_util.Partial(classify, filled["params"], filled["batch_stats"])


def get_generator(record: Record) -> Callable[[jax.Array], jax.Array]:
    """Loads the generator of a record; see `load_generator`."""
    name, channels = record.config.adversary.generator.network, record.data.image_shape[-1]
    filled = fill(_generator_like(record), record)["adversary"]
    return jax.tree_util.Partial(inference.generate(name, channels), filled["params"], filled["batch_stats"])


def get_attack(record: Record) -> Attack:
    """Loads the generator of a record as an attack; see `load_attack`."""
    attack = adversaries.get_attack(
        record.config.adversary.generator, record.data.image_shape[-1], record.data.num_classes
    )  # fmt: skip
    filled = fill(_generator_like(record), record)["adversary"]
    return jax.tree_util.Partial(attack, filled["params"], filled["batch_stats"])


def has_generator(record: Record) -> bool:
    """Returns whether the run trained a generator."""
    return record.config.adversary.name == "generator"


def get_variables(record: Record) -> dict[str, PyTree]:
    """Returns the `params` and `batch_stats` of the classifier, averaged where the run averages, and of the generator.

    Args:
        record: The record.

    Returns:
        NumPy arrays by player: `classifier`, and `adversary` where the run trained a generator.
    """
    filled = fill(_networks_like(record), record)
    return {"classifier": filled.pop(_player(record)), **filled}


def export(directory: epath.PathLike, file: epath.PathLike, step: str | int = "best") -> epath.Path:
    """Exports the networks of a checkpoint to one safetensors file, which loads without Orbax.

    It holds the parameters and BatchNorm statistics of the classifier (the averaged ones, if the run has them) and of
    the generator, under their names in the checkpoint; and in its header, as JSON under `robust_gan`, the record of the
    checkpoint: format, config, data set, image shape, number of classes, metrics, versions, and a digest of each array.
    `data.data_dir` and `init_from` are left out: they may be folders of this machine.

    Args:
        directory: As for `load_classifier`.
        file: The file to write; it ends in `.safetensors`.
        step: A number, `best` (by validation) or `last`.

    Returns:
        The absolute path of the file.

    Raises:
        CheckpointError: As for `load_classifier`.
        UserError: The file has another ending, or cannot be written.
    """
    exported.check_target(file)
    record = read_record(directory, step)
    arrays = leaves_lib.named(fill(_networks_like(record), record))
    config = copy.deepcopy(record.config)
    config.data.data_dir = config.init_from = ""
    saved = metadata.to_json(record.step, config, record.data, record.metrics, arrays)
    return exported.write(file, arrays, metadata.signed(saved | {"versions": record.versions}))


def _player(record: Record) -> str:
    return "average" if record.config.classifier.ema_decay else "classifier"


def _networks_like(record: Record) -> dict[str, PyTree]:
    return _classifier_like(record) | (_generator_like(record) if has_generator(record) else {})


def _classifier_like(record: Record) -> dict[str, PyTree]:
    network = networks.build_classifier(record.config.classifier.network, record.data.num_classes)
    return {_player(record): _shapes(network, record.data.image_shape)}


def _generator_like(record: Record) -> dict[str, PyTree]:
    if not has_generator(record):
        raise CheckpointError(
            f"the run in {record.directory} has no generator: its adversary is {record.config.adversary.name!r}"
        )
    config, data = record.config.adversary.generator, record.data
    height, width, channels = data.image_shape
    inputs = (height, width, adversaries.get_design(config).channels(channels, data.num_classes))
    return {"adversary": _shapes(networks.build_generator(config.network, channels), inputs)}


def _shapes(network: Network, image_shape: tuple[int, ...]) -> PyTree:
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    params, batch_stats = jax.eval_shape(network.init, prng.make_key(0), images)
    return {"params": params, "batch_stats": batch_stats}

"""Loads the networks of a checkpoint, without any other information."""

from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from robust_gan import adversaries, networks, prng
from robust_gan.checkpoint.manager import fill
from robust_gan.checkpoint.metadata import Record, read_record
from robust_gan.errors import CheckpointError
from robust_gan.networks import inference
from robust_gan.types import Attack, LogitsFn, Network, PyTree


def load_classifier(directory: epath.PathLike, step: str | int = "best") -> LogitsFn:
    """Loads the classifier of a checkpoint.

    Args:
        directory: A run's workdir, or its `checkpoints` folder.
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
        directory: A run's workdir, or its `checkpoints` folder.
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
        directory: A run's workdir, or its `checkpoints` folder.
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
    name, data = record.config.classifier.network, record.data
    player = "average" if record.config.classifier.ema_decay else "classifier"
    like = {player: _shapes(networks.build_classifier(name, data.num_classes), data.image_shape)}
    filled = fill(like, record)[player]
    classify = inference.classify(name, data.num_classes, use_batch_stats=use_batch_stats)
    return jax.tree_util.Partial(classify, filled["params"], filled["batch_stats"])


def get_generator(record: Record) -> Callable[[jax.Array], jax.Array]:
    """Loads the generator of a record; see `load_generator`."""
    name, channels = record.config.adversary.generator.network, record.data.image_shape[-1]
    filled = _generator(record)
    return jax.tree_util.Partial(inference.generate(name, channels), filled["params"], filled["batch_stats"])


def get_attack(record: Record) -> Attack:
    """Loads the generator of a record as an attack; see `load_attack`."""
    attack = adversaries.get_attack(
        record.config.adversary.generator, record.data.image_shape[-1], record.data.num_classes
    )  # fmt: skip
    filled = _generator(record)
    return jax.tree_util.Partial(attack, filled["params"], filled["batch_stats"])


def has_generator(record: Record) -> bool:
    """Returns whether the run trained a generator."""
    return record.config.adversary.name == "generator"


def _generator(record: Record) -> dict[str, PyTree]:
    if not has_generator(record):
        raise CheckpointError(
            f"the run in {record.directory} has no generator: its adversary is {record.config.adversary.name!r}"
        )
    config, data = record.config.adversary.generator, record.data
    height, width, channels = data.image_shape
    inputs = (height, width, adversaries.get_design(config).channels(channels, data.num_classes))
    return fill({"adversary": _shapes(networks.build_generator(config.network, channels), inputs)}, record)["adversary"]


def _shapes(network: Network, image_shape: tuple[int, ...]) -> PyTree:
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    params, batch_stats = jax.eval_shape(network.init, prng.make_key(0), images)
    return {"params": params, "batch_stats": batch_stats}

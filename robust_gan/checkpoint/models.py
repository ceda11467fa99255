"""The networks of a checkpoint, rebuilt with nothing else given."""

from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from robust_gan import networks
from robust_gan.checkpoint.records import Record, read_record
from robust_gan.checkpoint.restoring import fill
from robust_gan.errors import CheckpointError
from robust_gan.networks import inference
from robust_gan.types import LogitsFn, Network, PyTree


def load_classifier(directory: epath.PathLike, step: str | int = "best") -> LogitsFn:
    """Rebuilds the classifier of a checkpoint, with nothing else given.

    Args:
        directory: A run's workdir, or its `checkpoints` folder.
        step: A number, `best` (by validation) or `last`.

    Returns:
        Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`, with running BatchNorm statistics: a
        `jax.tree_util.Partial`, so it can be called, or passed to jitted functions as an argument.

    Raises:
        CheckpointError: The checkpoint is missing, damaged, or of another architecture than its configuration says.
    """
    return classifier_of(read_record(directory, step))


def load_generator(directory: epath.PathLike, step: str | int = "best") -> Callable[[jax.Array], jax.Array]:
    """Rebuilds the generator of a checkpoint.

    Args:
        directory: A run's workdir, or its `checkpoints` folder.
        step: A number, `best` (by validation) or `last`.

    Returns:
        Images `[B, H, W, C]` in [0, 1] to noise `[B, H, W, C]` in [-1, 1], with running BatchNorm statistics.

    Raises:
        CheckpointError: As for `load_classifier`, or the run had no generator.
    """
    return generator_of(read_record(directory, step))


def classifier_of(record: Record) -> LogitsFn:
    """Rebuilds the classifier of a record that is read already; see `load_classifier`."""
    name, data = record.config.classifier.network, record.data
    like = {"classifier": _shapes(networks.build_classifier(name, data.num_classes), data.image_shape)}
    filled = fill(like, record)["classifier"]
    classify = inference.classify(name, data.num_classes)
    return jax.tree_util.Partial(classify, filled["params"], filled["batch_stats"])


def generator_of(record: Record) -> Callable[[jax.Array], jax.Array]:
    """Rebuilds the generator of a record that is read already; see `load_generator`."""
    if not has_generator(record):
        raise CheckpointError(
            f"the run in {record.directory} has no generator: its adversary is {record.config.adversary.name!r}"
        )
    name, channels = record.config.adversary.generator.network, record.data.image_shape[-1]
    like = {"adversary": _shapes(networks.build_generator(name, channels), record.data.image_shape)}
    filled = fill(like, record)["adversary"]
    return jax.tree_util.Partial(inference.generate(name, channels), filled["params"], filled["batch_stats"])


def has_generator(record: Record) -> bool:
    """Tells whether the run trained a generator."""
    return record.config.adversary.name == "generator"


def _shapes(network: Network, image_shape: tuple[int, ...]) -> PyTree:
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    params, batch_stats = jax.eval_shape(network.init, jax.random.key(0), images)
    return {"params": params, "batch_stats": batch_stats}

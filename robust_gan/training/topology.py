"""The training step compiled for TPUs that are not there."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from robust_gan import game as game_lib
from robust_gan import parallel
from robust_gan.config import Config
from robust_gan.data import published
from robust_gan.parallel import topology as topology_lib
from robust_gan.training import multi_step, nonfinite, setup


def compile_step(config: Config, topology: str) -> topology_lib.Compiled:
    """Compiles the training step of a run for a topology; nothing runs, and the data need not be prepared.

    Args:
        config: The run.
        topology: See `parallel.topology.find_topology`.

    Raises:
        UserError: As `find_topology` there and `setup.check`, or the shape of the data is unknown.
    """
    devices = topology_lib.find_topology(topology)
    setup.check(config, devices)
    image_shape, num_classes, num_images = _data_shape(config)
    game = game_lib.from_config(config, num_classes=num_classes, channels=image_shape[-1])
    state = jax.eval_shape(lambda: setup.initial_state(config, game, image_shape))
    loop_state = jax.eval_shape(lambda state: multi_step.LoopState(state, nonfinite.init_state()), state)
    rows: Any = jax.ShapeDtypeStruct((num_images, math.prod(image_shape)), jnp.uint8)
    arrays = {
        "images": multi_step.PackedImages(rows, image_shape),
        "labels": jax.ShapeDtypeStruct((num_images,), jnp.int32),
    }
    num_batches = config.adversary.generator.batches_per_step if config.adversary.name == "generator" else 1
    steps = multi_step.steps_per_call(config, "tpu")
    # One process compiles for all hosts of the topology, so that it gives the indices of all devices.
    positions = (len(devices), steps, num_batches, config.batch_size // len(devices))
    counts: Any = jax.ShapeDtypeStruct((len(devices),), jnp.int32)
    images: Any = jax.ShapeDtypeStruct(positions, jnp.int32)
    indices = multi_step.BatchIndices(images, counts)
    run = functools.partial(multi_step.run_steps, game, config, "stop")
    found = topology_lib.Compiled(topology, "a step", len(devices), config.batch_size)
    mapped = parallel.map_step(run, devices)
    return topology_lib.compile_program(found, mapped, loop_state, arrays, indices, training_images=arrays)


def _data_shape(config: Config) -> tuple[tuple[int, int, int], int, int]:
    """Returns shape, number of classes and number of training images, of published data sets without reading them."""
    name = config.data.name
    if name in published.SETS:
        known = published.SETS[name]
        count = known.counts["train"] + config.data.extra_size - config.data.validation_size
        return known.image_shape, known.num_classes["label"], config.data.train_size or count
    dataset = setup.load_data(config)
    return dataset.train.images.shape[1:], dataset.num_classes, len(dataset.train.labels)

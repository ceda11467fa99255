"""One compiled call: several training steps, with images gathered and augmented on the device."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import game as game_lib
from robust_gan import parallel
from robust_gan.config import Config
from robust_gan.data import Split, augmentation, order
from robust_gan.game import Game, TrainState
from robust_gan.training import nonfinite
from robust_gan.training.nonfinite import NonFiniteState
from robust_gan.types import Batch, Metrics

MAX_BYTES = 2**28
"""Most bytes of the images of one call, where they are read batch by batch."""
MAX_STEPS = 100
"""Most steps of one call on an accelerator: signals are handled between calls."""


class LoopState(NamedTuple):
    """The state passed from call to call.

    Attributes:
        train_state: The state of the game.
        nonfinite: Counts of discarded steps.
    """

    train_state: TrainState
    nonfinite: NonFiniteState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedImages:
    """Images as rows of pixels, which a TPU gathers as they are; it copies `[N, H, W, C]` to four times the bytes.

    Attributes:
        rows: uint8 `[N, H W C]`.
        shape: `(H, W, C)`.

    >>> PackedImages(np.arange(24).reshape(2, 12), (2, 2, 3))[np.array([1])].shape
    (1, 2, 2, 3)
    """

    rows: jax.Array | np.ndarray
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __getitem__(self, positions: jax.Array) -> jax.Array:
        """Returns the images `[B, H, W, C]` at the positions `[B]`."""
        return self.rows[positions].reshape(-1, *self.shape)


class StepOutput(NamedTuple):
    """The output of a call.

    Attributes:
        metrics: Scalars of its last step; zeros for zero steps.
        nonfinite: Counts of discarded steps.
    """

    metrics: Metrics
    nonfinite: NonFiniteState


class BatchIndices(NamedTuple):
    """The images of the steps of one call, on each of D devices.

    Attributes:
        positions: int32 `[D, N, M, B / D]`: the images of each device, for N steps of M batches each; the adversary is
            updated on all M, the classifier on the last.
        num_steps: int32 `[D]`: how many of the N steps to run, the same on all devices.
        arrays: The images and labels `[D, N M B / D, ...]` in which the positions point; None where they point in the
            training split, which is on the device.
    """

    positions: jax.Array | np.ndarray
    num_steps: jax.Array | np.ndarray
    arrays: dict[str, jax.Array] | None = None


def steps_per_call(config: Config, platform: str, streamed: Split | None = None) -> int:
    """Returns the largest number of steps in one call.

    Args:
        config: The run. If `config.steps_per_call` is 0: one step on a CPU, where a call costs nothing beside a step;
            on an accelerator the steps between two lines of metrics.
        platform: `cpu`, `gpu` or `tpu`.
        streamed: The training split, where its images are read batch by batch: those of a call have at most
            `MAX_BYTES`, unless `config.steps_per_call` says more.

    >>> steps_per_call(Config(log_every=50), "cpu"), steps_per_call(Config(log_every=50), "gpu")
    (1, 50)
    >>> steps_per_call(Config(steps_per_call=8), "cpu")
    8
    """
    if config.steps_per_call:
        return config.steps_per_call
    if platform == "cpu":
        return 1
    fitting = MAX_STEPS
    if streamed is not None:
        fitting = max(1, MAX_BYTES // (_num_batches(config) * config.batch_size * math.prod(streamed.images.shape[1:])))
    return min(config.log_every, MAX_STEPS, fitting)


def batch_indices(
    config: Config, step: int, num_steps: int, max_steps: int, num_images: int, devices: Sequence[jax.Device],
    streamed: Split | None = None,
) -> BatchIndices:  # fmt: skip
    """Returns the images of the next steps, a function of (seed, step) alone.

    Args:
        config: The run.
        step: Steps taken before.
        num_steps: Steps to run.
        max_steps: N; one for the whole run, since it is part of the compiled shape.
        num_images: Images of the training split.
        devices: The devices of all processes.
        streamed: The training split, where its images are read batch by batch.

    Returns:
        The indices for the devices of this process; and their images, where they are read now.

    >>> devices = parallel.find_devices(num_devices=1)
    >>> batch_indices(Config(batch_size=4), 0, 2, 3, 100, devices).positions.shape
    (1, 3, 1, 4)
    """
    num_batches = _num_batches(config)
    rows = np.zeros((max_steps * num_batches, config.batch_size), np.int32)
    for index in range(num_steps * num_batches):
        rows[index] = order.batch_indices(config.seed, step * num_batches + index, config.batch_size, num_images)
    positions = parallel.shard(rows.reshape(max_steps, num_batches, config.batch_size), devices, axis=2)
    counts = np.full(len(positions), num_steps, np.int32)
    if streamed is None:
        return BatchIndices(positions, counts)
    local, flat = np.arange(positions[0].size, dtype=np.int32).reshape(positions.shape[1:]), positions.ravel()
    arrays: dict[str, Any] = {"images": streamed.images[flat], "labels": streamed.labels[flat]}
    arrays = {name: array.reshape(len(positions), -1, *array.shape[1:]) for name, array in arrays.items()}
    return BatchIndices(np.broadcast_to(local, positions.shape), counts, arrays)


def _num_batches(config: Config) -> int:
    return config.adversary.generator.batches_per_step if config.adversary.name == "generator" else 1


def run_steps(
    game: Game, config: Config, policy: str, loop_state: LoopState, arrays: dict[str, Any], indices: BatchIndices
) -> tuple[LoopState, StepOutput]:
    """Runs several training steps on one device of the axis `parallel.AXIS`.

    The number of steps is data, not shape: the loop body is compiled once, so n calls of one step and one call of n
    steps return the same bits.

    Args:
        game: The game.
        config: The run.
        policy: One of `nonfinite.POLICIES`.
        loop_state: The state returned by the previous call.
        arrays: The whole training split: `images`, `PackedImages` or uint8 `[N, H, W, C]`, and int32 `labels` `[N]`;
            not used where the indices have their own.
        indices: The indices of this device, without their leading axis.

    Returns:
        The state for the next call, and the output.

    Guarantees:
        `test_many_steps_in_one_call_are_as_many_calls_bit_for_bit`,
        `test_a_step_that_is_not_finite_is_not_taken`.
    """
    arrays = arrays if indices.arrays is None else indices.arrays

    @jax.jit  # Traced once, although its metrics' shapes are computed first.
    def step(loop_state: LoopState, positions: jax.Array) -> tuple[LoopState, Metrics]:
        before, counts = loop_state
        after, metrics = training_step(game, config, before, arrays, positions)
        return LoopState(*nonfinite.select(before, after, metrics, counts, policy=policy)), metrics

    shapes = jax.eval_shape(step, loop_state, indices.positions[0])[1]
    metrics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    loop_state, metrics = jax.lax.fori_loop(
        0, indices.num_steps, lambda index, carry: step(carry[0], indices.positions[index]), (loop_state, metrics)
    )
    return loop_state, StepOutput(metrics, loop_state.nonfinite)


def training_step(
    game: Game, config: Config, state: TrainState, arrays: dict[str, Any], positions: jax.Array
) -> tuple[TrainState, Metrics]:
    """Gathers and augments the images of one step and runs it, on one device of the axis `parallel.AXIS`.

    Args:
        game: The game.
        config: The run.
        state: The state before.
        arrays: The whole training split: `images`, `PackedImages` or uint8 `[N, H, W, C]`, and int32 `labels` `[N]`.
        positions: int32 `[M, B]`: M batches; the adversary is updated on all, the classifier on the last.

    Returns:
        The state after, and scalar metrics.
    """
    keys = game_lib.step_keys(state)
    batches, augment = [], lambda images: images
    for index in range(positions.shape[0]):
        augment_key = jax.random.fold_in(keys.augment, index)
        image_keys = game_lib.image_keys(augment_key, positions.shape[1], parallel.AXIS)
        augment = functools.partial(
            augmentation.augment, config.data.augmentation, image_keys, padding=config.data.padding
        )
        images = augment(augmentation.to_unit(arrays["images"][positions[index]]))
        batches.append(Batch(images, arrays["labels"][positions[index]]))
    *earlier, last = batches
    memory = state.memory
    if memory is not None:
        state = state._replace(memory=game_lib.memory.read(memory, positions[-1], augment))
    state, metrics = game_lib.train_step(game, state, last, earlier=earlier, keys=keys, axis_name=parallel.AXIS)
    if memory is not None and state.memory is not None:
        rows = game_lib.memory.write(memory, positions[-1], state.memory, augment, parallel.AXIS)
        state = state._replace(memory=rows)
    return state, metrics

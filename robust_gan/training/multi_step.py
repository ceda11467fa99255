"""What one compiled call does: some training steps, each with its images fetched and augmented on the device."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import game as game_lib
from robust_gan import parallel
from robust_gan.config import Config
from robust_gan.data import augmentation, order
from robust_gan.game import Game, TrainState
from robust_gan.training import nonfinite
from robust_gan.training.nonfinite import NonFiniteState
from robust_gan.types import Batch, Metrics

MOST_STEPS = 100
"""Steps in one call on an accelerator, at most: a signal is obeyed only between calls."""


class LoopState(NamedTuple):
    """What goes from call to call.

    Attributes:
        state: The game.
        watch: The steps whose numbers were not finite, which were not taken.
    """

    state: TrainState
    watch: NonFiniteState


class StepOutput(NamedTuple):
    """What a call measured.

    Attributes:
        metrics: Scalars of its last step; zeros where no step was asked for.
        watch: The steps that were not taken so far.
    """

    metrics: Metrics
    watch: NonFiniteState


class BatchIndices(NamedTuple):
    """What the steps of one call are to do, on each of D devices.

    Attributes:
        positions: int32 `[D, N, M, B / D]`: which images each device takes, for N steps of M minibatches each; the
            adversary moves on all of them, the classifier on the last.
        count: int32 `[D]`: how many of the N steps are to be game, the same on all devices.
    """

    positions: jax.Array | np.ndarray
    count: jax.Array | np.ndarray  # type: ignore[assignment]  # Hides a method of tuple that nobody needs.


def steps_per_call(config: Config, platform: str) -> int:
    """Returns how many steps one call plays at most.

    Args:
        config: The run; 0 in `config.steps_per_call` leaves the choice to this function: one step on a CPU, where a
            call costs nothing beside a step, and as many as lie between two lines of metrics on an accelerator.
        platform: `cpu`, `gpu` or `tpu`.

    >>> steps_per_call(Config(log_every=50), "cpu"), steps_per_call(Config(log_every=50), "gpu")
    (1, 50)
    >>> steps_per_call(Config(steps_per_call=8), "cpu")
    8
    """
    if config.steps_per_call:
        return config.steps_per_call
    return 1 if platform == "cpu" else min(config.log_every, MOST_STEPS)


def orders(
    config: Config, step: int, count: int, most: int, num_images: int, devices: Sequence[jax.Device]
) -> BatchIndices:
    """Returns what the next steps are to do: a function of (seed, step) alone.

    Args:
        config: The run.
        step: Steps taken before.
        count: Steps to play.
        most: N, as many as any call of this run plays: the shape, and so the compiled function, is one for all.
        num_images: N of the training split.
        devices: Where.

    Returns:
        Those for this process's devices.

    >>> devices = parallel.find_devices(num_devices=1)
    >>> orders(Config(batch_size=4), 0, 2, 3, 100, devices).positions.shape
    (1, 3, 1, 4)
    """
    minibatches = config.adversary.generator.batches_per_step if config.adversary.name == "generator" else 1
    shape = (most, minibatches, config.batch_size)
    rows = np.zeros((most * minibatches, config.batch_size), np.int32)
    for index in range(count * minibatches):
        rows[index] = order.batch_indices(
            config.seed, step * minibatches + index, config.batch_size, num_images
        )  # fmt: skip
    positions = parallel.shard(rows.reshape(shape), devices, axis=2)
    return BatchIndices(positions, np.full(len(positions), count, np.int32))


def run_steps(
    game: Game, config: Config, policy: str, carried: LoopState, arrays: dict[str, jax.Array], share: BatchIndices
) -> tuple[LoopState, StepOutput]:
    """Plays some training steps, on one device of the axis `parallel.AXIS`.

    The number of steps is data, not shape: the loop's body is compiled once, and it is the same code whether it is
    called n times for one step or once for n. So both give the same bits.

    Args:
        game: The game.
        config: The run.
        policy: What becomes of a step that is not finite, see `nonfinite.guard`.
        carried: What the call before returned.
        arrays: The whole training split: uint8 `images` `[N, H, W, C]` and int32 `labels` `[N]`.
        share: The orders of this device, without their leading axis.

    Returns:
        What the next call takes, and what was measured.

    Guarantees:
        `test_many_steps_in_one_call_are_as_many_calls_bit_for_bit`,
        `test_a_step_that_is_not_finite_is_not_taken`.
    """

    @jax.jit  # Traced once, though its metrics' shapes are asked for first.
    def step(carried: LoopState, positions: jax.Array) -> tuple[LoopState, Metrics]:
        state, metrics = training_step(game, config, carried.state, arrays, positions)
        return LoopState(*nonfinite.guard(carried.state, state, metrics, carried.watch, policy=policy)), metrics

    shapes = jax.eval_shape(step, carried, share.positions[0])[1]
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    carried, metrics = jax.lax.fori_loop(
        0, share.count, lambda index, carry: step(carry[0], share.positions[index]), (carried, nothing)
    )
    return carried, StepOutput(metrics, carried.watch)


def training_step(
    game: Game, config: Config, state: TrainState, arrays: dict[str, jax.Array], positions: jax.Array
) -> tuple[TrainState, Metrics]:
    """Fetches, augments and plays one step, on one device of the axis `parallel.AXIS`.

    Args:
        game: The game.
        config: The run.
        state: The state before.
        arrays: The whole training split: uint8 `images` `[N, H, W, C]` and int32 `labels` `[N]`.
        positions: int32 `[M, B]`: M minibatches; the adversary moves on all, the classifier on the last.

    Returns:
        The state after, and scalar metrics.
    """
    augment_key = game_lib.step_keys(state).augment
    minibatches = []
    for index in range(positions.shape[0]):
        keys = game_lib.image_keys(jax.random.fold_in(augment_key, index), positions.shape[1], parallel.AXIS)
        images = augmentation.to_unit(arrays["images"][positions[index]])
        images = augmentation.augment(config.data.augmentation, keys, images, config.data.padding)
        minibatches.append(Batch(images, arrays["labels"][positions[index]]))
    *first, last = minibatches
    earlier = jax.tree.map(lambda *leaves: jnp.stack(leaves), *first) if first else None
    return game_lib.train_step(game, state, last, earlier=earlier, axis_name=parallel.AXIS)

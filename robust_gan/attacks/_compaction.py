"""Attacking only the remaining images, inside one compiled function.

A compiled function has fixed shapes, so a mask alone would not save any work. Here the remaining images are gathered
and attacked in chunks of a fixed size; the number of chunks is data.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_gan.attacks._best import Best
from robust_gan.types import PyTree


def chunk_size(count: int) -> int:
    """Returns the number of images in a chunk.

    On average half a chunk is wasted, but an accelerator needs many images to be busy; for a CPU 64 are enough.

    >>> chunk_size(10), chunk_size(1000) >= 64
    (10, True)
    """
    return min(count, 64 if jax.default_backend() == "cpu" else max(128, -(-count // 4)))


def update_remaining(
    update: Callable[[PyTree, PyTree], PyTree], remaining: jax.Array, state: PyTree, inputs: PyTree
) -> PyTree:
    """Updates the state of the remaining images alone.

    Args:
        update: `(state, inputs) -> state` of a chunk of images, each independent of the others.
        remaining: bool `[B]`, the images to update.
        state: A pytree of arrays `[B, ...]`.
        inputs: A pytree of arrays `[B, ...]`, typed keys included, that `update` reads.

    Returns:
        The new state. The cost is that of the remaining images, rounded up to whole chunks.

    >>> update = lambda state, inputs: state + inputs
    >>> update_remaining(update, jnp.array([True, False]), jnp.zeros(2), jnp.ones(2)).tolist()
    [1.0, 0.0]
    """
    count = remaining.shape[0]
    size = chunk_size(count)
    inputs = jax.tree.map(jnp.asarray, inputs)  # A traced index cannot read a NumPy array.
    # Whole chunks of positions; those beyond the remaining images are dropped when written.
    order = jnp.concatenate([jnp.argsort(~remaining, stable=True), jnp.full((-count % size,), count)])
    total = jnp.sum(remaining)

    def one_chunk(index, state):
        positions = jax.lax.dynamic_slice(order, (index * size,), (size,))
        read = jnp.minimum(positions, count - 1)
        chunk, chunk_inputs = jax.tree.map(lambda leaf: leaf[read], (state, inputs))
        written = jnp.where(index * size + jnp.arange(size) < total, positions, count)
        return jax.tree.map(
            lambda leaf, new: leaf.at[written].set(new, mode="drop"), state, update(chunk, chunk_inputs)
        )  # fmt: skip

    return jax.lax.fori_loop(0, -(-total // size), one_chunk, state)


def run_restarts(run: Callable[..., Best], num_rounds: int, best: Best, inputs: tuple[PyTree, ...]) -> Best:
    """Runs an attack several times (restarts, or target classes), each time on the images that are not fooled yet.

    Args:
        run: `(index, best, *inputs) -> best` of a chunk of images; the index is a traced integer.
        num_rounds: The number of runs.
        best: The best points so far.
        inputs: Pytrees of arrays `[B, ...]` that `run` reads.

    Returns:
        The best points of all runs.

    >>> run = lambda index, best, shift: best._replace(images=best.images + shift)
    >>> best = Best(jnp.zeros(2), jnp.zeros(2), jnp.array([False, True]))
    >>> run_restarts(run, 3, best, (jnp.ones(2),)).images.tolist()
    [3.0, 0.0]
    """

    def one_round(index, best):
        return update_remaining(lambda best, inputs: run(index, best, *inputs), ~best.fooled, best, inputs)

    return jax.lax.fori_loop(0, num_rounds, one_round, best)

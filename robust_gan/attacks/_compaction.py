"""Attacking again only the images that still stand, inside one compiled function.

A compiled function has fixed shapes, so a mask alone would not save any work. Here the images that stand are gathered
to the front and attacked in chunks, as many as are needed: the number of chunks is data, their size is not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_gan.attacks._best import Best
from robust_gan.types import PyTree


def chunk_size(count: int) -> int:
    """Returns how many images are attacked at once.

    On average half a chunk is wasted, but an accelerator needs many images to be busy, where 64 are enough for the
    cores of a processor.

    >>> chunk_size(10), chunk_size(1000) >= 64
    (10, True)
    """
    return min(count, 64 if jax.default_backend() == "cpu" else max(128, -(-count // 4)))


def update_remaining(
    update: Callable[[PyTree, PyTree], PyTree], standing: jax.Array, state: PyTree, inputs: PyTree
) -> PyTree:
    """Replaces the state of the images that stand, and leaves that of the others as it is.

    Args:
        update: `(state, inputs) -> state` of a chunk of images, each independent of the others.
        standing: bool `[B]`, which images to update.
        state: A pytree of arrays `[B, ...]`.
        inputs: A pytree of arrays `[B, ...]`, typed keys included, that `update` reads.

    Returns:
        The new state. Its cost is that of the images that stand, rounded up to whole chunks.

    >>> update = lambda state, inputs: state + inputs
    >>> update_remaining(update, jnp.array([True, False]), jnp.zeros(2), jnp.ones(2)).tolist()
    [1.0, 0.0]
    """
    count = standing.shape[0]
    size = chunk_size(count)
    inputs = jax.tree.map(jnp.asarray, inputs)  # A traced index reads no NumPy array.
    # Whole chunks of positions; those beyond the images, and those of images that fell, are written nowhere.
    order = jnp.concatenate([jnp.argsort(~standing, stable=True), jnp.full((-count % size,), count)])
    total = jnp.sum(standing)

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
    """Attacks in rounds, each on the images that no round before has broken: restarts, or target classes.

    Args:
        run: `(round, best, *inputs) -> best` of a chunk of images; the round is a traced integer.
        num_rounds: How many.
        best: The best points so far; an image that is fooled is not attacked.
        inputs: Pytrees of arrays `[B, ...]` that `run` reads.

    Returns:
        The best points after the last round.

    >>> run = lambda index, best, shift: best._replace(images=best.images + shift)
    >>> best = Best(jnp.zeros(2), jnp.zeros(2), jnp.array([False, True]))
    >>> run_restarts(run, 3, best, (jnp.ones(2),)).images.tolist()
    [3.0, 0.0]
    """

    def one_round(index, best):
        return update_remaining(lambda best, inputs: run(index, best, *inputs), ~best.fooled, best, inputs)

    return jax.lax.fori_loop(0, num_rounds, one_round, best)

"""The best point that an attack has seen of each image: misclassified first, and among equals of the highest loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan.losses import is_correct


class Best(NamedTuple):
    """What an attack would return if it ended now.

    Attributes:
        images: `[B, H, W, C]`, inside the ball and the range.
        losses: `[B]`, of these images; -inf before any was looked at.
        fooled: bool `[B]`, whether they are misclassified.
    """

    images: jax.Array
    losses: jax.Array
    fooled: jax.Array


def init_best(images: jax.Array, losses: jax.Array) -> Best:
    """Returns the state before the first point: any point is better.

    Args:
        images: `[B, H, W, C]`, the clean images.
        losses: `[B]`, losses of a real evaluation, for their dtype and sharding only: those of what a loop carries
            must be those that it computes, whatever `logits_fn` returns.

    >>> init_best(jnp.zeros((2, 1, 1, 1)), jnp.zeros(2)).fooled.tolist()
    [False, False]
    """
    losses = jnp.full_like(losses, -jnp.inf)
    return Best(images, losses, losses == jnp.inf)


def update_best(best: Best, images: jax.Array, losses: jax.Array, logits: jax.Array, labels: jax.Array) -> Best:
    """Replaces the points of those images for which the new one is better, so that no success is lost again.

    Args:
        best: The best so far.
        images: The new points, `[B, H, W, C]`.
        losses: Their losses, `[B]`; NaN is no better than anything.
        logits: Their logits, `[B, K]`.
        labels: int32 `[B]`.

    >>> best = Best(jnp.zeros((1, 1, 1, 1)), jnp.array([3.0]), jnp.array([False]))
    >>> best = update_best(best, jnp.ones((1, 1, 1, 1)), jnp.array([1.0]), jnp.array([[0.0, 1.0]]), jnp.array([0]))
    >>> best.images.item(), best.fooled.item()
    (1.0, True)
    """
    fooled = ~is_correct(logits, labels)
    better = (fooled & ~best.fooled) | ((fooled == best.fooled) & (losses > best.losses))
    return Best(where(better, images, best.images), jnp.where(better, losses, best.losses), best.fooled | fooled)


def where(mask: jax.Array, chosen: jax.Array, other: jax.Array) -> jax.Array:
    """Chooses image by image: `jnp.where` of a mask `[B]` over arrays `[B, ...]`.

    >>> where(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2))).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    return jnp.where(mask.reshape(mask.shape + (1,) * (chosen.ndim - mask.ndim)), chosen, other)

"""The best iterate of an attack for each image: a misclassified one first, then the one of the highest loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan import threat_model
from robust_gan.losses import is_correct
from robust_gan.types import ThreatModel, get_compute_dtype


class Best(NamedTuple):
    """The best points so far.

    Attributes:
        images: `[B, H, W, C]`, inside the ball and the range.
        losses: `[B]`, of these images; -inf before the first.
        fooled: bool `[B]`, whether they are misclassified; with a target, whether they are classified as that.
    """

    images: jax.Array
    losses: jax.Array
    fooled: jax.Array


def init_best(images: jax.Array, losses: jax.Array) -> Best:
    """Returns the state before the first iterate: any point is better.

    Args:
        images: `[B, H, W, C]`, the clean images.
        losses: `[B]`, computed losses; only their dtype and sharding matter, which must be those of the losses that a
            loop computes later.

    >>> init_best(jnp.zeros((2, 1, 1, 1)), jnp.zeros(2)).fooled.tolist()
    [False, False]
    """
    losses = jnp.full_like(losses, -jnp.inf)
    return Best(images, losses, losses == jnp.inf)


def update_best(
    best: Best, images: jax.Array, losses: jax.Array, logits: jax.Array, labels: jax.Array, *, targeted: bool = False
) -> Best:
    """Returns the better one of the best and the new point of each image.

    Args:
        best: The best so far.
        images: The new points, `[B, H, W, C]`.
        losses: Their losses, `[B]`; NaN is never better.
        logits: Their logits, `[B, K]`.
        labels: int32 `[B]`.
        targeted: Whether the labels are target classes: then `fooled` means that the target is reached.

    >>> best = Best(jnp.zeros((1, 1, 1, 1)), jnp.array([3.0]), jnp.array([False]))
    >>> best = update_best(best, jnp.ones((1, 1, 1, 1)), jnp.array([1.0]), jnp.array([[0.0, 1.0]]), jnp.array([0]))
    >>> best.images.item(), best.fooled.item()
    (1.0, True)
    """
    fooled = is_correct(logits, labels) == targeted
    better = (fooled & ~best.fooled) | ((fooled == best.fooled) & (losses > best.losses))
    return Best(where(better, images, best.images), jnp.where(better, losses, best.losses), best.fooled | fooled)


def where(mask: jax.Array, chosen: jax.Array, other: jax.Array) -> jax.Array:
    """Returns `jnp.where` of a mask `[B]` over arrays `[B, ...]`: chooses image by image.

    >>> where(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2))).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    return jnp.where(threat_model.expand(mask, chosen), chosen, other)


def project_input(points: jax.Array, images: jax.Array, threat: ThreatModel) -> jax.Array:
    """Returns the points in the dtype of the images, still inside the ball and the range: the classifier's input.

    Iterates are at least float32: a short step would be lost in the rounding of bfloat16.

    >>> from robust_gan import LinfThreat
    >>> project_input(jnp.full((1, 2), 0.3), jnp.zeros((1, 2), jnp.bfloat16), LinfThreat(0.5)).dtype.name
    'bfloat16'
    """
    same = images.dtype == get_compute_dtype(images.dtype)
    return points if same else threat_model.project(points, images, threat)

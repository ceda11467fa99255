"""Gradients of a classifier's loss, in expectation over the classifier's own randomness (EoT) where it has some.

A randomised classifier is a `LogitsFn` that also takes `keys`, one per image, as a keyword. All others are functions of
the images alone: they are asked once, whatever the number of samples.
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_gan import random
from robust_gan.types import LogitsFn


def takes_keys(logits_fn: LogitsFn) -> bool:
    """Tells whether a classifier is randomised: whether it takes the keyword `keys`.

    >>> takes_keys(lambda images: images), takes_keys(lambda images, keys=None: images)
    (False, True)
    """
    try:
        return "keys" in inspect.signature(logits_fn).parameters
    except (TypeError, ValueError):
        return False


def ask(logits_fn: LogitsFn, points: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns the logits of one pass: with keys where the classifier is randomised, `[B, K]`.

    >>> images, keys = jnp.zeros((2, 1, 1, 3)), jax.random.split(jax.random.key(0), 2)
    >>> ask(lambda images: images[:, 0, 0], images, keys).shape
    (2, 3)
    """
    return logits_fn(points, keys=keys) if takes_keys(logits_fn) else logits_fn(points)  # type: ignore[call-arg]


def loss_gradient(
    logits_fn: LogitsFn,
    loss_fn: Callable[[jax.Array], jax.Array],
    points: jax.Array,
    keys: jax.Array,
    *,
    num_samples: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradient of each image's loss, the losses and the logits, each the mean over samples.

    Args:
        logits_fn: The classifier, differentiable.
        loss_fn: Logits `[B, K]` to losses `[B]`.
        points: `[B, H, W, C]`.
        keys: One key per image; used only where the classifier takes keys.
        num_samples: Passes through a randomised classifier.

    Returns:
        Gradient `[B, H, W, C]`, losses `[B]`, logits `[B, K]`.

    References:
        Athalye, Engstrom, Ilyas and Kwok, "Synthesizing Robust Adversarial Examples", ICML 2018, section 2.1.

    >>> noisy = lambda x, keys: x[:, 0, 0] + jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> loss_gradient(noisy, lambda z: z[:, 1], jnp.zeros((1, 1, 1, 2)), keys, num_samples=20)[0].ravel().tolist()
    [0.0, 1.0]
    """

    def sample(points, keys):
        logits = ask(logits_fn, points, keys)
        losses = loss_fn(logits)
        return jnp.sum(losses), (losses, logits)

    gradient = jax.grad(sample, has_aux=True)
    if not takes_keys(logits_fn):
        direction, (losses, logits) = gradient(points, keys)
        return direction, losses, logits
    per_sample = random.split_per_image(keys, num_samples)
    first = gradient(points, per_sample[0])

    def add(index, total):
        return jax.tree.map(jnp.add, total, gradient(points, per_sample[index]))

    total = jax.lax.fori_loop(1, num_samples, add, first)
    direction, (losses, logits) = jax.tree.map(functools.partial(jnp.multiply, 1 / num_samples), total)
    return direction, losses, logits

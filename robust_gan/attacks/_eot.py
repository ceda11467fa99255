"""Gradients of a classifier's loss, in expectation over its randomness (EoT) if it is randomised.

A randomised classifier is a `LogitsFn` that takes `keys`, one per image, as a keyword, and is marked by `randomised`.
All others are functions of the images alone and are evaluated once, whatever the number of samples.
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_gan import prng
from robust_gan.types import LogitsFn


def randomised(logits_fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Marks a classifier as randomised: `apgd` and `apgd_targeted` give it fresh keys at every pass.

    Args:
        logits_fn: `(images [B, H, W, C], keys=keys [B]) -> logits [B, K]`. A `jax.tree_util.Partial` stays one.

    Returns:
        The same function with the mark.

    >>> noisy = lambda x, keys: x[:, 0, 0] + jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    >>> is_randomised(noisy), is_randomised(randomised(noisy))
    (False, True)
    """
    if isinstance(logits_fn, functools.partial):
        return type(logits_fn)(randomised(logits_fn.func), *logits_fn.args, **logits_fn.keywords)

    @functools.wraps(logits_fn)
    def marked(*args, **keywords):
        return logits_fn(*args, **keywords)

    marked.takes_keys = True  # type: ignore[attr-defined]
    return marked


def is_randomised(logits_fn: Callable[..., jax.Array]) -> bool:
    """Returns whether a classifier was marked by `randomised`; an argument `keys` alone is no mark.

    >>> is_randomised(lambda images, keys=None: images), is_randomised(functools.partial(randomised(max), 0))
    (False, True)
    """
    while isinstance(logits_fn, functools.partial):
        logits_fn = logits_fn.func
    return getattr(logits_fn, "takes_keys", False) is True


def needs_keys(logits_fn: Callable[..., jax.Array]) -> bool:
    """Returns whether a classifier needs the argument `keys` but was not marked by `randomised`.

    >>> needs_keys(lambda images, keys: images), needs_keys(lambda images, keys=None: images)
    (True, False)
    """
    if is_randomised(logits_fn):
        return False
    try:
        parameters = inspect.signature(logits_fn).parameters
    except (TypeError, ValueError):
        return False
    # The first argument is the images, whatever its name.
    return "keys" in [*parameters][1:] and parameters["keys"].default is inspect.Parameter.empty


def apply_logits(logits_fn: LogitsFn, points: jax.Array, keys: jax.Array) -> jax.Array:
    """Computes the logits of one pass, `[B, K]`, with keys if the classifier is randomised.

    >>> images, keys = jnp.zeros((2, 1, 1, 3)), jax.random.split(jax.random.key(0), 2)
    >>> apply_logits(lambda images: images[:, 0, 0], images, keys).shape
    (2, 3)
    """
    return logits_fn(points, keys=keys) if is_randomised(logits_fn) else logits_fn(points)  # type: ignore[call-arg]


def loss_gradient(
    logits_fn: LogitsFn,
    loss_fn: Callable[[jax.Array], jax.Array],
    points: jax.Array,
    keys: jax.Array,
    *,
    num_samples: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradient of each image's loss, the losses and the logits, each the mean over samples.

    Args:
        logits_fn: The classifier, differentiable.
        loss_fn: Logits `[B, K]` to losses `[B]`.
        points: `[B, H, W, C]`.
        keys: One key per image; used only by a randomised classifier.
        num_samples: Passes through a randomised classifier.

    Returns:
        Gradient `[B, H, W, C]`, losses `[B]`, logits `[B, K]`.

    References:
        Athalye, Engstrom, Ilyas and Kwok, "Synthesizing Robust Adversarial Examples", ICML 2018, section 2.1.

    >>> noisy = randomised(lambda x, keys: x[:, 0, 0] + jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys))
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> loss_gradient(noisy, lambda z: z[:, 1], jnp.zeros((1, 1, 1, 2)), keys, num_samples=20)[0].ravel().tolist()
    [0.0, 1.0]
    """

    def sample(points, keys):
        logits = apply_logits(logits_fn, points, keys)
        losses = loss_fn(logits)
        return jnp.sum(losses), (losses, logits)

    gradient = jax.grad(sample, has_aux=True)
    if not is_randomised(logits_fn):
        direction, (losses, logits) = gradient(points, keys)
        return direction, losses, logits
    per_sample = prng.split_per_image(keys, num_samples)
    first = gradient(points, per_sample[0])

    def add(index, total):
        return jax.tree.map(jnp.add, total, gradient(points, per_sample[index]))

    total = jax.lax.fori_loop(1, num_samples, add, first)
    direction, (losses, logits) = jax.tree.map(functools.partial(jnp.multiply, 1 / num_samples), total)
    return direction, losses, logits

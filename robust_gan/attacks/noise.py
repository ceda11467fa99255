"""Attacks that do not use the classifier under attack: random noise, and transfer from a surrogate model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_gan import prng, threat_model
from robust_gan.attacks._checks import checked
from robust_gan.types import LogitsFn, ThreatModel, get_compute_dtype


@checked(optional=("logits_fn", "labels"))
def uniform_noise(
    logits_fn: LogitsFn, key: jax.Array, images: jax.Array, labels: jax.Array, threat: ThreatModel
) -> jax.Array:
    """Draws a point uniformly from the ball, the baseline of all attacks.

    Args:
        logits_fn: Not used, nor are the labels; this and the four arguments after it as in `types.Attack`.

    Returns:
        Images `[B, H, W, C]`.

    >>> from robust_gan import LinfThreat
    >>> x = jnp.full((1, 2, 2, 1), 0.5)
    >>> noisy = uniform_noise(None, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25))
    >>> bool(jnp.all(jnp.abs(noisy - x) <= 0.25))
    True
    """
    del logits_fn, labels
    return threat_model.random_start(prng.per_image_keys(key, images.shape[0]), images, threat)


def sphere_noise(keys: jax.Array, images: jax.Array, threat: ThreatModel) -> jax.Array:
    """Draws noise of unit size, the random start of Auto-PGD and FAB.

    Args:
        keys: One key per image.
        images: `[B, H, W, C]`, for their shape.
        threat: The threat model, for its norm.

    Returns:
        `[B, H, W, C]`, at least float32: in L-infinity uniform in the cube and stretched until its largest entry is
        -1 or 1, in L2 uniform on the sphere.

    >>> from robust_gan import LinfThreat
    >>> noise = sphere_noise(jax.random.split(jax.random.key(0), 1), jnp.zeros((1, 2, 2, 1)), LinfThreat(0.25))
    >>> print(f"{jnp.max(jnp.abs(noise)):.4f}")
    1.0000
    """
    compute_dtype = get_compute_dtype(images.dtype)
    if threat.norm != "linf":
        return threat_model.steepest_ascent(prng.normal_per_image(keys, images.shape[1:], compute_dtype), threat)
    noise = prng.uniform_per_image(keys, images.shape[1:], compute_dtype, -1.0, 1.0)
    return noise / jnp.max(jnp.abs(noise), axis=tuple(range(1, noise.ndim)), keepdims=True)


@checked(optional=("logits_fn", "key", "labels"))
def transfer(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    attack: Callable[..., jax.Array],
    surrogate_logits_fn: LogitsFn,
) -> jax.Array:
    """Computes adversarial images on a surrogate model: the black-box (transfer) attack of Wang and Yu.

    Args:
        logits_fn: Not used; this and the four arguments after it as in `types.Attack`.
        attack: The attack on the surrogate model.
        surrogate_logits_fn: The surrogate model.

    Returns:
        Adversarial images `[B, H, W, C]`.

    References:
        Papernot, McDaniel and Goodfellow, "Transferability in Machine Learning", 2016,
        https://arxiv.org/abs/1605.07277

    >>> from robust_gan import LinfThreat, attacks
    >>> surrogate = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.5)
    >>> transfer(None, None, x, jnp.array([0]), LinfThreat(0.25), attack=attacks.fgsm,
    ...          surrogate_logits_fn=surrogate).ravel().tolist()
    [0.25, 0.25]
    """
    del logits_fn
    return attack(surrogate_logits_fn, key, images, labels, threat)

"""Attacks that do not look at the classifier under attack: random noise, and transfer from another one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_gan import prng, threat_model
from robust_gan.attacks.checking import checked
from robust_gan.types import LogitsFn, ThreatModel, wide_dtype


@checked(optional=("logits_fn", "labels"))
def uniform_noise(
    logits_fn: LogitsFn, key: jax.Array, images: jax.Array, labels: jax.Array, threat: ThreatModel
) -> jax.Array:
    """Draws a point uniformly from the ball: the floor that every real attack must beat.

    Args:
        logits_fn: Not used.
        key: One key, or one per image.
        images: `[B, H, W, C]`.
        labels: Not used.
        threat: The threat model.

    Returns:
        Images `[B, H, W, C]`.

    >>> import jax.numpy as jnp
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
    compute_dtype = wide_dtype(images.dtype)
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
    source_logits_fn: LogitsFn,
) -> jax.Array:
    """Makes adversarial images on a source model, to be tried on another one: the black-box attack of Wang and Yu.

    Args:
        logits_fn: Not used: the target is not looked at.
        key: One key, or one per image; handed to `attack`.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`, the true labels.
        threat: The threat model.
        attack: The attack to make on the source.
        source_logits_fn: The source model.

    Returns:
        Adversarial images `[B, H, W, C]`.

    References:
        Papernot, McDaniel and Goodfellow, "Transferability in Machine Learning", 2016,
        https://arxiv.org/abs/1605.07277

    >>> import jax.numpy as jnp
    >>> from robust_gan import LinfThreat, attacks
    >>> source = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.5)
    >>> transfer(None, None, x, jnp.array([0]), LinfThreat(0.25), attack=attacks.fgsm,
    ...          source_logits_fn=source).ravel().tolist()
    [0.25, 0.25]
    """
    del logits_fn
    return attack(source_logits_fn, key, images, labels, threat)

"""A memory of the last perturbation of each training image, from which the adversary starts at its next visit.

A perturbation is held in 8 bits per value: 127ths of epsilon. The memory of N images `[H, W, C]` takes N H W C bytes on
each device and in each checkpoint: 150 MB for the 49,000 training images of CIFAR-10, 43 MB for 55,000 of MNIST.

References:
    Jia, Zhang, Wei, Wu, Wang, Wang and Cao, "Prior-Guided Fast Adversarial Training", ECCV 2022 (the start is
        the perturbation of the epoch before).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from robust_gan.types import ThreatModel

LEVELS = 127
"""Levels of a value on each side of 0."""


def init(image_shape: Sequence[int], num_images: int) -> jax.Array:
    """Returns a memory of zeros: int8 `[num_images, *image_shape]`; each image starts unperturbed.

    >>> init((8, 8, 1), 5).shape
    (5, 8, 8, 1)
    """
    return jnp.zeros((num_images, *image_shape), jnp.int8)


def pack(images: jax.Array, clean: jax.Array, threat: ThreatModel) -> jax.Array:
    """Computes what is remembered of adversarial images: int8 `[B, H, W, C]`, 127ths of epsilon.

    Args:
        images: `[B, H, W, C]`, the adversarial images.
        clean: `[B, H, W, C]`.
        threat: The threat model.

    >>> from robust_gan import LinfThreat
    >>> pack(jnp.array([0.5, 0.75]), jnp.array([0.5, 0.5]), LinfThreat(0.25)).tolist()
    [0, 127]
    """
    epsilon = jnp.asarray(threat.epsilon, clean.dtype)
    share = (images - clean) / jnp.where(epsilon > 0, epsilon, 1.0)
    return jnp.round(LEVELS * jnp.clip(share, -1, 1)).astype(jnp.int8)


def unpack(rows: jax.Array) -> jax.Array:
    """Returns remembered perturbations in units of epsilon, float32 in [-1, 1].

    >>> unpack(jnp.array([0, 127], jnp.int8)).tolist()
    [0.0, 1.0]
    """
    return rows.astype(jnp.float32) / LEVELS


def read(memory: jax.Array, positions: jax.Array, augment: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns the rows of a batch, augmented as its images are: int8 `[B, H, W, C]`.

    Args:
        memory: int8 `[N, H, W, C]`.
        positions: int32 `[B]` in 0..N-1.
        augment: Moves the pixels of `[B, H, W, C]`, zeros coming in from outside; the augmentation of the images.

    >>> read(jnp.arange(3, dtype=jnp.int8).reshape(3, 1, 1, 1), jnp.array([2, 0]), lambda rows: rows).ravel().tolist()
    [2, 0]
    """
    return augment(memory[positions])


def write(
    memory: jax.Array,
    positions: jax.Array,
    rows: jax.Array,
    augment: Callable[[jax.Array], jax.Array],
    axis_name: str | None = None,
) -> jax.Array:
    """Returns the memory with the rows of a batch, each value at the pixel from which the augmentation took it.

    Values at pixels that the augmentation cut off become 0. Of an image that is in the batch twice, as at the end of an
    epoch, the last row is kept.

    Args:
        memory: int8 `[N, H, W, C]`, the same on all devices.
        positions: int32 `[B]`, this device's share of the batch.
        rows: int8 `[B, H, W, C]`, of augmented images.
        augment: As in `read`.
        axis_name: The mapped axis, if there is one: every device writes the rows of all.

    >>> empty = jnp.zeros((3, 1, 1, 1), jnp.int8)
    >>> rows = jnp.array([7, 8, 9], jnp.int8).reshape(3, 1, 1, 1)
    >>> write(empty, jnp.array([2, 0, 2]), rows, lambda rows: rows).ravel().tolist()
    [8, 0, 9]
    """
    # The augmentation is linear, and its transpose puts each pixel back.
    (rows,) = jax.vjp(augment, jnp.zeros(rows.shape, jnp.float32))[1](rows.astype(jnp.float32))
    rows = rows.astype(jnp.int8)
    if axis_name is not None:
        positions, rows = (jax.lax.all_gather(leaf, axis_name, tiled=True) for leaf in (positions, rows))
    index = jnp.arange(len(positions))
    repeated = jnp.any((positions[:, None] == positions) & (index[:, None] < index), axis=1)
    return memory.at[jnp.where(repeated, len(memory), positions)].set(rows, mode="drop")

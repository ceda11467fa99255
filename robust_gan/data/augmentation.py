"""Random crops and flips inside the compiled step.

One key per image makes the augmented image independent of the batch size and of the number of devices.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from robust_gan.prng import split_per_image

Augmentation = Literal["none", "crop_flip", "crop"]
AUGMENTATIONS: tuple[str, ...] = get_args(Augmentation)


def to_unit(images: jax.typing.ArrayLike) -> jax.Array:
    """Scales uint8 images to float32 in [0, 1].

    Args:
        images: uint8 `[..., H, W, C]`.

    Returns:
        float32 of the same shape in [0, 1]; 0 becomes exactly 0 and 255 exactly 1. Others may differ from
        NumPy's `images / 255` in the last bit, since XLA multiplies by the reciprocal.

    Raises:
        TypeError: The images are not uint8.

    >>> to_unit(jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8, but are {images.dtype}")
    return images.astype(jnp.float32) / 255


def random_crop(keys: jax.Array, images: jax.Array, *, padding: int = 2) -> jax.Array:
    """Randomly crops each zero-padded image: `crop_and_flip` without the flip.

    Args:
        keys: Typed keys `[B]`, one per image.
        images: `[B, H, W, C]`, uint8 or float.
        padding: Pixels of zeros on each side, at least 0.

    Returns:
        Images of the shape and dtype of `images`.

    Raises:
        ValueError: `padding` is negative, or there is not one key per image.

    >>> random_crop(jax.random.split(jax.random.key(0), 3), jnp.ones((3, 8, 8, 1))).shape
    (3, 8, 8, 1)
    """
    return _crop(keys, images, padding, flip=False)


def crop_and_flip(keys: jax.Array, images: jax.Array, *, padding: int = 2) -> jax.Array:
    """Randomly crops each zero-padded image and flips it horizontally with probability 1/2.

    Wang and Yu pad the raw pixels before normalisation: the border is black (0), not the mean colour. With 2 pixels of
    padding a 32x32 image is cropped out of 36x36, at one of 25 equally likely offsets.

    Guarantees:
        test_crop_and_flip_equals_the_numpy_reference
        test_augmentation_does_not_depend_on_the_batch

    Args:
        keys: Typed keys `[B]`, one per image.
        images: `[B, H, W, C]`, uint8 or float.
        padding: Pixels of zeros on each side, at least 0.

    Returns:
        Images of the shape and dtype of `images`.

    Raises:
        ValueError: `padding` is negative, or there is not one key per image.

    References:
        H. Wang and C.-N. Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019,
        https://arxiv.org/abs/1905.09591

    >>> crop_and_flip(jax.random.split(jax.random.key(0), 3), jnp.ones((3, 8, 8, 1))).shape
    (3, 8, 8, 1)
    """
    return _crop(keys, images, padding, flip=True)


def augment(name: str, keys: jax.Array, images: jax.Array, padding: int = 2) -> jax.Array:
    """Applies the augmentation of the given name.

    Args:
        name: One of `AUGMENTATIONS`.
        keys: Typed keys `[B]`, one per image.
        images: `[B, H, W, C]`, uint8 or float.
        padding: Pixels of zeros on each side, at least 0.

    Returns:
        Images of the shape and dtype of `images`.

    Raises:
        ValueError: `name` is unknown, `padding` is negative, or there is not one key per image.

    >>> augment("none", jax.random.split(jax.random.key(0), 3), jnp.ones((3, 8, 8, 1))).shape
    (3, 8, 8, 1)
    """
    match name:
        case "none":
            return images
        case "crop":
            return random_crop(keys, images, padding=padding)
        case "crop_flip":
            return crop_and_flip(keys, images, padding=padding)
    raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, but is {name!r}")


def _crop(keys: jax.Array, images: jax.Array, padding: int, flip: bool) -> jax.Array:
    """Crops and flips with one gather, which is faster than slicing each image, and bit-equal."""
    batch, height, width, _ = images.shape
    if padding < 0:
        raise ValueError(f"padding must be at least 0, but is {padding}")
    if keys.shape != (batch,):
        raise ValueError(f"there must be one key for each of the {batch} images, but keys has shape {keys.shape}")
    crop_keys, flip_keys = split_per_image(keys, 2)
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), -padding, padding + 1))(crop_keys)
    rows = corners[:, :1] + jnp.arange(height)
    columns = jnp.broadcast_to(jnp.arange(width), (batch, width))
    if flip:
        flips = jax.vmap(jax.random.bernoulli)(flip_keys)
        columns = jnp.where(flips[:, None], columns[:, ::-1], columns)
    columns = corners[:, 1:] + columns
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    cropped = images[jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return jnp.where(inside[..., None], cropped, jnp.zeros((), images.dtype))

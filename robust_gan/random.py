"""Keys per image: what makes a result independent of the batch size and of the number of devices.

That needs keys of JAX's default implementation, threefry: what `rbg` keys draw depends on the batch they are in.
"""

import jax
import jax.numpy as jnp


def per_image_keys(key: jax.Array, count: int) -> jax.Array:
    """Returns one key for each of `count` images.

    Attacks accept either one key, which is split here, or a vector of keys, which is used as it is. A caller who
    derives the vector from the images' positions in the data set gets the same adversarial images whatever the batch
    size and the number of devices.

    Args:
        key: A typed key of shape `[]`, or typed keys of shape `[count]`.
        count: The number of images B.

    Returns:
        Typed keys `[count]`.

    Raises:
        ValueError: The key is not typed, or neither a scalar nor a vector of `count` keys.

    >>> per_image_keys(jax.random.key(0), 3).shape
    (3,)
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be a typed key, as jax.random.key makes it, not an array of {key.dtype}")
    if key.ndim == 0:
        return jax.random.split(key, count)
    if key.shape != (count,):
        raise ValueError(f"key must be one key or one key for each of the {count} images, but has shape {key.shape}")
    return key


def keys_at(key: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the keys of the images at the given positions of a batch or data set.

    Args:
        key: One typed key.
        positions: int32 `[B]`.

    Returns:
        Typed keys `[B]`; the key of a position does not depend on the other positions.

    >>> a, b = keys_at(jax.random.key(0), jnp.array([7, 3])), keys_at(jax.random.key(0), jnp.array([3]))
    >>> bool(a[1] == b[0])
    True
    """
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def split_per_image(keys: jax.Array, num: int) -> jax.Array:
    """Splits every image's key into `num` keys: `[B]` to `[num, B]`.

    >>> split_per_image(jax.random.split(jax.random.key(0), 5), 2).shape
    (2, 5)
    """
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)


def uniform_per_image(
    keys: jax.Array,
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike = jnp.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
) -> jax.Array:
    """Draws uniform values of the given shape for each image: `[B, *shape]`.

    >>> uniform_per_image(jax.random.split(jax.random.key(0), 5), (8, 8, 1)).shape
    (5, 8, 8, 1)
    """
    return jax.vmap(lambda key: jax.random.uniform(key, shape, dtype, minval, maxval))(keys)


def normal_per_image(keys: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Draws standard normal values of the given shape for each image: `[B, *shape]`.

    >>> normal_per_image(jax.random.split(jax.random.key(0), 5), (8, 8, 1)).shape
    (5, 8, 8, 1)
    """
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)

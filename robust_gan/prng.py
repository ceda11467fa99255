"""Keys per image, which make results independent of the batch size and of the number of devices.

Random numbers of `rbg` and `unsafe_rbg` keys depend on the batch of the key. So the package uses threefry keys,
whatever `jax_default_prng_impl` is, and derives threefry keys from a user's keys.
"""

from typing import Any

import jax
import jax.numpy as jnp

from robust_gan.errors import UserError

_IMPLEMENTATION = "threefry2x32"


def make_key(seed: int) -> jax.Array:
    """Returns the threefry key of a seed, whatever JAX's default implementation is.

    >>> jax.random.key_impl(make_key(0))
    'threefry2x32'
    """
    return jax.random.key(seed, impl=_IMPLEMENTATION)


def threefry(key: Any, count: int | None = None) -> jax.Array:
    """Returns keys of any implementation as threefry keys; threefry keys are returned unchanged.

    Args:
        key: A typed key of shape `[]`, or typed keys of shape `[count]`.
        count: The number of images B; None where one key alone is valid.

    Returns:
        Keys of the same shape; each depends on one key alone.

    Raises:
        UserError: The key is not typed, or of another shape.

    >>> jax.random.key_impl(threefry(jax.random.key(0, impl="rbg")))
    'threefry2x32'
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        given = f"an array of {dtype}" if dtype is not None else type(key).__name__
        raise UserError(f"key must be a typed key, as jax.random.key makes it, not {given}")
    if key.shape not in ((), (count,)):
        wanted = "one key" if count is None else f"one key or one key for each of the {count} images"
        raise UserError(f"key must be {wanted}, but has shape {key.shape}")
    if str(jax.random.key_impl(key)) == _IMPLEMENTATION:
        return key
    words = jax.random.key_data(key)
    keys = jax.random.wrap_key_data(words[..., :2], impl=_IMPLEMENTATION)
    fold_in = jax.random.fold_in if key.ndim == 0 else jax.vmap(jax.random.fold_in)
    for index in range(2, words.shape[-1]):
        keys = fold_in(keys, words[..., index])
    return keys


def per_image_keys(key: jax.Array, count: int) -> jax.Array:
    """Returns one key for each of `count` images.

    Attacks accept one key, which is split here, or a vector of keys, which is used unchanged. With keys derived from
    the images' positions in the data set (`keys_at`) the adversarial images do not depend on the batch size and the
    number of devices.

    Args:
        key: A typed key of shape `[]`, or typed keys of shape `[count]`, of any implementation.
        count: The number of images B.

    Returns:
        Threefry keys `[count]`.

    Raises:
        UserError: The key is not typed, or neither a scalar nor a vector of `count` keys.

    >>> per_image_keys(jax.random.key(0), 3).shape
    (3,)
    """
    key = threefry(key, count)
    return jax.random.split(key, count) if key.ndim == 0 else key


def keys_at(key: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the keys of the images at the given positions of a batch or data set.

    Args:
        key: One typed key.
        positions: int32 `[B]`.

    Returns:
        Threefry keys `[B]`; the key of a position does not depend on the other positions.

    >>> a, b = keys_at(jax.random.key(0), jnp.array([7, 3])), keys_at(jax.random.key(0), jnp.array([3]))
    >>> bool(a[1] == b[0])
    True
    """
    key = threefry(key)
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

"""Pytrees as named arrays on the host: what a checkpoint stores, and how it tells that nothing has changed.

A leaf is named by its path, `classifier/params/Dense_0/kernel`; typed keys are stored as their data.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan.types import PyTree


def named(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a pytree by name, in the order of `jax.tree.leaves`.

    Args:
        tree: Any pytree whose leaves have a shape and a dtype.

    Raises:
        ValueError: Two leaves would have the same name, as in `{"a": {"b": x}, "a/b": y}`.

    >>> named({"a": {"b": 1, "c": (2, 3)}})
    {'a/b': 1, 'a/c/0': 2, 'a/c/1': 3}
    """
    paths = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    leaves = dict(paths)
    if len(leaves) < len(paths):
        names = [name for name, _ in paths]
        raise ValueError(f"two leaves are called {next(name for name in names if names.count(name) > 1)}")
    return leaves


def to_host(leaf: Any) -> np.ndarray:
    """Returns a copy of an array on the host; of a typed key, its data.

    >>> to_host(jax.random.key(7)).tolist()
    [0, 7]
    """
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        # Its own shard: indexing the whole one is orders of magnitude slower.
        leaf = leaf.addressable_shards[0].data
    return np.array(leaf)


def from_host(like: Any, leaf: np.ndarray) -> Any:
    """Returns what `to_host` gave as it was: an array, or a typed key where `like` is one.

    >>> key = jax.random.key(7)
    >>> bool(from_host(key, to_host(key)) == key)
    True
    """
    return jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(like)) if _is_key(like) else leaf


def layout(leaf: Any) -> dict[str, Any]:
    """Returns the shape and the dtype under which a leaf is stored, JSON-able; a `jax.ShapeDtypeStruct` will do.

    >>> layout(jax.random.key(7))
    {'shape': [2], 'dtype': 'uint32'}
    """
    leaf = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def digest(leaf: np.ndarray) -> str:
    """Returns the SHA-256 digest of an array's bytes.

    >>> digest(np.zeros(3)) == digest(-np.zeros(3))
    False
    """
    return hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

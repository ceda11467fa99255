"""Averages that merge: (sum, count) pytrees, exact over batches, masks and devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan.types import PyTree


class Mean(NamedTuple):
    """A mean under way.

    Attributes:
        total: Sum of the values so far.
        count: Number of values so far.
    """

    total: float | jax.Array
    count: float | jax.Array  # type: ignore[assignment]  # Hides a method of tuple that nobody needs.

    def compute(self) -> float:
        """Returns the mean; NaN where nothing was counted.

        >>> Mean(3, 4).compute()
        0.75
        """
        return float(self.total) / float(self.count) if float(self.count) else float("nan")


def mean_of(values: jax.Array, mask: jax.Array | None = None) -> Mean:
    """Starts a mean from unreduced values.

    Args:
        values: `[B]`.
        mask: bool `[B]`; values where it is False do not count, whatever they are.

    Returns:
        The mean under way, with an integer count (and an integer sum for bool values): 10,007 images count as 10,007.
        Values narrower than float32 are summed in float32.

    >>> mean_of(jnp.array([True, False, True]), jnp.array([True, True, False])).compute()
    0.5
    """
    mask = jnp.ones(values.shape, bool) if mask is None else mask.astype(bool)
    if values.dtype == bool:
        values = values.astype(jnp.int32)
    elif jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return Mean(jnp.sum(jnp.where(mask, values, 0)), jnp.sum(mask, dtype=jnp.int32))


def merge(left: Mean, right: Mean) -> Mean:
    """Merges two means under way.

    >>> merge(Mean(1, 2), Mean(2, 2)).compute()
    0.75
    """
    return Mean(left.total + right.total, left.count + right.count)


def merge_over(mean: Mean, axis_name: str | None) -> Mean:
    """Merges a mean over the devices of a mapped axis; without an axis returns it as it is.

    >>> merge_over(Mean(1, 2), None).compute()
    0.5
    """
    return mean if axis_name is None else Mean(*jax.lax.psum(tuple(mean), axis_name))


def mean_over(axis_name: str | None, tree: PyTree) -> PyTree:
    """Averages every array of a tree over the devices of a mapped axis; without an axis returns the tree as it is.

    >>> mean_over(None, {"loss": 1.0})
    {'loss': 1.0}
    """
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

"""The steps of an attack: their loop, what is recorded of them, and sizes that fall."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robust_gan.attacks._best import Best
from robust_gan.errors import UserError
from robust_gan.types import PyTree


def check_record(record_fn: Any, num_restarts: int) -> None:
    """Raises `UserError` where the steps of several restarts would be recorded.

    >>> check_record(None, 2)
    """
    if record_fn is not None and num_restarts > 1:
        raise UserError(f"the steps of one run are traced, not of {num_restarts}: set num_restarts to 1")


def run_steps(
    num_steps: int,
    step: Callable[[jax.Array, PyTree], tuple[PyTree, tuple[jax.Array, ...]]],
    carry: PyTree,
    record_fn: Callable[[tuple[jax.Array, ...]], None] | None,
) -> PyTree:
    """Runs the steps of an attack, and records their rows only where that is asked for.

    Args:
        num_steps: The number of steps.
        step: `(index, carry) -> (carry, row)`.
        carry: The state before the first step.
        record_fn: Called with the rows of all steps; None where they are not needed: then they are not computed.

    Returns:
        The state after the last step.

    >>> rows = []
    >>> run_steps(3, lambda index, total: (total + index, (total,)), jnp.zeros((), int), rows.append).item()
    3
    >>> rows[0][0].tolist()
    [0, 0, 1]
    """
    if record_fn is None:
        return jax.lax.fori_loop(0, num_steps, lambda index, carry: step(index, carry)[0], carry)
    carry, rows = jax.lax.scan(lambda carry, index: step(index, carry), carry, jnp.arange(num_steps))
    record_fn(rows)
    return carry


def row_of(losses: jax.Array, best: Best, size: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the row of a step: the attributes of `Trace` after the images.

    >>> [part.shape for part in row_of(jnp.zeros(2), Best(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2)), jnp.ones(()))]
    [(2,), (2,), (2,), (2,)]
    """
    return losses, best.losses, best.fooled, jnp.broadcast_to(size.reshape(-1), losses.shape)


def half_cosine(index: jax.Array, num_steps: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns the factor of step `index`: from 1 before the first of `num_steps` to 0 after the last.

    >>> half_cosine(jnp.arange(3), 2, float).round(2).tolist()
    [1.0, 0.5, 0.0]
    """
    return (1 + jnp.cos(jnp.asarray(index, dtype) * (jnp.pi / num_steps))) / 2

"""The shortest step from a point of the box of valid pixels to a hyperplane, without leaving the box.

In both norms the step moves every coordinate towards the hyperplane, by a size that grows with a common level until the
coordinate meets the border of the box: by the level itself in L-infinity, by the level times the weight in L2. What the
steps gain is `sum_i slope_i * min(level, limit_i)`, concave and piecewise linear in the level.
"""

import jax
import jax.numpy as jnp

_NEGLIGIBLE = 1e-12
"""Weights that are smaller than this share of the largest one count as 0: those coordinates do not move."""


def to_hyperplane(
    points: jax.Array, weights: jax.Array, offsets: jax.Array, norm: str, bounds: tuple[float, float]
) -> jax.Array:
    """Returns the smallest step onto a hyperplane within a box.

    Minimises the norm of `step` subject to `weights . step = -offsets` and to `points + step` inside the bounds. Where
    no point of the box lies on the hyperplane, it is the step to the corner of the box that is nearest to it.

    Args:
        points: `[B, ...]`, inside the bounds.
        weights: `[B, ...]`, normal vectors of the hyperplanes.
        offsets: `[B]`, the values `weights . points - b` that the steps bring to 0.
        norm: `linf` or `l2`.
        bounds: Smallest and largest valid pixel.

    Returns:
        Steps `[B, ...]`; 0 where a weight is 0 or an offset is.

    Guarantees:
        `test_the_step_to_a_hyperplane_is_that_of_an_independent_solver`.

    References:
        Croce and Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML 2020,
        section 2.1 and appendix A, https://arxiv.org/abs/1907.02044

    >>> points, weights = jnp.array([[0.5, 0.9]]), jnp.array([[1.0, 1.0]])
    >>> to_hyperplane(points, weights, jnp.array([-0.5]), "l2", (0.0, 1.0)).round(3).tolist()
    [[0.4000000059604645, 0.10000000149011612]]
    """
    flat = points.reshape(points.shape[0], -1)
    weights = weights.reshape(flat.shape)
    # Without a scale, so that tiny gradients do not underflow.
    scale = jnp.max(jnp.abs(weights), axis=1, keepdims=True)
    scale = jnp.where(scale > 0, scale, 1.0)
    weights = jnp.where(jnp.abs(weights) > _NEGLIGIBLE * scale, weights / scale, 0.0)
    sizes = jnp.abs(weights)
    signs = -jnp.sign(offsets)[:, None] * jnp.sign(weights)
    room = jnp.where(signs > 0, bounds[1] - flat, flat - bounds[0])

    # A coordinate moves by level * rates until it has moved by its room.
    rates = jnp.ones_like(sizes) if norm == "linf" else sizes
    limits = jnp.where(sizes > 0, room / jnp.where(sizes > 0, rates, 1.0), 0.0)
    level = fill_level(sizes * rates, limits, jnp.abs(offsets) / scale[:, 0])
    return (signs * jnp.minimum(level[:, None] * rates, room)).reshape(points.shape)


def fill_level(slopes: jax.Array, limits: jax.Array, amounts: jax.Array) -> jax.Array:
    """Solves `sum_i slopes_i * min(level, limits_i) = amount` for the level.

    As water rises in vessels of different heights that are connected: each takes its slope per level until it is full.
    Exact after as many rounds as it takes until no further vessel is full: a handful, and D at most. (Sorting the
    limits would do too, and takes longer than the gradient of a small network.)

    Args:
        slopes: `[B, D]`, at least 0.
        limits: `[B, D]`, at least 0.
        amounts: `[B]`, at least 0.

    Returns:
        `[B]`; more than the largest limit where not even full vessels hold the amount.

    >>> fill_level(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 3.0]]), jnp.array([5.0])).tolist()
    [2.0]
    """
    beyond = 2 * jnp.max(limits, axis=1) + 1

    def one_round(carry):
        _, level, full = carry
        held = jnp.sum(jnp.where(full, slopes * limits, 0), axis=1)
        slope = jnp.sum(jnp.where(full, 0, slopes), axis=1)
        # The level that the vessels not full yet would need is too low where some of them are full at it.
        raised = jnp.where(slope > 0, (amounts - held) / jnp.where(slope > 0, slope, 1.0), beyond)
        level = jnp.clip(raised, level, beyond)
        now_full = limits <= level[:, None]
        return jnp.any(now_full & ~full & (slopes > 0)), level, now_full

    start = jnp.array(True), jnp.zeros_like(amounts), limits <= 0
    return jax.lax.while_loop(lambda carry: carry[0], one_round, start)[1]

"""Fast Adaptive Boundary attack: searches the nearest misclassified point, whatever epsilon, by linearisation.

References:
    Croce and Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML 2020,
    https://arxiv.org/abs/1907.02044
"""

import functools

import jax
import jax.numpy as jnp

from robust_gan import prng, threat_model
from robust_gan.attacks._best import Best, update_best, where
from robust_gan.attacks._checks import check_counts, checked
from robust_gan.attacks._compaction import run_restarts
from robust_gan.attacks._start import likely_wrong
from robust_gan.attacks.noise import sphere_noise
from robust_gan.losses import is_correct, margin
from robust_gan.types import LogitsFn, ThreatModel, get_compute_dtype

ALPHA_MAX = 0.1
"""Largest weight of the step that starts from the clean image."""
ETA = 1.05
"""Steps overshoot the linearised boundary by this factor."""
BETA = 0.9
"""A misclassified point is pulled back to this share of its distance from the clean image."""
_NEGLIGIBLE = 1e-12
"""Weights that are smaller than this share of the largest one count as 0: those coordinates do not move."""


@checked
def fab_targeted(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int = 9,
) -> jax.Array:
    """FAB towards each of the most likely wrong classes; returns the nearest misclassified point in the ball.

    Args:
        logits_fn: Differentiable; this and the four arguments after it as in `types.Attack`. The key is used only by
            the second restart and those after it.
        num_steps: Steps for each target class and restart.
        num_restarts: The first starts at the image, the others at random points within epsilon / 2.
        num_targets: Number of target classes, the most likely first; at most K - 1.

    Returns:
        Adversarial images `[B, H, W, C]`. Where no misclassified point in the ball was found: the nearest one outside,
        projected onto the ball, or the clean image if its margin loss is larger.

    Raises:
        UserError: A count is below 1, or another argument is invalid, see `_checks`.

    Guarantees:
        `test_fab_finds_the_nearest_point_of_a_linear_classifier`.

    References:
        Algorithm 1; the targets: Croce and Hein 2020 (as `apgd`), section 5.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.3)
    >>> nearest = fab_targeted(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25), num_steps=5)
    >>> bool(nearest.sum() < 0.5), bool(jnp.abs(nearest - x).max() < 0.06)
    (True, True)
    """

    def linearise(targets, labels, _, points):
        def gap(points):
            logits = logits_fn(points)
            gaps = _at(logits, targets) - _at(logits, labels)
            return jnp.sum(gaps), gaps

        normals, gaps = jax.grad(gap, has_aux=True)(points)
        return gaps, normals

    return _attack(logits_fn, linearise, num_targets, key, images, labels, threat, num_steps, num_restarts)


@checked
def fab(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 100,
    num_restarts: int = 5,
) -> jax.Array:
    """FAB towards the class that is nearest at each step; each step takes one gradient for each class.

    Args:
        logits_fn: As `fab_targeted`; this and the four arguments after it as in `types.Attack`.
        num_steps: Steps of each restart.
        num_restarts: The first starts at the image, the others at random points within epsilon / 2.

    Returns:
        Adversarial images `[B, H, W, C]`, as `fab_targeted`.

    Raises:
        UserError: A count is below 1, or another argument is invalid, see `_checks`.

    References:
        Algorithm 1.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.3)
    >>> nearest = fab(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25), num_steps=5)
    >>> bool(jnp.abs(nearest - x).max() < 0.06)
    True
    """

    def linearise(_, labels, threat, points):
        logits, pull_back = jax.vjp(logits_fn, points)

        def nearer(index, nearest):
            towards = jax.nn.one_hot(index, logits.shape[1], dtype=logits.dtype)
            normals = pull_back(towards[None] - jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype))[0]
            gaps = logits[:, index] - _at(logits, labels)
            far = jnp.where(index == labels, jnp.inf, jnp.abs(gaps) / (1e-12 + threat_model.dual_norm(normals, threat)))
            better = far < nearest[0]
            return tuple(where(better, new, old) for new, old in zip((far, gaps, normals), nearest, strict=True))

        none = jnp.full_like(logits[:, 0], jnp.inf)
        return jax.lax.fori_loop(0, logits.shape[1], nearer, (none, jnp.zeros_like(none), jnp.zeros_like(points)))[1:]

    return _attack(logits_fn, linearise, 1, key, images, labels, threat, num_steps, num_restarts)


def _attack(logits_fn, linearise, num_targets, key, images, labels, threat, num_steps, num_restarts):
    """Runs FAB for each target and restart, each time on the images that are still classified correctly."""
    check_counts(num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets)
    logits = logits_fn(images)
    targets = likely_wrong(logits, labels, num_targets)
    keys = prng.per_image_keys(key, images.shape[0])
    best = Best(images, margin(logits, labels), ~is_correct(logits, labels))

    def one_round(index, best, keys, images, labels, targets):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        target = targets[:, index // num_restarts]
        start = _start(keys, images, threat, index % num_restarts > 0)
        nearest = _search(
            logits_fn, functools.partial(linearise, target, labels, threat), start, images, labels, threat, num_steps
        )
        nearest = threat_model.project(nearest, images, threat)
        logits = logits_fn(nearest)
        return update_best(best, nearest, margin(logits, labels), logits, labels)

    return run_restarts(one_round, targets.shape[1] * num_restarts, best, (keys, images, labels, targets)).images


def _search(logits_fn, linearise, start, images, labels, threat, num_steps):
    """Returns the nearest misclassified iterate, inside the ball or outside; the image itself where there was none."""
    compute_dtype = get_compute_dtype(images.dtype)
    centre = images.astype(compute_dtype)

    def step(_, carry):
        points, nearest, least = carry
        gaps, normals = linearise(points.astype(images.dtype))
        gaps, normals = (jnp.nan_to_num(x.astype(compute_dtype), posinf=1e30, neginf=-1e30) for x in (gaps, normals))
        forward = to_hyperplane(points, normals, gaps, threat.norm, threat.bounds)
        offsets = gaps + jnp.sum((normals * (centre - points)).reshape(gaps.shape[0], -1), axis=1)
        backward = to_hyperplane(centre, normals, offsets, threat.norm, threat.bounds)
        ahead, back = (jnp.maximum(_size(delta, threat), 1e-8) for delta in (forward, backward))
        alpha = threat_model.expand(jnp.minimum(ahead / (ahead + back), ALPHA_MAX), points)
        points = (points + ETA * forward) * (1 - alpha) + (centre + ETA * backward) * alpha
        points = jnp.clip(points, *threat.bounds)

        inputs = points.astype(images.dtype)
        fooled = ~is_correct(logits_fn(inputs), labels)
        far = threat_model.distance(inputs, images, threat)
        nearer = fooled & (far < least)
        nearest, least = where(nearer, inputs, nearest), jnp.where(nearer, far, least)
        return where(fooled, centre + BETA * (points - centre), points), nearest, least

    least = jnp.full_like(threat_model.distance(images, images, threat), jnp.inf)
    return jax.lax.fori_loop(0, num_steps, step, (start, images, least))[1]


def to_hyperplane(
    points: jax.Array, weights: jax.Array, offsets: jax.Array, norm: str, bounds: tuple[float, float]
) -> jax.Array:
    """Computes the smallest step from a point onto a hyperplane without leaving the box of valid pixels.

    Minimises the norm of `step` subject to `weights . step = -offsets` and to `points + step` inside the bounds. Where
    no point of the box lies on the hyperplane, it is the step to the nearest corner of the box.

    In both norms every coordinate moves towards the hyperplane by a size that grows with a common level, until it
    reaches the border of the box: by the level itself in L-infinity, by the level times the weight in L2. The steps
    gain `sum_i slope_i * min(level, limit_i)`, which is concave and piecewise linear in the level.

    Args:
        points: `[B, ...]`, inside the bounds.
        weights: `[B, ...]`, normal vectors of the hyperplanes.
        offsets: `[B]`, `weights . points - b`.
        norm: `linf` or `l2`.
        bounds: Smallest and largest valid pixel.

    Returns:
        Steps `[B, ...]`; 0 where a weight is 0 or an offset is.

    Guarantees:
        `test_the_step_to_a_hyperplane_is_that_of_an_independent_solver`.

    References:
        Section 2.1 and appendix A.

    >>> points, weights = jnp.array([[0.5, 0.9]]), jnp.array([[1.0, 1.0]])
    >>> to_hyperplane(points, weights, jnp.array([-0.5]), "l2", (0.0, 1.0)).round(3).tolist()
    [[0.4000000059604645, 0.10000000149011612]]
    """
    flat = points.reshape(points.shape[0], -1)
    weights = weights.reshape(flat.shape)
    # Scaled, so that tiny gradients do not underflow.
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

    Each round solves with the terms that have not reached their limit and then updates which have. It ends when none
    does, after a few rounds and at most D. (Sorting the limits takes longer than the gradient of a small network.)

    Args:
        slopes: `[B, D]`, at least 0.
        limits: `[B, D]`, at least 0.
        amounts: `[B]`, at least 0.

    Returns:
        `[B]`; more than the largest limit where all limits together are less than the amount.

    >>> fill_level(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 3.0]]), jnp.array([5.0])).tolist()
    [2.0]
    """
    beyond = 2 * jnp.max(limits, axis=1) + 1

    def one_round(carry):
        _, level, full = carry
        held = jnp.sum(jnp.where(full, slopes * limits, 0), axis=1)
        slope = jnp.sum(jnp.where(full, 0, slopes), axis=1)
        # This level is too low where it exceeds further limits.
        raised = jnp.where(slope > 0, (amounts - held) / jnp.where(slope > 0, slope, 1.0), beyond)
        level = jnp.clip(raised, level, beyond)
        now_full = limits <= level[:, None]
        return jnp.any(now_full & ~full & (slopes > 0)), level, now_full

    # True, of the type that the loop computes, which under shard_map varies over the devices.
    go_on = jnp.any(jnp.isnan(slopes * limits)) | True
    start = go_on, jnp.zeros_like(amounts), limits <= 0
    return jax.lax.while_loop(lambda carry: carry[0], one_round, start)[1]


def _start(keys, images, threat, moved):
    """Returns the image, or where `moved` a point on the surface of the ball of half the radius."""
    noise = sphere_noise(keys, images, threat)
    return jnp.clip(images + jnp.where(moved, 0.5 * threat.epsilon, 0.0).astype(noise.dtype) * noise, *threat.bounds)


def _at(logits, classes):
    return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def _size(steps, threat):
    return threat_model.distance(steps, jnp.zeros_like(steps), threat)

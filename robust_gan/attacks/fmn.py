"""Fast minimum-norm attack: the smallest perturbation of each image, whatever epsilon.

Unlike the authors' it is run once for each of the most likely wrong classes, as targeted FAB is, for a single run often
ends at a class that is not the nearest, and then from output-diversified points at the distance that was reached. In
L-infinity its steps go along the sign of the gradient and not, as theirs, along the gradient, and they have momentum:
docs/attacks.md has the differences.

References:
    Pintor, Roli, Brendel and Biggio, "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints",
    NeurIPS 2021, https://arxiv.org/abs/2102.12827
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan import prng, threat_model
from robust_gan.attacks._best import where
from robust_gan.attacks._checks import aim, check_counts, checked
from robust_gan.attacks._start import diversify, likely_wrong
from robust_gan.attacks._steps import half_cosine
from robust_gan.losses import is_correct, margin
from robust_gan.types import LogitsFn, ThreatModel, get_compute_dtype

FIRST_STEP = {"linf": 0.07, "l2": 0.7}
"""Length of the first step in the norm of the threat model, in units of the pixel range."""
LAST_STEP = 0.03
"""Length of the last step, in units of the first; falls along half a cosine."""
FIRST_GROWTH, LAST_GROWTH = 0.2, 0.0001
"""Share by which the radius grows or shrinks in a step; falls along half a cosine."""
MOMENTUM = 0.75
"""Weight of the earlier directions, each gradient divided by the mean of its magnitudes."""


class SmallestPerturbations(NamedTuple):
    """The nearest misclassified images that were found.

    Attributes:
        images: `[B, H, W, C]`, inside the range; the clean image where none was found.
        distances: `[B]`, the norms of their perturbations: 0 where the clean image is misclassified, infinite where no
            misclassified image was found.
    """

    images: jax.Array
    distances: jax.Array


@checked
def fmn(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 50,
    num_targets: int | None = 4,
    num_restarts: int = 25,
    target: int | jax.Array | None = None,
) -> jax.Array:
    """Fast minimum-norm attack; returns the nearest misclassified image, projected onto the ball where it is outside.

    Args:
        logits_fn: Differentiable; this and the four arguments after it as in `types.Attack`.
        num_steps: Gradient steps of each run.
        num_targets: Number of wrong classes, the most likely first, at most K - 1: one run for each ascends the
            difference of its logit and the label's. None: a single run on the margin loss, as in the paper.
        num_restarts: Number of further runs, at least 0, on the margin loss, from output-diversified points at the
            distance of the nearest image so far.
        target: A class, or int32 `[B]`, to be reached in one run: the nearest image that is classified so is searched.

    Returns:
        Adversarial images `[B, H, W, C]`.

    Raises:
        UserError: A count is too small, or another argument is invalid, see `_checks`.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.3)
    >>> found = fmn(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25))
    >>> bool(found.sum() < 0.5), bool(jnp.abs(found - x).max() < 0.06)
    (True, True)
    """
    found = _search(logits_fn, key, images, labels, threat, num_steps, num_targets, num_restarts, target)
    return threat_model.project(found.images, images, threat)


@checked
def smallest_perturbations(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 50,
    num_targets: int | None = 4,
    num_restarts: int = 25,
    target: int | jax.Array | None = None,
) -> SmallestPerturbations:
    """Searches the smallest perturbation of each image by the fast minimum-norm attack.

    Args:
        logits_fn: As `fmn`; this and the four arguments after it as in `types.Attack`. The radius of the threat model
            is not used.
        num_steps: Gradient steps of each run.
        num_targets: Number of wrong classes, the most likely first, at most K - 1: one run for each ascends the
            difference of its logit and the label's. None: a single run on the margin loss, as in the paper.
        num_restarts: Number of further runs, at least 0, on the margin loss, from output-diversified points at the
            distance of the nearest image so far.
        target: A class, or int32 `[B]`, to be reached in one run: the nearest image that is classified so is searched.

    Returns:
        The images and the distances: the share of distances above a radius is the robust accuracy at that radius.

    Raises:
        UserError: As `fmn`.

    Guarantees:
        `test_fmn_finds_the_nearest_point_of_a_linear_classifier`.

    References:
        Pintor et al. 2021, algorithm 1.

    >>> from robust_gan import L2Threat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.3)
    >>> found = smallest_perturbations(logits_fn, jax.random.key(0), x, jnp.array([0]), L2Threat(1.0))
    >>> print(f"{found.distances[0]:.2f}")
    0.07
    """
    return _search(logits_fn, key, images, labels, threat, num_steps, num_targets, num_restarts, target)


def _search(logits_fn, key, images, labels, threat, num_steps, num_targets, num_restarts, target):
    """Runs the attack for each class and from the diversified points, and returns the nearest images of all runs."""
    check_counts(num_steps=num_steps, num_targets=1 if num_targets is None else num_targets)
    check_counts(0, num_restarts=num_restarts)
    classes, loss_fn, targeted = aim(labels, target, margin)
    run = functools.partial(_run, logits_fn, images, threat, num_steps)

    def is_fooled(logits):
        return is_correct(logits, classes) == targeted

    def one_round(index, found):
        new = run(lambda logits: margin(logits, labels, targets[:, index]), is_fooled, images, never)
        return _keep_nearer(found, *new)

    def one_restart(index, found):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(image_keys)
        return run(lambda logits: loss_fn(logits, classes), is_fooled, diversified(keys, found.distances), found)

    never = SmallestPerturbations(images, jnp.full_like(threat_model.distance(images, images, threat), jnp.inf))
    if target is not None or num_targets is None:
        found = run(lambda logits: loss_fn(logits, classes), is_fooled, images, never)
    else:
        targets = likely_wrong(logits_fn(images), labels, num_targets)
        found = jax.lax.fori_loop(0, targets.shape[1], one_round, never)
    image_keys = prng.per_image_keys(key, images.shape[0])
    diversified = functools.partial(_diversified, logits_fn, images, threat)
    return jax.lax.fori_loop(0, num_restarts, one_restart, found)


def _diversified(logits_fn, images, threat, keys, distances):
    """Returns output-diversified points at the distances, anywhere in the range for those that are infinite."""
    everywhere = threat_model.whole_range(threat, images.shape[1:])
    centre = images.astype(get_compute_dtype(images.dtype))
    radius = jnp.where(jnp.isfinite(distances), distances, everywhere.epsilon)
    point_keys, weight_keys, pass_keys = prng.split_per_image(keys, 3)

    def ascend(points, direction):
        return jnp.clip(
            _onto(points + threat_model.expand(radius, points) * direction, centre, radius, threat.norm), *threat.bounds
        )

    start = ascend(threat_model.random_start(point_keys, centre, everywhere), 0.0)
    return diversify(logits_fn, weight_keys, pass_keys, images, everywhere, start, ascend)


def _keep_nearer(found, images, distances):
    nearer = distances < found.distances
    return SmallestPerturbations(where(nearer, images, found.images), jnp.where(nearer, distances, found.distances))


def _run(logits_fn, images, threat, num_steps, loss_fn, is_fooled, points, found):
    """Runs algorithm 1 for a loss of the logits and for what counts as success, from points and the nearest so far."""
    compute_dtype = get_compute_dtype(images.dtype)
    centre, (low, high) = images.astype(compute_dtype), threat.bounds

    def gap(points):
        logits = logits_fn(points)
        losses = loss_fn(logits)
        return jnp.sum(losses), (losses.astype(compute_dtype), is_fooled(logits))

    def step(index, carry):
        points, radius, direction, found = carry
        inputs = points.astype(images.dtype)
        gradient, (gaps, fooled) = jax.grad(gap, has_aux=True)(inputs)
        gradient = jnp.nan_to_num(gradient.astype(compute_dtype), posinf=1e30, neginf=-1e30)
        far = threat_model.distance(inputs, images, threat)
        found = _keep_nearer(found, inputs, jnp.where(fooled, far, jnp.inf))
        cosine = half_cosine(index, num_steps, compute_dtype)
        growth = LAST_GROWTH + (FIRST_GROWTH - LAST_GROWTH) * cosine
        # Before a misclassified point is found, the radius reaches beyond the boundary of the linearised classifier: on
        # it, where two classes tie, rounding would decide and the search could stop.
        slope = threat_model.dual_norm(gradient, threat)
        ahead = far + jnp.where(slope > 0, jnp.abs(gaps) / jnp.where(slope > 0, slope, 1.0), jnp.inf)
        farther = jnp.where(jnp.isfinite(found.distances), radius, ahead) * (1 + growth)
        radius = jnp.where(fooled, jnp.minimum(radius * (1 - growth), found.distances), farther)
        size = (high - low) * FIRST_STEP[threat.norm] * (LAST_STEP + (1 - LAST_STEP) * cosine)
        magnitude = jnp.mean(jnp.abs(gradient), axis=range(1, gradient.ndim), keepdims=True)
        direction = MOMENTUM * direction + gradient / jnp.where(magnitude > 0, magnitude, 1.0)
        moved = points + size * threat_model.steepest_ascent(direction, threat)
        return jnp.clip(_onto(moved, centre, radius, threat.norm), low, high), radius, direction, found

    start = points.astype(compute_dtype), found.distances, jnp.zeros_like(centre), found
    points, _, _, found = jax.lax.fori_loop(0, num_steps, step, start)
    inputs = points.astype(images.dtype)
    far = threat_model.distance(inputs, images, threat)
    return _keep_nearer(found, inputs, jnp.where(is_fooled(logits_fn(inputs)), far, jnp.inf))


def _onto(points, centre, radius, norm):
    """Projects points onto balls of a radius for each image; NaN and infinite radii project nothing."""
    delta = points - centre
    radius = threat_model.expand(radius, points)
    if norm == "linf":
        return jnp.where(jnp.isfinite(radius), centre + jnp.clip(delta, -radius, radius), points)
    size = threat_model.l2_norm(delta).reshape(radius.shape)
    return jnp.where(size > radius, centre + delta * (radius / jnp.where(size > 0, size, 1.0)), points)

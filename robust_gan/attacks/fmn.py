"""Fast minimum-norm attack: the smallest perturbation of each image, whatever epsilon.

Unlike the authors' it is run once for each wrong class, as targeted FAB is: a single run often ends at a class that is
not the nearest. In L-infinity its steps go along the sign of the gradient and not, as theirs, along the gradient:
docs/attacks.md has the difference.

References:
    Pintor, Roli, Brendel and Biggio, "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints",
    NeurIPS 2021, https://arxiv.org/abs/2102.12827
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan import threat_model
from robust_gan.attacks._best import where
from robust_gan.attacks._checks import aim, check_counts, checked
from robust_gan.attacks._start import likely_wrong
from robust_gan.losses import is_correct, margin
from robust_gan.types import LogitsFn, ThreatModel, get_compute_dtype

FIRST_STEP = {"linf": 0.1, "l2": 1.0}
"""Length of the first step in the norm of the threat model, in units of the pixel range."""
LAST_STEP = 0.01
"""Length of the last step, in units of the first; falls along half a cosine."""
FIRST_GROWTH, LAST_GROWTH = 0.05, 0.0001
"""Share by which the radius grows or shrinks in a step; falls along half a cosine."""


class SmallestPerturbations(NamedTuple):
    """The nearest misclassified images that were found.

    Attributes:
        images: `[B, H, W, C]`, inside the range; the clean image where none was found.
        distances: `[B]`, the norms of their perturbations: 0 where the clean image is misclassified, infinite where no
            misclassified image was found.
    """

    images: jax.Array
    distances: jax.Array


@checked(optional=("key",))
def fmn(
    logits_fn: LogitsFn,
    key: jax.Array | None,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 100,
    num_targets: int | None = 9,
    target: int | jax.Array | None = None,
) -> jax.Array:
    """Fast minimum-norm attack; returns the nearest misclassified image, projected onto the ball where it is outside.

    Args:
        logits_fn: Differentiable; this and the four arguments after it as in `types.Attack`. The key is not used.
        num_steps: Gradient steps of each run.
        num_targets: Number of wrong classes, the most likely first, at most K - 1: one run for each ascends the
            difference of its logit and the label's. None: a single run on the margin loss, as in the paper.
        target: A class, or int32 `[B]`, to be reached in one run: the nearest image that is classified so is searched.

    Returns:
        Adversarial images `[B, H, W, C]`.

    Raises:
        UserError: The count is below 1, or another argument is invalid, see `_checks`.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.3)
    >>> found = fmn(logits_fn, None, x, jnp.array([0]), LinfThreat(0.25), num_steps=50)
    >>> bool(found.sum() < 0.5), bool(jnp.abs(found - x).max() < 0.06)
    (True, True)
    """
    del key
    return threat_model.project(
        _search(logits_fn, images, labels, threat, num_steps, num_targets, target).images, images, threat
    )


@checked(optional=("key",))
def smallest_perturbations(
    logits_fn: LogitsFn,
    key: jax.Array | None,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 100,
    num_targets: int | None = 9,
    target: int | jax.Array | None = None,
) -> SmallestPerturbations:
    """Searches the smallest perturbation of each image by the fast minimum-norm attack.

    Args:
        logits_fn: As `fmn`; this and the four arguments after it as in `types.Attack`. The radius of the threat model
            is not used.
        num_steps: Gradient steps of each run.
        num_targets: Number of wrong classes, the most likely first, at most K - 1: one run for each ascends the
            difference of its logit and the label's. None: a single run on the margin loss, as in the paper.
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
    >>> found = smallest_perturbations(logits_fn, None, jnp.full((1, 2, 1, 1), 0.3), jnp.array([0]), L2Threat(1.0))
    >>> print(f"{found.distances[0]:.2f}")
    0.07
    """
    del key
    return _search(logits_fn, images, labels, threat, num_steps, num_targets, target)


def _search(logits_fn, images, labels, threat, num_steps, num_targets, target):
    """Runs the attack for each class, and returns the nearest images of all runs."""
    check_counts(num_steps=num_steps, num_targets=1 if num_targets is None else num_targets)
    run = functools.partial(_run, logits_fn, images, threat, num_steps)
    if target is not None or num_targets is None:
        classes, loss_fn, targeted = aim(labels, target, margin)
        return run(lambda logits: loss_fn(logits, classes), lambda logits: is_correct(logits, classes) == targeted)
    targets = likely_wrong(logits_fn(images), labels, num_targets)

    def one_round(index, found):
        new = run(lambda logits: margin(logits, labels, targets[:, index]), lambda logits: ~is_correct(logits, labels))
        return _keep_nearer(found, new.images, new.distances)

    never = jnp.full_like(threat_model.distance(images, images, threat), jnp.inf)
    return jax.lax.fori_loop(0, targets.shape[1], one_round, SmallestPerturbations(images, never))


def _keep_nearer(found, images, distances):
    nearer = distances < found.distances
    return SmallestPerturbations(where(nearer, images, found.images), jnp.where(nearer, distances, found.distances))


def _run(logits_fn, images, threat, num_steps, loss_fn, is_fooled):
    """Runs algorithm 1 for a loss of the logits, and for what counts as success."""
    compute_dtype = get_compute_dtype(images.dtype)
    centre, (low, high) = images.astype(compute_dtype), threat.bounds

    def gap(points):
        logits = logits_fn(points)
        losses = loss_fn(logits)
        return jnp.sum(losses), (losses.astype(compute_dtype), is_fooled(logits))

    def step(index, carry):
        points, radius, found = carry
        inputs = points.astype(images.dtype)
        gradient, (gaps, fooled) = jax.grad(gap, has_aux=True)(inputs)
        far = threat_model.distance(inputs, images, threat)
        found = _keep_nearer(found, inputs, jnp.where(fooled, far, jnp.inf))
        cosine = (1 + jnp.cos(jnp.asarray(index, compute_dtype) * (jnp.pi / num_steps))) / 2
        growth = LAST_GROWTH + (FIRST_GROWTH - LAST_GROWTH) * cosine
        # Before a misclassified point is found, the radius reaches beyond the boundary of the linearised classifier: on
        # it, where two classes tie, rounding would decide and the search could stop.
        slope = threat_model.dual_norm(gradient.astype(compute_dtype), threat)
        ahead = far + jnp.where(slope > 0, jnp.abs(gaps) / jnp.where(slope > 0, slope, 1.0), jnp.inf)
        farther = jnp.where(jnp.isfinite(found.distances), radius, ahead) * (1 + growth)
        radius = jnp.where(fooled, jnp.minimum(radius * (1 - growth), found.distances), farther)
        size = (high - low) * FIRST_STEP[threat.norm] * (LAST_STEP + (1 - LAST_STEP) * cosine)
        moved = points + size * threat_model.steepest_ascent(gradient, threat)
        return jnp.clip(_onto(moved, centre, radius, threat.norm), low, high), radius, found

    never = jnp.full_like(threat_model.distance(images, images, threat), jnp.inf)
    start = centre, never, SmallestPerturbations(images, never)
    points, _, found = jax.lax.fori_loop(0, num_steps, step, start)
    inputs = points.astype(images.dtype)
    far = threat_model.distance(inputs, images, threat)
    return _keep_nearer(found, inputs, jnp.where(is_fooled(logits_fn(inputs)), far, jnp.inf))


def _onto(points, centre, radius, norm):
    """Projects points onto balls of a radius for each image; NaN and infinite radii project nothing."""
    delta = points - centre
    radius = radius.reshape((-1,) + (1,) * (delta.ndim - 1))
    if norm == "linf":
        return jnp.where(jnp.isfinite(radius), centre + jnp.clip(delta, -radius, radius), points)
    size = threat_model.l2_norm(delta).reshape(radius.shape)
    return jnp.where(size > radius, centre + delta * (radius / jnp.where(size > 0, size, 1.0)), points)

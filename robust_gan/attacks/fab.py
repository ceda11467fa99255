"""Fast Adaptive Boundary attack: looks for the nearest misclassified point, whatever epsilon, by linearising again."""

import functools

import jax
import jax.numpy as jnp

from robust_gan import prng, threat_model
from robust_gan.attacks._best import Best, update_best, where
from robust_gan.attacks._box_hyperplane import to_hyperplane
from robust_gan.attacks._compaction import run_restarts
from robust_gan.attacks.apgd import likely_wrong
from robust_gan.attacks.checking import check_counts, checked
from robust_gan.attacks.noise import sphere_noise
from robust_gan.losses import is_correct, margin
from robust_gan.types import LogitsFn, ThreatModel, wide_dtype

ALPHA_MAX = 0.1
"""Largest weight of the step that starts from the clean image."""
ETA = 1.05
"""Steps overshoot the linearised boundary by this factor."""
BETA = 0.9
"""A misclassified point is pulled back to this share of its distance from the clean image."""


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
    """FAB towards each of the most likely wrong classes; the nearest misclassified point, where it is in the ball.

    Args:
        logits_fn: The classifier, differentiable.
        key: One key, or one per image; used only by the second restart and those after it.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`.
        threat: The threat model.
        num_steps: Steps for each target class and restart.
        num_restarts: The first starts at the image, the others at random points within epsilon / 2.
        num_targets: How many classes to aim at, the most likely first; at most all wrong ones.

    Returns:
        Adversarial images `[B, H, W, C]`. Where no misclassified point in the ball was found, the nearest one beyond
        it moved into the ball, or the clean image where that has the larger margin loss.

    Raises:
        UserError: A count is below 1, or an argument cannot be meant; see `checking`.

    Guarantees:
        `test_fab_finds_the_nearest_point_of_a_linear_classifier`.

    References:
        Croce and Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML 2020,
        algorithm 1, https://arxiv.org/abs/1907.02044; the targets: Croce and Hein 2020 (as `apgd`), section 5.

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
    """FAB towards whichever class is nearest at each step: as many gradients for each step as there are classes.

    Args:
        logits_fn: The classifier, differentiable.
        key: One key, or one per image; used only by the second restart and those after it.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`.
        threat: The threat model.
        num_steps: Steps of each restart.
        num_restarts: The first starts at the image, the others at random points within epsilon / 2.

    Returns:
        Adversarial images `[B, H, W, C]`, as `fab_targeted`.

    Raises:
        UserError: A count is below 1, or an argument cannot be meant; see `checking`.

    References:
        As `fab_targeted`.

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
            far = jnp.where(index == labels, jnp.inf, jnp.abs(gaps) / (1e-12 + _dual_norm(normals, threat.norm)))
            better = far < nearest[0]
            return tuple(where(better, new, old) for new, old in zip((far, gaps, normals), nearest, strict=True))

        none = jnp.full(logits.shape[:1], jnp.inf, logits.dtype)
        return jax.lax.fori_loop(0, logits.shape[1], nearer, (none, jnp.zeros_like(none), jnp.zeros_like(points)))[1:]

    return _attack(logits_fn, linearise, 1, key, images, labels, threat, num_steps, num_restarts)


def _attack(logits_fn, linearise, num_targets, key, images, labels, threat, num_steps, num_restarts):
    """Rounds over targets and restarts, each on the images that still stand."""
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
    """Returns the nearest misclassified point seen, in or out of the ball; the image itself where none was."""
    compute_dtype = wide_dtype(images.dtype)
    centre = images.astype(compute_dtype)

    def step(_, carry):
        points, nearest, least = carry
        gaps, normals = linearise(points.astype(images.dtype))
        gaps, normals = (jnp.nan_to_num(x.astype(compute_dtype), posinf=1e30, neginf=-1e30) for x in (gaps, normals))
        forward = to_hyperplane(points, normals, gaps, threat.norm, threat.bounds)
        offsets = gaps + jnp.sum((normals * (centre - points)).reshape(gaps.shape[0], -1), axis=1)
        backward = to_hyperplane(centre, normals, offsets, threat.norm, threat.bounds)
        ahead, back = (jnp.maximum(_size(delta, threat), 1e-8) for delta in (forward, backward))
        alpha = jnp.minimum(ahead / (ahead + back), ALPHA_MAX).reshape((-1,) + (1,) * (points.ndim - 1))
        points = (points + ETA * forward) * (1 - alpha) + (centre + ETA * backward) * alpha
        points = jnp.clip(points, *threat.bounds)

        seen = points.astype(images.dtype)
        fooled = ~is_correct(logits_fn(seen), labels)
        far = threat_model.distance(seen, images, threat)
        nearer = fooled & (far < least)
        nearest, least = where(nearer, seen, nearest), jnp.where(nearer, far, least)
        return where(fooled, centre + BETA * (points - centre), points), nearest, least

    least = jnp.full_like(threat_model.distance(images, images, threat), jnp.inf)
    return jax.lax.fori_loop(0, num_steps, step, (start, images, least))[1]


def _start(keys, images, threat, moved):
    """The image, or where `moved` a point of the surface of the ball of half the radius."""
    noise = sphere_noise(keys, images, threat)
    return jnp.clip(images + jnp.where(moved, 0.5 * threat.epsilon, 0.0).astype(noise.dtype) * noise, *threat.bounds)


def _at(logits, classes):
    return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def _size(steps, threat):
    return threat_model.distance(steps, jnp.zeros_like(steps), threat)


def _dual_norm(normals, norm):
    """How much a linear function grows over a step of unit size."""
    if norm == "linf":
        return jnp.sum(jnp.abs(normals), axis=tuple(range(1, normals.ndim)))
    return threat_model.l2_norm(normals)

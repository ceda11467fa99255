"""Where a run of an attack starts: its key, its target classes, and output-diversified starting points."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_gan import prng, threat_model
from robust_gan.attacks._best import project_input
from robust_gan.attacks._eot import apply_logits, loss_gradient
from robust_gan.errors import UserError
from robust_gan.types import LogitsFn, ThreatModel, get_compute_dtype

ODI_STEPS = 2
"""Steps of length epsilon that diversify the logits, as in the paper's white-box attacks."""


def check_start(start: str, kinds: tuple[str, ...]) -> None:
    """Raises `UserError` for an unknown kind of starting point.

    >>> check_start("odd", ("uniform", "odi"))
    Traceback (most recent call last):
    robust_gan.errors.UserError: start must be one of uniform, odi, not 'odd'
    """
    if start not in kinds:
        raise UserError(f"start must be one of {', '.join(kinds)}, not {start!r}")


def odi_start(logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, threat: ThreatModel) -> jax.Array:
    """Draws starting points whose logits differ: output-diversified initialisation.

    From a uniform point of the ball the steps of `diversify` have length epsilon.

    Args:
        logits_fn: Differentiable.
        keys: One key per image.
        images: `[B, H, W, C]`.
        threat: The threat model.

    Returns:
        Points `[B, H, W, C]` of the ball and the range, at least float32.

    Guarantees:
        `test_the_odi_start_follows_its_definition`.

    References:
        Tashiro, Song and Ermon, "Diversity can be Transferred: Output Diversification for White- and Black-box
        Attacks", NeurIPS 2020, algorithm 1, https://arxiv.org/abs/2003.06878

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> start = odi_start(logits_fn, jax.random.split(jax.random.key(0), 1), jnp.full((1, 2, 1, 1), 0.5),
    ...                   LinfThreat(0.25))
    >>> sorted(set(jnp.abs(start - 0.5).ravel().tolist()))
    [0.25]
    """
    centre = images.astype(get_compute_dtype(images.dtype))
    point_keys, weight_keys, pass_keys = prng.split_per_image(keys, 3)

    def ascend(points, direction):
        return threat_model.project(points + jnp.asarray(threat.epsilon, centre.dtype) * direction, centre, threat)

    return diversify(
        logits_fn, weight_keys, pass_keys, images, threat, threat_model.random_start(point_keys, centre, threat), ascend
    )


def diversify(
    logits_fn: LogitsFn,
    weight_keys: jax.Array,
    pass_keys: jax.Array,
    images: jax.Array,
    threat: ThreatModel,
    points: jax.Array,
    ascend_fn: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Takes `ODI_STEPS` steps that ascend `w . logits`, with weights w uniform in [-1, 1] for each class and image.

    Args:
        logits_fn: Differentiable.
        weight_keys: One key per image.
        pass_keys: The same, for a randomised classifier.
        images: `[B, H, W, C]`, the centres.
        threat: The threat model, for the input of the classifier and the direction.
        points: `[B, H, W, C]`, where the steps start, at least float32.
        ascend_fn: Points and the direction of steepest ascent to the next points.

    Returns:
        Points `[B, H, W, C]`.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), x.sum((1, 2, 3))], -1)
    >>> keys, x = jax.random.split(jax.random.key(0), 1), jnp.full((1, 1, 1, 1), 0.5)
    >>> diversify(logits_fn, keys, keys, x, LinfThreat(0.5), x, lambda points, up: points + 0.125 * up).ravel().tolist()
    [0.75]
    """
    logits = jax.eval_shape(functools.partial(apply_logits, logits_fn), images, pass_keys)
    weights = prng.uniform_per_image(weight_keys, logits.shape[1:], logits.dtype, -1.0, 1.0)

    def step(index, points):
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(pass_keys)
        inputs = project_input(points, images, threat)
        gradient = loss_gradient(logits_fn, lambda logits: jnp.sum(weights * logits, axis=-1), inputs, step_keys)[0]
        return ascend_fn(points, threat_model.steepest_ascent(gradient, threat))

    return jax.lax.fori_loop(0, ODI_STEPS, step, points)


def likely_wrong(logits: jax.Array, labels: jax.Array, num_targets: int) -> jax.Array:
    """Returns the most likely wrong classes of each image, the most likely first: `[B, min(num_targets, K - 1)]`.

    >>> likely_wrong(jnp.array([[1.0, 5.0, 3.0, 2.0]]), jnp.array([1]), 2).tolist()
    [[2, 3]]
    """
    count = logits.shape[-1]
    # NaN would come first; the label comes last in any case.
    ranked = jnp.where(jax.nn.one_hot(labels, count, dtype=bool), -jnp.inf, jnp.nan_to_num(logits))
    return jnp.argsort(ranked, axis=-1, descending=True)[:, : min(num_targets, count - 1)]


def round_keys(key: jax.Array, images: jax.Array, num_rounds: int) -> jax.Array:
    """Returns keys `[B, rounds]`: the first axis is gathered with the images.

    >>> round_keys(jax.random.key(0), jnp.zeros((2, 1, 1, 1)), 3).shape
    (2, 3)
    """
    return jnp.swapaxes(prng.split_per_image(prng.per_image_keys(key, images.shape[0]), num_rounds), 0, 1)

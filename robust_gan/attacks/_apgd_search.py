"""The search of Auto-PGD: one run from a random start, with momentum and a step size that halves at checkpoints.

Constants and rules are those of the authors' implementation, with one difference: at the first checkpoint the first
step counts as a rise of the loss if it is one over the starting point, where theirs compares with 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import prng, threat_model
from robust_gan.attacks._best import Best, update_best, where
from robust_gan.attacks._eot import loss_gradient
from robust_gan.attacks.noise import sphere_noise
from robust_gan.types import LogitsFn, ThreatModel, wide_dtype

FIRST_STEP = 2.0
"""Length of the first steps in units of epsilon."""
MOMENTUM = 0.75
"""Share of the new step; the rest is the step before."""
RHO = 0.75
"""Share of the steps since the last checkpoint up to which a rising loss is too rare, so that the step halves."""


def checkpoints(num_steps: int) -> tuple[int, ...]:
    """Returns after which steps the step size is reconsidered.

    At 22 % of the steps, then at intervals that shrink by 3 % of the steps down to 6 %; all at least one step.

    References:
        Croce and Hein 2020, section 3.1.

    >>> checkpoints(100)
    (22, 41, 57, 70, 80, 87, 93, 99)
    """
    interval = max(int(0.22 * num_steps), 1)
    found = [interval]
    while True:
        interval = max(interval - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
        if found[-1] + interval > num_steps:
            return tuple(found)
        found.append(found[-1] + interval)


class _State(NamedTuple):
    """What a run carries from step to step; per image, in the notation of algorithm 1."""

    points: jax.Array
    previous: jax.Array
    gradient: jax.Array
    losses: jax.Array
    size: jax.Array
    top_points: jax.Array
    top_gradient: jax.Array
    top_losses: jax.Array
    rises: jax.Array
    halved: jax.Array
    checkpoint_losses: jax.Array


def search(
    logits_fn: LogitsFn,
    loss_fn: Callable[[jax.Array], jax.Array],
    keys: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    best: Best,
    *,
    num_steps: int,
    num_samples: int,
) -> Best:
    """Runs Auto-PGD once; it follows the highest loss, misclassified or not.

    Args:
        logits_fn: The classifier; see `expectation`.
        loss_fn: What to ascend: logits `[B, K]` to losses `[B]`.
        keys: One key per image.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`.
        threat: The threat model.
        best: The best points of the runs before.
        num_steps: Steps of the run.
        num_samples: Passes through a randomised classifier for each gradient.

    Returns:
        The best points of these runs and of this one.

    References:
        Croce and Hein 2020, algorithm 1.

    >>> from robust_gan import LinfThreat
    >>> from robust_gan.attacks._best import init_best
    >>> x, line = jnp.full((1, 1, 1, 2), 0.5), lambda x: x[:, 0, 0]
    >>> best = search(line, lambda logits: logits[:, 1], jax.random.split(jax.random.key(0), 1), x, jnp.array([0]),
    ...               LinfThreat(0.25), init_best(x, jnp.zeros(1)), num_steps=4, num_samples=1)
    >>> best.images[0, 0, 0, 1].item(), best.fooled.item()
    (0.75, True)
    """
    compute_dtype = wide_dtype(images.dtype)
    centre = images.astype(compute_dtype)
    start_keys, sample_keys = prng.split_per_image(keys, 2)
    ends = checkpoints(num_steps)
    between = np.zeros(num_steps + 1, np.int32)  # 0 where the step does not end at a checkpoint.
    between[np.array(ends)] = np.diff([0, *ends])
    intervals = jnp.asarray(between)

    def look(points, index, best):
        seen = points if images.dtype == compute_dtype else threat_model.project(points, images, threat)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(sample_keys)
        gradient, losses, logits = loss_gradient(logits_fn, loss_fn, seen, step_keys, num_samples=num_samples)
        best = update_best(best, seen, losses, logits, labels)
        return gradient.astype(compute_dtype), jnp.where(jnp.isnan(losses), -jnp.inf, losses), best

    def step(index, carry):
        # Step 0 looks at the start: with gradient 0 it goes nowhere. So the classifier is compiled once.
        state, best = carry
        share = jnp.where(index > 1, MOMENTUM, 1.0).astype(compute_dtype)
        moved = state.points + state.size * threat_model.steepest_ascent(state.gradient, threat)
        moved = threat_model.project(moved, centre, threat)
        moved = state.points + share * (moved - state.points) + (1 - share) * (state.points - state.previous)
        points = threat_model.project(moved, centre, threat)
        gradient, losses, best = look(points, index, best)

        higher = losses > state.top_losses
        top_points = where(higher, points, state.top_points)
        top_gradient = where(higher, gradient, state.top_gradient)
        top_losses = jnp.where(higher, losses, state.top_losses)
        rises = state.rises + ((losses > state.losses) & (index > 0)).astype(jnp.int32)

        interval = intervals[index]
        checkpoint = interval > 0
        rare = rises.astype(jnp.float32) <= RHO * interval.astype(jnp.float32)
        stalled = ~state.halved & (top_losses <= state.checkpoint_losses)
        halve = checkpoint & (rare | stalled)
        return _State(
            # The momentum of the next step is from the point before this one to wherever the search goes on.
            points=where(halve, top_points, points),
            previous=state.points,
            gradient=where(halve, top_gradient, gradient),
            losses=losses,
            size=where(halve, state.size / 2, state.size),
            top_points=top_points,
            top_gradient=top_gradient,
            top_losses=top_losses,
            rises=jnp.where(checkpoint, 0, rises),
            halved=jnp.where(checkpoint, halve, state.halved),
            checkpoint_losses=jnp.where(checkpoint | (index == 0), top_losses, state.checkpoint_losses),
        ), best

    start = centre + jnp.asarray(threat.epsilon, compute_dtype) * sphere_noise(start_keys, centre, threat)
    start = threat_model.project(start, centre, threat)
    none = jnp.full_like(best.losses, -jnp.inf)
    size = jnp.full_like(none, FIRST_STEP, compute_dtype) * jnp.asarray(threat.epsilon, compute_dtype)
    size = size.reshape(size.shape + (1,) * (images.ndim - 1))
    rises, halved, flat = jnp.zeros_like(none, jnp.int32), none < 0, jnp.zeros_like(start)
    state = _State(start, start, flat, none, size, start, flat, none, rises, halved, none)
    return jax.lax.fori_loop(0, num_steps + 1, step, (state, best))[1]

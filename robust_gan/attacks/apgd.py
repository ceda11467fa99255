"""Auto-PGD: projected gradient ascent with momentum whose step size halves at checkpoints, untargeted and targeted.

Constants and rules are those of the authors' implementation, with one difference: at the first checkpoint the first
step counts as a rise of the loss if it is one over the starting point, where theirs compares with 0.

References:
    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    ICML 2020, https://arxiv.org/abs/2003.01690
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import prng, threat_model
from robust_gan.attacks._best import Best, init_best, project_input, update_best, where
from robust_gan.attacks._checks import aim, check_counts, checked, checked_loss
from robust_gan.attacks._compaction import run_restarts
from robust_gan.attacks._eot import apply_logits, loss_gradient
from robust_gan.attacks._start import check_start, likely_wrong, odi_start, round_keys
from robust_gan.attacks._steps import check_record, row_of, run_steps
from robust_gan.attacks.noise import sphere_noise
from robust_gan.errors import UserError
from robust_gan.losses import check_labels, cross_entropy, dlr, is_correct
from robust_gan.types import LogitsFn, LossFn, PyTree, ThreatModel, get_compute_dtype

FIRST_STEP = 2.0
"""Length of the first steps in units of epsilon."""
MOMENTUM = 0.75
"""Share of the new step; the rest is the step before."""
RHO = 0.75
"""Share of the steps since the last checkpoint up to which a rising loss is too rare, so that the step halves."""


@checked(randomised=True)
def apgd(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    loss_fn: LossFn = cross_entropy,
    loss_args: tuple[PyTree, ...] = (),
    start: str = "sphere",
    target: int | jax.Array | None = None,
    record_fn: Callable[[tuple[jax.Array, ...]], None] | None = None,
    num_samples: int = 1,
) -> jax.Array:
    """Auto-PGD without targets; returns the best iterate.

    The classifier may be `attacks.randomised`: it gets fresh keys at every pass. The iterates are at least float32, and
    the classifier gets them in the dtype of the images.

    Args:
        logits_fn: Differentiable; this and the four arguments after it as in `types.Attack`.
        num_steps: Gradient steps of each restart.
        num_restarts: Independent runs, each on the images that are still classified correctly.
        loss_fn: The unreduced loss: `loss_fn(logits, labels, *loss_args)`.
        loss_args: Further arguments of the loss, arrays `[B, ...]`; gathered with the images.
        start: On the `sphere` of radius epsilon, or `odi`: output-diversified, see `_start.odi_start`.
        target: A class, or int32 `[B]`, to be reached, as in `pgd`.
        record_fn: Called with what each step does, for `trace`.
        num_samples: Passes through a randomised classifier for each gradient.

    Returns:
        Adversarial images `[B, H, W, C]`: a misclassified iterate before a correct one, then that of the highest loss.

    Raises:
        UserError: An argument is invalid (`_checks`), or the loss needs more classes or (with restarts) is a closure.

    Guarantees:
        `test_apgd_reaches_the_optimum_on_a_linear_classifier`, `test_apgd_follows_the_authors_rules`,
        `test_attack_does_not_depend_on_the_batch_size`.

    References:
        Croce and Hein 2020, algorithm 1.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 2, 1), 0.5)
    >>> apgd(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25), num_steps=5).ravel().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    check_counts(num_steps=num_steps, num_restarts=num_restarts, num_samples=num_samples)
    check_start(start, ("sphere", "odi"))
    check_record(record_fn, num_restarts)
    keys = round_keys(key, images, num_restarts)
    labels, loss_fn, targeted = aim(labels, target, loss_fn)  # type: ignore[arg-type]
    logits = apply_logits(logits_fn, images, keys[:, 0])
    loss_fn = checked_loss(loss_fn, logits, labels, loss_args, gathered=num_restarts > 1)
    best = init_best(images, loss_fn(logits, labels, *loss_args))

    def restart(index, best, keys, images, labels, loss_args):
        return _search(
            logits_fn, lambda logits: loss_fn(logits, labels, *loss_args), keys[:, index], images, labels, threat, best,
            num_steps=num_steps, num_samples=num_samples, start=start, targeted=targeted, record_fn=record_fn,
        )  # fmt: skip

    if num_restarts == 1:
        return restart(0, best, keys, images, labels, loss_args).images
    return run_restarts(restart, num_restarts, best, (keys, images, labels, loss_args)).images


@checked(randomised=True)
def apgd_targeted(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int = 9,
    targets: jax.Array | None = None,
    num_samples: int = 1,
) -> jax.Array:
    """Auto-PGD on the targeted DLR loss, once for each of the most likely wrong classes; returns the best iterate.

    Args:
        logits_fn: As `apgd`; this and the four arguments after it as in `types.Attack`.
        num_steps: Gradient steps of each run.
        num_restarts: Runs for each target, each on the images that are still classified correctly; an image that is
            misclassified from the start is returned as it is.
        num_targets: Number of target classes, the most likely first; at most K - 1.
        targets: int32 `[B, T]`, target classes in place of the most likely ones; `num_targets` is ignored then.
        num_samples: Passes through a randomised classifier for each gradient.

    Returns:
        Adversarial images `[B, H, W, C]`.

    Raises:
        UserError: A count is below 1, there are fewer than 4 classes, or another argument is invalid, see `_checks`.

    References:
        Croce and Hein 2020, section 5 and equation 7.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3)), *2 * [0 * x.sum((1, 2, 3))]], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.5)
    >>> apgd_targeted(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25), num_steps=5).ravel().tolist()
    [0.25, 0.25]
    """
    check_counts(num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets, num_samples=num_samples)
    logits = apply_logits(logits_fn, images, prng.per_image_keys(key, images.shape[0]))
    if targets is None:
        targets = likely_wrong(logits, labels, num_targets)
    elif jnp.ndim(targets) != 2 or not targets.shape[1]:
        raise UserError(f"targets must be integers [B, T], T classes for each image, not of shape {jnp.shape(targets)}")
    else:
        targets = jnp.stack([check_labels(column, logits.shape, "targets") for column in targets.T], axis=1)
    rounds = targets.shape[1] * num_restarts
    keys = round_keys(key, images, rounds)
    best = init_best(images, dlr(logits, labels, targets[:, 0]))._replace(fooled=~is_correct(logits, labels))

    def one_round(index, best, keys, images, labels, targets):
        def loss(logits):
            return dlr(logits, labels, targets[:, index // num_restarts])

        return _search(
            logits_fn, loss, keys[:, index], images, labels, threat, best, num_steps=num_steps, num_samples=num_samples
        )

    return run_restarts(one_round, rounds, best, (keys, images, labels, targets)).images


class _State(NamedTuple):
    """State of a run, per image, in the order of algorithm 1."""

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


def _init_state(start, threat, losses):
    """Returns the state of a run before the first step."""
    none = jnp.full_like(losses, -jnp.inf)
    size = jnp.full_like(none, FIRST_STEP, start.dtype) * jnp.asarray(threat.epsilon, start.dtype)
    size = threat_model.expand(size, start)
    rises, halved, flat = jnp.zeros_like(none, jnp.int32), none < 0, jnp.zeros_like(start)
    return _State(start, start, flat, none, size, start, flat, none, rises, halved, none)


def _search(
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
    start: str = "sphere",
    targeted: bool = False,
    record_fn: Callable[[tuple[jax.Array, ...]], None] | None = None,
) -> Best:
    """Runs Auto-PGD once, from a random start, and returns the best points of this run and of those before it.

    Args:
        loss_fn: Logits `[B, K]` to losses `[B]`.
        keys: One key per image.
        best: The best points of the runs before.
        num_steps: Gradient steps.
        num_samples: Passes through a randomised classifier for each gradient.
        start: As `apgd`.
        targeted: Whether the labels are target classes.
        record_fn: As `apgd`.

    References:
        Croce and Hein 2020, algorithm 1.
    """
    compute_dtype = get_compute_dtype(images.dtype)
    centre = images.astype(compute_dtype)
    start_keys, sample_keys = prng.split_per_image(keys, 2)
    ends = checkpoints(num_steps)
    between = np.zeros(num_steps + 1, np.int32)  # 0 where the step does not end at a checkpoint.
    between[np.array(ends)] = np.diff([0, *ends])
    intervals = jnp.asarray(between)

    def evaluate(points, index, best):
        inputs = project_input(points, images, threat)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(sample_keys)
        gradient, losses, logits = loss_gradient(logits_fn, loss_fn, inputs, step_keys, num_samples=num_samples)
        best = update_best(best, inputs, losses, logits, labels, targeted=targeted)
        return gradient.astype(compute_dtype), jnp.where(jnp.isnan(losses), -jnp.inf, losses), best

    def step(index, carry):
        # Step 0 evaluates the start: with gradient 0 it does not move. So the classifier is compiled once.
        state, best = carry
        share = jnp.where(index > 1, MOMENTUM, 1.0).astype(compute_dtype)
        moved = state.points + state.size * threat_model.steepest_ascent(state.gradient, threat)
        moved = threat_model.project(moved, centre, threat)
        moved = state.points + share * (moved - state.points) + (1 - share) * (state.points - state.previous)
        points = threat_model.project(moved, centre, threat)
        gradient, losses, best = evaluate(points, index, best)

        state = _next_state(state, points, gradient, losses, index, intervals[index])
        return (state, best), row_of(losses, best, state.size)

    if start == "odi":
        points = odi_start(logits_fn, start_keys, images, threat)
    else:
        points = centre + jnp.asarray(threat.epsilon, compute_dtype) * sphere_noise(start_keys, centre, threat)
    state = _init_state(threat_model.project(points, centre, threat), threat, best.losses)
    return run_steps(num_steps + 1, step, (state, best), record_fn)[1]


def _next_state(state, points, gradient, losses, index, interval):
    """Returns the state after a step to `points`; at a checkpoint (`interval` > 0) the step size may halve."""
    higher = losses > state.top_losses
    top_points = where(higher, points, state.top_points)
    top_gradient = where(higher, gradient, state.top_gradient)
    top_losses = jnp.where(higher, losses, state.top_losses)
    rises = state.rises + ((losses > state.losses) & (index > 0)).astype(jnp.int32)
    checkpoint = interval > 0
    rare = rises.astype(jnp.float32) <= RHO * interval.astype(jnp.float32)
    stalled = ~state.halved & (top_losses <= state.checkpoint_losses)
    halve = checkpoint & (rare | stalled)
    return _State(
        # The momentum of the next step starts from the point before this one, also after a return to the best.
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
    )


def checkpoints(num_steps: int) -> tuple[int, ...]:
    """Returns the steps after which the step size may halve.

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

"""FGSM and PGD, in L-infinity and L2."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_gan import threat_model
from robust_gan.attacks._best import init_best, project_input, update_best
from robust_gan.attacks._checks import aim, check_counts, check_size, checked, checked_logits, checked_loss
from robust_gan.attacks._compaction import run_restarts
from robust_gan.attacks._start import check_start, likely_wrong, odi_start, round_keys
from robust_gan.attacks._steps import check_record, half_cosine, row_of, run_steps
from robust_gan.errors import UserError
from robust_gan.losses import check_labels, cross_entropy, is_correct, margin
from robust_gan.types import LogitsFn, LossFn, PyTree, ThreatModel, get_compute_dtype

STARTS = ("uniform", "clean", "odi")
"""Kinds of starting points of PGD."""


def input_gradient(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    loss_fn: LossFn = cross_entropy,
    loss_args: tuple[PyTree, ...] = (),
) -> jax.Array:
    """Computes the gradient of each image's loss in its pixels, as a constant: no gradient flows through it.

    Args:
        logits_fn: The classifier, differentiable.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`.
        loss_fn: Unreduced: `loss_fn(logits, labels, *loss_args)`.
        loss_args: Further arguments of the loss, arrays `[B, ...]`.

    Returns:
        `[B, H, W, C]`.

    Raises:
        UserError: Images, labels, logits or losses are not of the shapes and types above.

    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> input_gradient(logits_fn, jnp.zeros((1, 1, 1, 1)), jnp.array([0])).item()
    -1.0
    """
    images = jax.lax.stop_gradient(jnp.asarray(images))
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images must be floats, not {images.dtype}")
    labels = check_labels(labels, images.shape[:1])
    logits_fn = checked_logits(logits_fn, labels)

    def total(points):
        logits = logits_fn(points)
        return jnp.sum(checked_loss(loss_fn, logits, labels, loss_args, gathered=False)(logits, labels, *loss_args))

    return jax.lax.stop_gradient(jax.grad(total)(images))


@checked(optional=("key",))
def fgsm(
    logits_fn: LogitsFn,
    key: jax.Array | None,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    loss_fn: LossFn = cross_entropy,
    loss_args: tuple[PyTree, ...] = (),
    target: int | jax.Array | None = None,
) -> jax.Array:
    """Fast gradient sign method: one step of length epsilon along the steepest ascent of the loss.

    Args:
        logits_fn: Differentiable; this and the four arguments after it as in `types.Attack`. The key is not used. In L2
            the step is along g / ||g||.
        loss_fn: The unreduced loss: `loss_fn(logits, labels, *loss_args)`.
        loss_args: Further arguments of the loss, arrays `[B, ...]`.
        target: A class, or int32 `[B]`; then the step descends the loss of the target.

    Returns:
        Adversarial images `[B, H, W, C]`.

    Raises:
        UserError: An argument is invalid, see `_checks`.

    Guarantees:
        `test_fgsm_is_the_optimum_on_a_linear_classifier`.

    References:
        Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, section 4.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 2, 1), 0.5)
    >>> fgsm(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25)).ravel().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    del key
    labels, loss_fn, _ = aim(labels, target, loss_fn)  # type: ignore[arg-type]  # Checked: an array or None.
    gradient = input_gradient(logits_fn, images, labels, loss_fn=loss_fn, loss_args=loss_args)
    direction = threat_model.steepest_ascent(gradient, threat)
    return threat_model.project(images + jnp.asarray(threat.epsilon, direction.dtype) * direction, images, threat)


@checked
def pgd(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 10,
    step_size: float | None = None,
    num_restarts: int = 1,
    start: str = "uniform",
    keep_best: bool = True,
    loss_fn: LossFn = cross_entropy,
    loss_args: tuple[PyTree, ...] = (),
    target: int | jax.Array | None = None,
    record_fn: Callable[[tuple[jax.Array, ...]], None] | None = None,
) -> jax.Array:
    """Projected gradient descent with random starts; returns the best iterate.

    The best iterate is a misclassified one before a correct one, then the one of the highest loss. Restarts attack only
    images that are still correct. Iterates are at least float32; the classifier gets them in the dtype of the images.

    Args:
        logits_fn: Differentiable; this and the four arguments after it as in `types.Attack`.
        num_steps: Gradient steps of each restart.
        step_size: In the unit of epsilon; by default 2.5 epsilon / num_steps: epsilon / 4 for 10 steps.
        num_restarts: Independent runs. With more than one the logits of an image must not depend on its batch.
        start: `uniform` in the ball, at the `clean` image, or `odi`: output-diversified, see `_start.odi_start`.
        keep_best: Return the best iterate; otherwise the last, as Madry et al. do (one restart only).
        loss_fn: The unreduced loss: `loss_fn(logits, labels, *loss_args)`.
        loss_args: Further arguments of the loss, arrays `[B, ...]`; restarts gather them, and no closure.
        target: A class, or int32 `[B]`, to be reached: the loss of the target is minimised.
        record_fn: Called with what each step does, for `trace`.

    Returns:
        Adversarial images `[B, H, W, C]`.

    Raises:
        UserError: An argument is invalid (`_checks`), or restarts lack `keep_best` or have a loss with a closure.

    Guarantees:
        `test_pgd_reaches_the_optimum_on_a_linear_classifier`, `test_pgd_returns_the_best_iterate`,
        `test_more_restarts_never_hurt`, `test_a_restart_attacks_the_remaining_images_alone`.

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, section 2.1.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 2, 1), 0.5)
    >>> pgd(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25)).ravel().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    check_counts(num_steps=num_steps, num_restarts=num_restarts)
    check_start(start, STARTS)
    check_record(record_fn, num_restarts)
    if num_restarts > 1 and not keep_best:
        raise UserError(f"of {num_restarts} restarts the best point is returned: set keep_best, or num_restarts to 1")
    labels, loss_fn, targeted = aim(labels, target, loss_fn)  # type: ignore[arg-type]
    logits = logits_fn(images)
    loss_fn = checked_loss(loss_fn, logits, labels, loss_args, gathered=num_restarts > 1)
    ascend = functools.partial(
        _ascend, logits_fn, loss_fn, threat, size_fn=_step_sizes(step_size, threat, num_steps, images.dtype),
        num_steps=num_steps, start=start, keep_best=keep_best, targeted=targeted, record_fn=record_fn,
    )  # fmt: skip
    best = init_best(images, loss_fn(logits, labels, *loss_args))
    inputs = round_keys(key, images, num_restarts), images, labels, loss_args
    if num_restarts == 1:
        return ascend(0, best, *inputs).images
    return run_restarts(ascend, num_restarts, best, inputs).images


@checked
def pgd_multi_targeted(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 50,
    step_size: float | None = None,
    num_restarts: int = 1,
    num_targets: int = 9,
    start: str = "uniform",
) -> jax.Array:
    """Multi-targeted PGD: ascends the margin of each of the most likely wrong classes in turn, with steps that fall.

    Args:
        logits_fn: As `pgd`; this and the four arguments after it as in `types.Attack`.
        num_steps: Gradient steps of each run.
        step_size: Of the first step, in the unit of epsilon; they fall to 0 along half a cosine. By default
            20 epsilon / num_steps, at most 2 epsilon.
        num_restarts: Runs for each target, each on the images that are still classified correctly; an image that is
            misclassified from the start is returned as it is.
        num_targets: Number of target classes, the most likely first; at most K - 1.
        start: As `pgd`.

    Returns:
        Adversarial images `[B, H, W, C]`: of all iterates a misclassified one before a correctly classified one, then
        the one whose margin of its target is the highest.

    Raises:
        UserError: A count is below 1, or another argument is invalid, see `_checks`.

    Guarantees:
        `test_multi_targeted_pgd_tries_every_class`.

    References:
        Gowal, Uesato, Qin, Huang, Mann and Kohli, "An Alternative Surrogate Loss for PGD-based Adversarial Testing",
        2019, https://arxiv.org/abs/1910.09338

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.125)
    >>> pgd_multi_targeted(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25)).ravel().tolist()
    [0.0, 0.0]
    """
    check_counts(num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets)
    check_start(start, STARTS)
    logits = logits_fn(images)
    targets = likely_wrong(logits, labels, num_targets)
    rounds = targets.shape[1] * num_restarts
    size_fn = _step_sizes(step_size, threat, num_steps, images.dtype, fall=True)
    ascend = functools.partial(_ascend, logits_fn, margin, threat, size_fn=size_fn, num_steps=num_steps, start=start)

    def one_round(index, best, keys, images, labels, targets):
        return ascend(index, best, keys, images, labels, (targets[:, index // num_restarts],))

    best = init_best(images, margin(logits, labels))._replace(fooled=~is_correct(logits, labels))
    return run_restarts(one_round, rounds, best, (round_keys(key, images, rounds), images, labels, targets)).images


def _step_sizes(step_size, threat, num_steps, dtype, *, fall=False):
    """Returns the function from the number of a step to its size: constant, or falling to 0 along half a cosine."""
    dtype = get_compute_dtype(dtype)
    if step_size is None:
        travel = min(20.0, 2.0 * num_steps) if fall else 2.5
        size = travel * jnp.asarray(threat.epsilon, dtype) / num_steps
    else:
        check_size("step_size", step_size)
        size = jnp.asarray(step_size, dtype)
    if not fall:
        return lambda index: size
    return lambda index: size * half_cosine(index, num_steps, dtype)


def _ascend(
    logits_fn, loss_fn, threat, index, best, keys, images, labels, loss_args, *, size_fn, num_steps, start,
    keep_best=True, targeted=False, record_fn=None,
):  # fmt: skip
    """Runs PGD once, with column `index` of `keys` `[B, runs]`; returns the best points of this run and of others."""
    centre = images.astype(get_compute_dtype(images.dtype))

    def loss_and_logits(points):
        logits = logits_fn(points)
        losses = loss_fn(logits, labels, *loss_args)
        return jnp.sum(losses), (losses, logits)

    def step(step_index, carry):
        points, best = carry
        inputs = project_input(points, images, threat)
        gradient, (losses, logits) = jax.grad(loss_and_logits, has_aux=True)(inputs)
        best = update_best(best, inputs, losses, logits, labels, targeted=targeted)
        size = size_fn(step_index)
        moved = points + size * threat_model.steepest_ascent(gradient, threat)
        return (threat_model.project(moved, centre, threat), best), row_of(losses, best, size)

    points = centre
    if start == "uniform":
        points = threat_model.random_start(keys[:, index], centre, threat)
    elif start == "odi":
        points = odi_start(logits_fn, keys[:, index], images, threat)
    points, best = run_steps(num_steps, step, (points, best), record_fn)
    inputs = project_input(points, images, threat)
    if not keep_best:
        return best._replace(images=inputs)
    _, (losses, logits) = loss_and_logits(inputs)
    return update_best(best, inputs, losses, logits, labels, targeted=targeted)

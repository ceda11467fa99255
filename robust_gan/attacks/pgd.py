"""FGSM and PGD, in L-infinity and L2."""

import jax
import jax.numpy as jnp

from robust_gan import prng, threat_model
from robust_gan.attacks._best import init_best, project_input, update_best
from robust_gan.attacks._checks import check_counts, check_size, checked, checked_logits, checked_loss
from robust_gan.attacks._compaction import run_restarts
from robust_gan.errors import UserError
from robust_gan.losses import check_labels, cross_entropy
from robust_gan.types import LogitsFn, LossFn, PyTree, ThreatModel, get_compute_dtype


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
) -> jax.Array:
    """Fast gradient sign method: one step of length epsilon along the steepest ascent of the loss.

    Args:
        logits_fn: Differentiable; this and the four arguments after it as in `types.Attack`. The key is not used. In L2
            the step is along g / ||g||.
        loss_fn: The unreduced loss: `loss_fn(logits, labels, *loss_args)`.
        loss_args: Further arguments of the loss, arrays `[B, ...]`.

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
    random_start: bool = True,
    keep_best: bool = True,
    loss_fn: LossFn = cross_entropy,
    loss_args: tuple[PyTree, ...] = (),
) -> jax.Array:
    """Projected gradient descent with random starts; returns the best iterate.

    The best iterate is a misclassified one before a correct one, then the one of the highest loss. Restarts attack only
    images that are still correct. Iterates are at least float32; the classifier gets them in the dtype of the images.

    Args:
        logits_fn: Differentiable; this and the four arguments after it as in `types.Attack`.
        num_steps: Gradient steps of each restart.
        step_size: In the unit of epsilon; by default 2.5 epsilon / num_steps: epsilon / 4 for 10 steps.
        num_restarts: Independent runs. With more than one the logits of an image must not depend on its batch.
        random_start: Start uniformly in the ball, otherwise at the image.
        keep_best: Return the best iterate; otherwise the last, as Madry et al. do (one restart only).
        loss_fn: The unreduced loss: `loss_fn(logits, labels, *loss_args)`.
        loss_args: Further arguments of the loss, arrays `[B, ...]`; restarts gather them with the images, which a
            closure over them would not do.

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
    if step_size is not None:
        check_size("step_size", step_size)
    if num_restarts > 1 and not keep_best:
        raise UserError(f"of {num_restarts} restarts the best point is returned: set keep_best, or num_restarts to 1")
    # `[B, restarts]`: a restart gathers them with the images.
    keys = jax.vmap(lambda key: jax.random.split(key, num_restarts))(prng.per_image_keys(key, images.shape[0]))
    logits = logits_fn(images)
    loss_fn = checked_loss(loss_fn, logits, labels, loss_args, gathered=num_restarts > 1)

    def restart(index, best, keys, images, labels, loss_args):
        return _ascend(
            logits_fn, lambda logits: loss_fn(logits, labels, *loss_args), keys[:, index] if random_start else None,
            images, labels, threat, best, num_steps, step_size, keep_best,
        )  # fmt: skip

    best = init_best(images, loss_fn(logits, labels, *loss_args))
    if num_restarts == 1:
        return restart(0, best, keys, images, labels, loss_args).images
    return run_restarts(restart, num_restarts, best, (keys, images, labels, loss_args)).images


def _ascend(logits_fn, loss_fn, keys, images, labels, threat, best, num_steps, step_size, keep_best):
    """Returns the best iterates of one run, or its last ones; without keys it starts at the images."""
    compute_dtype = get_compute_dtype(images.dtype)
    epsilon, centre = jnp.asarray(threat.epsilon, compute_dtype), images.astype(compute_dtype)
    size = 2.5 * epsilon / num_steps if step_size is None else jnp.asarray(step_size, compute_dtype)

    def loss_and_logits(points):
        logits = logits_fn(points)
        losses = loss_fn(logits)
        return jnp.sum(losses), (losses, logits)

    def step(_, carry):
        points, best = carry
        inputs = project_input(points, images, threat)
        gradient, (losses, logits) = jax.grad(loss_and_logits, has_aux=True)(inputs)
        best = update_best(best, inputs, losses, logits, labels)
        moved = points + size * threat_model.steepest_ascent(gradient, threat)
        return threat_model.project(moved, centre, threat), best

    start = centre if keys is None else threat_model.random_start(keys, centre, threat)
    points, best = jax.lax.fori_loop(0, num_steps, step, (start, best))
    inputs = project_input(points, images, threat)
    if not keep_best:
        return best._replace(images=inputs)
    logits = logits_fn(inputs)
    return update_best(best, inputs, loss_fn(logits), logits, labels)

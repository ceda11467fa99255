"""SPSA: Adam on gradients estimated from differences of the loss along random directions."""

import jax
import jax.numpy as jnp
import optax

from robust_gan import prng, threat_model
from robust_gan.attacks._best import init_best, project_input, update_best
from robust_gan.attacks._checks import check_counts, check_size, checked, checked_loss
from robust_gan.losses import margin
from robust_gan.types import LogitsFn, LossFn, PyTree, ThreatModel, get_compute_dtype

STEP_SIZE = 0.3
"""Adam's learning rate in units of epsilon; 0.01 at the 8/255 of the authors."""
PROBE_SIZE = 0.01
"""Distance of the probes from the point, as a share of the range of pixels."""


@checked
def spsa(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 100,
    num_samples: int = 128,
    probe_size: float | None = None,
    step_size: float | jax.Array | None = None,
    loss_fn: LossFn = margin,
    loss_args: tuple[PyTree, ...] = (),
) -> jax.Array:
    """Simultaneous perturbation stochastic approximation; returns the best iterate.

    Args:
        logits_fn: Only its values are used; this and the four arguments after it as in `types.Attack`.
        num_steps: Steps of Adam.
        num_samples: Random directions for each step, which takes 2 `num_samples` + 1 queries.
        probe_size: Distance of the probes from the point, in every pixel; by default a hundredth of the range.
        step_size: Adam's learning rate; by default 0.3 epsilon, in L2 over the root of the number of pixels.
        loss_fn: The unreduced loss: `loss_fn(logits, labels, *loss_args)`.
        loss_args: Further arguments of the loss, arrays `[B, ...]`; a loss cannot close over them.

    Returns:
        Adversarial images `[B, H, W, C]`.

    Raises:
        UserError: An argument is invalid (`_checks`).

    Guarantees:
        `test_spsa_reaches_the_optimum_on_a_linear_classifier`.

    References:
        Uesato et al., "Adversarial Risk and the Dangers of Evaluating Against Weak Attacks", ICML 2018, algorithm 1.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.5)
    >>> spsa(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25), num_steps=20).ravel().tolist()
    [0.25, 0.25]
    """
    check_counts(num_steps=num_steps, num_samples=num_samples)
    centre, keys = images.astype(get_compute_dtype(images.dtype)), prng.per_image_keys(key, images.shape[0])
    probe_size, step_size, adam = _scale_to_range(probe_size, step_size, centre, threat)
    logits = logits_fn(images)
    loss_fn = checked_loss(loss_fn, logits, labels, loss_args, gathered=True)
    probes_args = jax.tree.map(lambda rows: jnp.concatenate([rows, rows]), (labels, *loss_args))

    def probe_losses(probes):
        return loss_fn(logits_fn(probes.astype(images.dtype)), *probes_args).astype(centre.dtype)

    def evaluate(points, best):
        inputs = project_input(points, images, threat)
        logits = logits_fn(inputs)
        return update_best(best, inputs, loss_fn(logits, labels, *loss_args), logits, labels)

    def step(index, carry):
        points, moments, best = carry
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        slopes = _estimate_gradient(probe_losses, points, step_keys, probe_size, num_samples, threat.bounds)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to the power of an integer.
            ascent, moments = adam.update(slopes, moments)
        points = threat_model.project(points + step_size * ascent, centre, threat)
        return points, moments, evaluate(points, best)

    best = evaluate(centre, init_best(images, loss_fn(logits, labels, *loss_args)))
    return jax.lax.fori_loop(0, num_steps, step, (centre, adam.init(centre), best))[2].images


def _scale_to_range(probe_size, step_size, centre, threat):
    """Returns the sizes of probes and steps, and Adam, for the pixel range and the radius."""
    width = threat.bounds[1] - threat.bounds[0]
    probe_size = PROBE_SIZE * width if probe_size is None else probe_size
    for name, value in (("probe_size", probe_size), ("step_size", 1.0 if step_size is None else step_size)):
        check_size(name, value)
    if step_size is None:
        step_size = STEP_SIZE * jnp.asarray(threat.epsilon, centre.dtype)
        step_size = step_size / jnp.sqrt(centre[0].size) if threat.norm == "l2" else step_size
    # Slopes are per unit of the range: in a wider range they are smaller, and so is Adam's epsilon.
    return probe_size, step_size, optax.scale_by_adam(eps=1e-8 / width)


def _estimate_gradient(losses_fn, points, keys, probe_size, num_samples, bounds):
    """Estimates the gradient of the losses by central differences along random signs, the mean over samples."""

    def add(index, total):
        draws = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        signs = jnp.where(prng.uniform_per_image(draws, points.shape[1:]) < 0.5, -1.0, 1.0).astype(points.dtype)
        probes = jnp.clip(jnp.concatenate([points + probe_size * signs, points - probe_size * signs]), *bounds)
        ahead, behind = jnp.split(jnp.nan_to_num(losses_fn(probes), posinf=1e30, neginf=-1e30), 2)
        slopes = threat_model.expand((ahead - behind) / (2 * probe_size), points)
        return total + slopes * signs / num_samples

    return jax.lax.fori_loop(0, num_samples, add, jnp.zeros_like(points))

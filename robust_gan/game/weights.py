"""What is done to the classifier's weights beside the optimiser's step: perturbing and averaging them."""

import jax
import jax.numpy as jnp
import optax

from robust_gan.types import Params, PyTree


def perturb_weights(params: Params, gradient: Params, size: float) -> Params:
    """Moves every kernel along the gradient by `size` times its own norm: adversarial weight perturbation.

    Biases and BatchNorm's parameters (arrays of one axis) stay.

    Args:
        params: The weights.
        gradient: Of the loss in them, over all devices.
        size: gamma; 0.005 is usual.

    Returns:
        The weights to take the classifier's gradient at.

    References:
        Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, equation 10,
        https://arxiv.org/abs/2004.05884

    >>> moved = perturb_weights({"kernel": jnp.full((1, 1), 2.0)}, {"kernel": jnp.full((1, 1), 0.1)}, 0.5)
    >>> moved["kernel"].item()
    3.0
    """

    def move(weight: jax.Array, slope: jax.Array) -> jax.Array:
        if weight.ndim < 2:
            return weight
        norm = jnp.linalg.norm(slope)
        return weight + size * jnp.linalg.norm(weight) * slope / jnp.where(norm > 0, norm, 1.0)

    return jax.tree.map(move, params, gradient)


def update_average(average: PyTree, new: PyTree, step: jax.Array, decay: float) -> PyTree:
    """Moves an exponential moving average towards new values: a <- d a + (1 - d) new, d = min(decay, (1 + t)/(10 + t)).

    The smaller decay of the first steps t lets the average forget the initialisation, as TensorFlow's does.

    Args:
        average: The average so far.
        new: The values of now.
        step: int `[]`, steps taken before this one.
        decay: Of the average, in the long run.

    Returns:
        The average.

    References:
        Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, "Averaging Weights Leads to Wider Optima and Better
        Generalization", UAI 2018; Gowal, Qin, Uesato, Mann and Kohli, "Uncovering the Limits of Adversarial Training
        against Norm-Bounded Adversarial Examples", 2020, section 4.3 (for adversarial training).

    >>> update_average(jnp.array(1.0), jnp.array(2.0), jnp.array(10), 0.5).item()
    1.5
    """
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    # The share of what optax calls new is exact, so it is the average: 1 - (1 - rate) is not rate in float32.
    return optax.incremental_update(average, new, rate)

"""FGSM with a random start as the adversary, in two forms against catastrophic overfitting."""

import jax.numpy as jnp

from robust_gan import attacks, prng, threat_model
from robust_gan.types import Adversary, ThreatModel

NOISE = 2.0
"""Size of the noise of N-FGSM, in units of epsilon."""


def fgsm(threat: ThreatModel, *, start: str = "random", step_size: float = 1.25) -> Adversary:
    """Returns the adversary that takes one step along the sign of the gradient from a random start.

    Args:
        threat: The threat model.
        start: `random`: a uniform point of the ball; the result is projected onto the ball. `noise` (N-FGSM): uniform
            noise of twice epsilon; the result is clipped to valid pixels only, so that the perturbation in training is
            up to 2 + `step_size` times epsilon.
        step_size: In units of epsilon; 1.25 is usual for `random`, 1 for `noise`.

    Returns:
        The adversary; its state is empty.

    Guarantees:
        `test_every_adversary_raises_the_loss_within_the_ball`.

    References:
        Wong, Rice and Kolter, "Fast is better than free: Revisiting adversarial training", ICLR 2020, algorithm 3.
        de Jorge, Bibi, Volpi, Sanyal, Torr, Rogez and Dokania, "Make Some Noise: Reliable and Efficient Single-Step
            Adversarial Training", NeurIPS 2022, algorithm 1.

    >>> from robust_gan import LinfThreat
    >>> fgsm(LinfThreat(8 / 255)).init(None, None)
    ()
    """

    def perturb(state, classifier_fn, batch, keys, *, axis_name=None):
        del state, axis_name
        # N-FGSM's projection onto a ball of 2 + step_size times epsilon only clips to valid pixels.
        scale = NOISE if start == "noise" else 1.0
        reach = NOISE + step_size if start == "noise" else 1.0
        keys = prng.per_image_keys(keys, batch.images.shape[0])
        point = threat_model.random_start(keys, batch.images, threat_model.scaled(threat, scale))
        direction = threat_model.steepest_ascent(attacks.input_gradient(classifier_fn, point, batch.labels), threat)
        moved = point + step_size * jnp.asarray(threat.epsilon, direction.dtype) * direction
        return threat_model.project(moved, batch.images, threat_model.scaled(threat, reach))

    return Adversary(
        init=lambda key, images: (),
        improve=lambda state, classifier_fn, batch, keys, *, axis_name=None: (state, {}),
        perturb=perturb,
    )

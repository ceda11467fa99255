"""Attacks towards one class, for evaluations, in which images of this class are left alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_gan.attacks._best import where
from robust_gan.attacks._checks import checked, count_classes
from robust_gan.errors import UserError
from robust_gan.losses import is_correct
from robust_gan.types import LogitsFn, ThreatModel


@checked(optional=("key",))
def towards(
    logits_fn: LogitsFn,
    key: jax.Array | None,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    attack: Callable[..., jax.Array],
    to_class: int,
) -> jax.Array:
    """Runs an attack towards one class; where it is not reached, and on images of this class, returns the image itself.

    Args:
        logits_fn: As the attack takes it; this and the four arguments after it as in `types.Attack`.
        attack: One that takes `target`.
        to_class: The class.

    Returns:
        Images `[B, H, W, C]`, adversarial where they are classified as the target.

    Raises:
        UserError: The classifier has no such class, or the attack raises it.

    >>> from robust_gan import LinfThreat, attacks
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 0.1 - x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((2, 1, 1, 1), 0.125)
    >>> towards(logits_fn, None, x, jnp.array([0, 1]), LinfThreat(0.25), attack=attacks.fgsm,
    ...         to_class=1).ravel().tolist()
    [0.0, 0.125]
    """
    if to_class >= (classes := count_classes(logits_fn, images, key)):
        raise UserError(f"target must be in 0..{classes - 1}, not {to_class}")
    another = 0 if to_class else 1  # An attack refuses an image's own class.
    adversarial = attack(
        logits_fn, key, images, labels, threat, target=jnp.where(labels == to_class, another, to_class)
    )
    reached = is_correct(logits_fn(adversarial), jnp.full_like(labels, to_class)) & (labels != to_class)
    return where(reached, adversarial, images)

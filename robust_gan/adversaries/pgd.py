"""Projected gradient descent as the adversary: adversarial training after Madry et al."""

import jax

from robust_gan import attacks, losses
from robust_gan.types import Adversary, ThreatModel

_LOSSES = {
    "cross_entropy": losses.cross_entropy,
    "margin": losses.margin,
    "kl": lambda logits, labels, reference_logits: losses.kl(logits, reference_logits),
}


def pgd(
    threat: ThreatModel,
    *,
    num_steps: int = 10,
    step_size: float | None = None,
    loss: str = "cross_entropy",
    keep_best: bool = True,
) -> Adversary:
    """Returns the adversary that attacks each batch with PGD from one random start; it has no parameters.

    Args:
        threat: The threat model.
        num_steps: Gradient steps.
        step_size: In the unit of epsilon; by default 2.5 epsilon / num_steps.
        loss: `cross_entropy`, `margin`, or `kl`, the divergence from the clean prediction, as in TRADES.
        keep_best: Train on the best iterate, otherwise on the last, as Madry et al. and the released code do.

    Returns:
        The adversary; its state is empty.

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, section 2.

    >>> from robust_gan import LinfThreat
    >>> pgd(LinfThreat(8 / 255), num_steps=10).init(None, None)
    ()
    """

    def perturb(state, classifier_fn, batch, keys, *, axis_name=None):
        del state, axis_name
        loss_args = (jax.lax.stop_gradient(classifier_fn(batch.images)),) if loss == "kl" else ()
        # Each image is attacked by itself: there are no collectives but those of the classifier.
        return attacks.pgd(
            classifier_fn,
            keys,
            batch.images,
            batch.labels,
            threat,
            num_steps=num_steps,
            step_size=step_size,
            keep_best=keep_best,
            loss_fn=_LOSSES[loss],
            loss_args=loss_args,
        )

    return Adversary(
        init=lambda key, images: (),
        improve=lambda state, classifier_fn, batch, keys, *, axis_name=None: (state, {}),
        perturb=perturb,
    )

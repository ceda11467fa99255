"""No adversary: standard training."""

from robust_gan.types import Adversary


def none() -> Adversary:
    """Returns the adversary that does not perturb.

    >>> adversary = none()
    >>> adversary.init(None, None)
    ()
    """
    return Adversary(
        init=lambda key, images: (),
        improve=lambda state, classifier_fn, batch, keys, *, axis_name=None: (state, {}),
        perturb=lambda state, classifier_fn, batch, keys, *, axis_name=None: batch.images,
    )

"""Networks as they are after training: running BatchNorm statistics, one image independent of the others."""

import functools
from collections.abc import Callable

import jax

from robust_gan.networks.classifiers import build_classifier
from robust_gan.networks.generators import build_generator


# Cached, so that two models of one architecture share the function, and with it whatever was compiled for it.
@functools.cache
def classify(name: str, num_classes: int, *, batch_statistics: bool = False) -> Callable[..., jax.Array]:
    """Returns `(params, batch_stats, images) -> logits` of the classifier of that name.

    Args:
        name: One of `networks.CLASSIFIERS`.
        num_classes: K.
        batch_statistics: Normalise with the statistics of the batch, as the released code of the paper does at test.
            The output for an image depends on its batch then: for showing how lenient that is, and for nothing else.

    >>> classify("digits_cnn", 10) is classify("digits_cnn", 10)
    True
    """
    network = build_classifier(name, num_classes)
    return lambda params, batch_stats, images: network.apply(params, batch_stats, images, train=batch_statistics)[0]


@functools.cache
def generate(name: str, channels: int) -> Callable[..., jax.Array]:
    """Returns `(params, batch_stats, seen) -> noise` of the generator of that name.

    >>> generate("digits_generator", 1) is generate("digits_generator", 1)
    True
    """
    network = build_generator(name, channels)
    return lambda params, batch_stats, seen: network.apply(params, batch_stats, seen, train=False)[0]

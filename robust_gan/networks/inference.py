"""Networks as they are after training: running BatchNorm statistics, one image independent of the others."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax

from robust_gan.networks.classifiers import build_classifier
from robust_gan.networks.generators import build_generator

BY_BATCH = ", statistics of the batch"
"""Ends the name of a classifier whose logits depend on the batch."""

_ARCHITECTURES: weakref.WeakKeyDictionary[Callable[..., Any], str] = weakref.WeakKeyDictionary()


def as_architecture(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Registers a function that depends on its arguments alone, as those of this module do, and returns it.

    What is compiled for such a function can be kept for the whole process, and its name and its arguments say all that
    it computes. Neither is true of functions in general: they may close over arrays, or be changed in place.

    >>> as_architecture(lambda params, images: images, "doctest") is not None
    True
    """
    _ARCHITECTURES[function] = name
    return function


def architecture_of(function: Callable[..., Any]) -> str:
    """Returns the name under which a function was registered; empty for every other function.

    >>> architecture_of(classify("digits_cnn", 10)), architecture_of(len)
    ('digits_cnn, 10 classes', '')
    """
    try:
        return _ARCHITECTURES.get(function, "")
    except TypeError:  # Neither hashable nor weakly referable.
        return ""


# Cached, so that two models of one architecture share the function, and with it whatever was compiled for it.
@functools.cache
def classify(name: str, num_classes: int, *, use_batch_stats: bool = False) -> Callable[..., jax.Array]:
    """Returns `(params, batch_stats, images) -> logits` of the classifier of that name.

    Args:
        name: One of `networks.CLASSIFIERS`.
        num_classes: K.
        use_batch_stats: Normalise with the statistics of the batch, as the released code of the paper does at test.
            The output for an image depends on its batch then: for showing how lenient that is, and for nothing else.

    >>> classify("digits_cnn", 10) is classify("digits_cnn", 10)
    True
    """
    network = build_classifier(name, num_classes)
    return as_architecture(
        lambda params, batch_stats, images: network.apply(params, batch_stats, images, train=use_batch_stats)[0],
        f"{name}, {num_classes} classes" + (BY_BATCH if use_batch_stats else ""),
    )


@functools.cache
def generate(name: str, channels: int) -> Callable[..., jax.Array]:
    """Returns `(params, batch_stats, seen) -> noise` of the generator of that name.

    >>> generate("digits_generator", 1) is generate("digits_generator", 1)
    True
    """
    network = build_generator(name, channels)
    return as_architecture(
        lambda params, batch_stats, seen: network.apply(params, batch_stats, seen, train=False)[0],
        f"{name}, {channels} channels",
    )

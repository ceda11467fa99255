"""Trained networks: functions with the running BatchNorm statistics, so that images are independent."""

import weakref
from collections.abc import Callable
from typing import Any

import jax

from robust_gan.config.imports import is_function_name
from robust_gan.networks.classifiers import build_classifier
from robust_gan.networks.external import cached_by_name
from robust_gan.networks.generators import build_generator
from robust_gan.types import BatchStats, Params

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
@cached_by_name
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

    def apply(params: Params, batch_stats: BatchStats, images: jax.Array) -> jax.Array:
        return network.apply(params, batch_stats, images, train=use_batch_stats)[0]

    if is_function_name(name):  # The name does not determine the network: its module may change.
        return apply
    return as_architecture(apply, f"{name}, {num_classes} classes" + (BY_BATCH if use_batch_stats else ""))


@cached_by_name
def generate(name: str, channels: int) -> Callable[..., jax.Array]:
    """Returns `(params, batch_stats, inputs) -> noise` of the generator of that name.

    >>> generate("digits_generator", 1) is generate("digits_generator", 1)
    True
    """
    network = build_generator(name, channels)

    def apply(params: Params, batch_stats: BatchStats, inputs: jax.Array) -> jax.Array:
        return network.apply(params, batch_stats, inputs, train=False)[0]

    return apply if is_function_name(name) else as_architecture(apply, f"{name}, {channels} channels")

"""Classifiers and generators as pairs of pure functions; the only package that knows flax.linen.

>>> build_classifier("resnet20", 10)._fields
('init', 'apply', 'apply_both')
"""

import math

import jax

from robust_gan.networks.classifiers import CLASSIFIERS, build_classifier
from robust_gan.networks.generators import GENERATORS, build_generator, generator_for
from robust_gan.networks.registry import register_classifier, register_generator
from robust_gan.types import Params

__all__ = [
    "CLASSIFIERS", "GENERATORS", "REVISIONS", "build_classifier", "build_generator", "count_params", "generator_for",
    "register_classifier", "register_generator",
]  # fmt: skip


REVISIONS = {
    "resnet20": 2, "resnet20_wide": 2, "resnet20_svhn": 2, "resnet_generator": 2, "mnist_generator": 2,
}  # fmt: skip
"""Of networks that compute otherwise than the one that had the name before; the others are at 1. The parameters of one
revision mean something else in another, so a checkpoint says which it is of. At 2: padding on both sides; epsilon."""


def count_params(params: Params) -> int:
    """Returns the number of parameters; arrays and shapes (`jax.eval_shape`) both count.

    >>> import jax.numpy as jnp
    >>> count_params({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
    16
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))

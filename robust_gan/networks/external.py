"""Networks of the user's own, named `package.module:function` in a configuration."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from robust_gan.config import imports
from robust_gan.errors import UserError
from robust_gan.types import Network

T = TypeVar("T")


def load(name: str, kind: str, **arguments: Any) -> Network:
    """Returns the network that a function of the user's returns.

    Args:
        name: `package.module:function`.
        kind: "classifier" or "generator".
        arguments: The arguments by name; the function takes any of them: `num_classes` or `channels`, `dtype`, `remat`.

    Raises:
        UserError: The function cannot be imported or called, raises, or returns something else.
    """
    network = imports.call_function(name, kind, f"a {kind}", arguments)
    for part in ("init", "apply"):
        if not callable(getattr(network, part, None)):
            raise UserError(
                f"{name} must return a robust_gan.Network of the functions init and apply: the "
                f"{type(network).__name__} that it returned has no {part}"
            )
    return Network(network.init, network.apply, getattr(network, "apply_both", None))


def check(name: str, network: Network, input_shape: Sequence[int], output_shape: Sequence[int]) -> None:
    """Traces a network on two images, and refuses one that fails or whose outputs have another shape.

    Args:
        name: Of the network, for error messages.
        network: The network.
        input_shape: Of one input, `(H, W, C)`.
        output_shape: Of one output: `(K,)` or `(H, W, C)`.

    Raises:
        UserError: One sentence.

    >>> from robust_gan.networks import build_classifier
    >>> check("digits_cnn", build_classifier("digits_cnn", 10), (8, 8, 1), (10,))
    """
    images = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)

    def run(key: jax.Array, images: jax.Array, train: bool) -> Any:
        params, batch_stats = network.init(key, images)
        return network.apply(params, batch_stats, images, train=train)

    for train in (True, False):
        try:
            outputs, _ = jax.eval_shape(functools.partial(run, train=train), jax.random.key(0), images)
        except Exception as error:  # It is the user's own program, and may raise anything.
            raise UserError(f"{name} fails on images of shape {images.shape}: {imports.describe(error)}") from error
        if getattr(outputs, "shape", None) != (2, *output_shape):
            raise UserError(
                f"{name} must return outputs of shape {(2, *output_shape)} for images of shape {images.shape}, not "
                f"{getattr(outputs, 'shape', type(outputs).__name__)}"
            )


def cached_by_name(function: Callable[..., T]) -> "functools._lru_cache_wrapper[T]":
    """Caches a function of a network's name, except for names of the user's functions, whose modules may change."""
    cached = functools.cache(function)

    @functools.wraps(function)
    def call(name: str, *args: Any, **kwargs: Any) -> T:
        return (function if imports.is_function_name(name) else cached)(name, *args, **kwargs)

    call.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]

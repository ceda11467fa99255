"""Calls classifiers in batches of a limited size, on copies of the images."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_gan.errors import UserError, one_line
from robust_gan.evaluation.models import check_deterministic
from robust_gan.networks import inference
from robust_gan.types import LogitsFn

_UNROLLED = 2
"""Largest number of calls that are unrolled in compiled code; more are a loop."""


def in_batches(logits_fn: LogitsFn, most: int, *, exactly: bool = False, name: str = "") -> LogitsFn:
    """Returns a classifier for any number of images, which calls the given one with at most `most` images.

    It can be compiled and differentiated. Outside compiled functions the images are copied, because a classifier may
    donate its argument.

    Args:
        logits_fn: Images `[B, H, W, C]` to logits `[B, K]`.
        most: Largest number of images in one call.
        exactly: Whether smaller batches are padded to this size, with copies of the last image.
        name: Name of the model; its exceptions become a `UserError` with it. Empty to pass exceptions on.

    Returns:
        The classifier; the arrays that a `jax.tree_util.Partial` binds stay bound.

    Raises:
        UserError: The classifier is randomised, or fails.

    >>> sizes = []
    >>> logits_fn = lambda x: sizes.append(len(x)) or x[:, 0, 0]
    >>> in_batches(logits_fn, 2)(jnp.zeros((3, 1, 1, 2))).shape, sizes
    ((3, 2), [2, 1])
    >>> in_batches(logits_fn, 2, exactly=True)(jnp.zeros((3, 1, 1, 2))).shape, sizes
    ((3, 2), [2, 1, 2, 2])
    """
    check_deterministic(name or "the classifier", logits_fn)  # Its keys would be lost.
    if not isinstance(logits_fn, jax.tree_util.Partial):
        call = _caller(most, exactly, name)
        return lambda images: call(logits_fn, images)
    head = logits_fn.func
    # Without the name, which models of one architecture do not share.
    shared = inference.architecture_of(head)
    bound = _bound(head, most, exactly, "") if shared else _bound.__wrapped__(head, most, exactly, name)
    return jax.tree_util.Partial(bound, *logits_fn.args, **logits_fn.keywords)


@functools.cache
def _bound(head: Callable, most: int, exactly: bool, name: str) -> Callable[..., jax.Array]:
    """Returns `(*bound, images, **keywords) -> logits`; cached for architectures, which models share."""
    call = _caller(most, exactly, name)

    def call_with(*arguments, **keywords):
        *bound, images = arguments
        return call(functools.partial(head, *bound, **keywords), images)

    known = inference.architecture_of(head)
    return inference.as_architecture(call_with, f"{known}, {most} at once") if known else call_with


def _caller(most: int, exactly: bool, name: str) -> Callable[[LogitsFn, jax.Array], jax.Array]:
    """Returns `(logits_fn, images) -> logits`."""

    def call(logits_fn, images):
        count, compiled = len(images), isinstance(images, jax.core.Tracer)

        def predict(part):
            # A part of an array may share its memory.
            return _call(name, logits_fn, part if compiled else jnp.array(part, copy=True))

        if count == most or (count < most and not exactly):
            return predict(images)
        if exactly and count % most:
            filling = jnp.repeat(jnp.asarray(images)[-1:], -count % most, axis=0)
            images = jnp.concatenate([jnp.asarray(images), filling])
        whole = len(images) // most
        if compiled and whole > _UNROLLED:
            # The backward pass keeps the activations of one batch at a time.
            parts = images[: whole * most].reshape(whole, most, *images.shape[1:])
            logits = jax.lax.map(jax.checkpoint(predict), parts)
            logits = [logits.reshape(-1, *logits.shape[2:])]
            logits += [predict(images[whole * most :])] if whole * most < len(images) else []
        else:
            logits = [predict(images[start : start + most]) for start in range(0, len(images), most)]
        return jnp.concatenate(logits)[:count]

    return call


def _call(name, logits_fn, images):
    if not name:
        return logits_fn(images)
    try:
        return logits_fn(images)
    except UserError:
        raise
    except Exception as error:  # It is the user's own program, and may raise anything.
        raise UserError(
            f"{name} fails on {images.dtype} images of shape {images.shape}: {type(error).__name__}: {one_line(error)}"
        ) from error

"""An adversary of the user's own, named `package.module:function` in a configuration."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from robust_gan import prng
from robust_gan.config import imports
from robust_gan.errors import UserError
from robust_gan.types import Adversary, Batch, LogitsFn


def load(name: str, **arguments: Any) -> Adversary:
    """Returns the adversary that a function of the user's returns.

    Args:
        name: `package.module:function`.
        arguments: The arguments by name; the function takes any of them.

    Raises:
        UserError: The function cannot be imported or called, raises, or returns something else.

    >>> load("robust_gan.adversaries:none").init(None, None)
    ()
    """
    adversary = imports.call_function(name, "adversary", "an adversary", arguments)
    for part in ("init", "improve", "perturb"):
        if not callable(getattr(adversary, part, None)):
            raise UserError(
                f"{name} must return a robust_gan.Adversary of the functions init, improve and perturb: the "
                f"{type(adversary).__name__} that it returned has no {part}"
            )
    return Adversary(adversary.init, adversary.improve, adversary.perturb, getattr(adversary, "response", None))


def check(name: str, adversary: Adversary, classifier_fn: LogitsFn, image_shape: Sequence[int]) -> None:
    """Traces the functions of an adversary on two images, and refuses what cannot be trained against.

    Args:
        name: Of the adversary, for error messages.
        adversary: The adversary.
        classifier_fn: Images to logits.
        image_shape: `(H, W, C)`.

    Raises:
        UserError: A function raises, or returns something of another structure, shape or type.

    >>> from robust_gan import LinfThreat
    >>> from robust_gan.adversaries import pgd
    >>> check("pgd", pgd(LinfThreat(0.1)), lambda images: images.sum((1, 2)), (4, 4, 3))
    """
    batch = Batch(jnp.zeros((2, *image_shape), jnp.float32), jnp.zeros(2, jnp.int32))
    keys = jax.random.split(prng.make_key(0), 2)

    def trace(part, function, *arguments):
        try:
            return jax.eval_shape(function, *arguments)
        except Exception as error:  # It is the user's own program, and may raise anything.
            raise UserError(
                f"{part} of the adversary {name} fails on images of shape {batch.images.shape}: "
                f"{imports.describe(error)}"
            ) from error

    def signature(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    state = trace("init", lambda key, images: adversary.init(key, images), keys[0], batch.images)
    improved = trace("improve", lambda *a: adversary.improve(a[0], classifier_fn, *a[1:]), state, batch, keys)
    if not (isinstance(improved, tuple) and len(improved) == 2 and isinstance(improved[1], dict)):
        raise UserError(f"improve of the adversary {name} must return (state, metrics), metrics a dict of numbers")
    if signature(improved[0]) != signature(state):
        raise UserError(f"improve of the adversary {name} must return a state of the same structure, shapes and types")
    images = trace("perturb", lambda *a: adversary.perturb(a[0], classifier_fn, *a[1:]), state, batch, keys)
    if getattr(images, "shape", None) != batch.images.shape:
        raise UserError(
            f"perturb of the adversary {name} must return images of shape {batch.images.shape}, not "
            f"{getattr(images, 'shape', type(images).__name__)}"
        )

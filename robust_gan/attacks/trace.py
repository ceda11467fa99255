"""What an attack does in each of its steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from robust_gan.errors import UserError
from robust_gan.types import LogitsFn, ThreatModel


class Trace(NamedTuple):
    """The steps of an attack, S of them.

    Attributes:
        images: `[B, H, W, C]`, the attack's result.
        losses: `[S, B]`, the losses of the points that the steps evaluate.
        best_losses: `[S, B]`, the losses of the best points so far.
        fooled: bool `[S, B]`, which images have been misclassified so far (with a target: have reached it).
        step_sizes: `[S, B]`, in the unit of epsilon.
    """

    images: jax.Array
    losses: jax.Array
    best_losses: jax.Array
    fooled: jax.Array
    step_sizes: jax.Array


def trace(
    attack: Callable[..., jax.Array],
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    **settings: Any,
) -> Trace:
    """Runs an attack and returns what it does in each step, from the attack's own loop.

    Args:
        attack: `pgd` or `apgd`, itself or with settings bound by `functools.partial` (as `by_name` returns them), with
            one restart; not compiled by `jax.jit`, inside which `trace` may be called.
        logits_fn: This and the four arguments after it as in `types.Attack`; images are `[B, H, W, C]`.
        **settings: Further settings of the attack.

    Returns:
        The trace; its images are those of the attack alone.

    Raises:
        UserError: The attack records no steps, has several restarts, or an argument is invalid.

    Guarantees:
        `test_a_trace_is_of_the_attack_itself`.

    >>> import jax.numpy as jnp
    >>> from robust_gan import LinfThreat, attacks
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 1, 1, 1), 0.125)
    >>> steps = trace(attacks.pgd, logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25), num_steps=4,
    ...               start="clean")
    >>> steps.step_sizes.ravel().tolist(), steps.fooled.ravel().tolist()
    ([0.15625, 0.15625, 0.15625, 0.15625], [False, False, False, False])
    """
    recorded: list[tuple[jax.Array, ...]] = []
    try:
        found = attack(logits_fn, key, images, labels, threat, record_fn=recorded.append, **settings)
    except TypeError as error:
        if "record_fn" not in str(error):
            raise
        raise UserError("this attack records no steps: trace attacks.pgd or attacks.apgd, not compiled") from error
    return Trace(found, *recorded[0])

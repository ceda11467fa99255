"""Whether the numbers of a step are finite, and what becomes of one where they are not: inside the compiled step.

Both players are watched at every step by what is measured anyway: their losses and the norms of their gradients. A sum
keeps NaN and infinity, which `jnp.max` over a large array loses on a CPU (jaxlib 0.10). A step that is not finite is
not taken. What a finite gradient makes of a player may still overflow: the next step finds that, and `broken` does
before a save.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robust_gan.game.state import TrainState
from robust_gan.storage import leaves
from robust_gan.types import Metrics

POLICIES = ("stop", "skip")
"""What becomes of a run at a step that is not finite: it ends there, or goes on without that step."""

WATCHED = (
    ("clean_loss", "classifier"),
    ("generator_loss", "generator"),
    ("generator_gradient_norm", "generator"),
    ("classifier_loss", "classifier"),
    ("classifier_gradient_norm", "classifier"),
)
"""What is watched, with whose it is. The first that is not finite is to blame: a classifier that is broken already
breaks the generator's loss too, but the clean loss has no part of the generator."""


class NonFiniteState(NamedTuple):
    """The steps that were not taken.

    Attributes:
        skipped: int32 `[]`, how many.
        in_a_row: int32 `[]`, how many of them up to now, without one that was taken between.
        at: int32 `[]`, the steps taken before the latest of them; -1 where there was none.
        values: float32 `[5]`, what was measured there, in the order of `WATCHED`; 0 for what is not in the game.
    """

    skipped: jax.Array | np.ndarray | np.int32
    in_a_row: jax.Array | np.ndarray | np.int32
    at: jax.Array | np.ndarray | np.int32
    values: jax.Array | np.ndarray


class NonFiniteReport(NamedTuple):
    """What was not finite.

    Attributes:
        name: One of `WATCHED`, or an array of a state.
        player: `classifier` or `generator`.
        value: NaN or an infinity.
        step: The step, counted as lines of metrics are: the first is 1.
    """

    name: str
    player: str
    value: float
    step: int


def begin(skipped: int = 0) -> NonFiniteState:
    """Starts to watch.

    Args:
        skipped: Steps that were not taken before.

    >>> int(begin(3).skipped), int(begin().at)
    (3, -1)
    """
    return NonFiniteState(np.int32(skipped), np.int32(0), np.int32(-1), np.zeros(len(WATCHED), np.float32))


def guard(
    before: TrainState, after: TrainState, metrics: Metrics, watch: NonFiniteState, *, policy: str
) -> tuple[TrainState, NonFiniteState]:
    """Takes a step only where it is finite.

    Args:
        before: The state before the step.
        after: What the step made of it.
        metrics: What the step measured.
        watch: The steps that were not taken before.
        policy: `stop`: the state stays as it is from the first such step on, its number of steps included; `skip`: only
            that step is not taken, and counted as if it were, for the next one takes other images.

    Returns:
        The state to go on with, and the watch.

    >>> from robust_gan.types import PlayerState
    >>> empty = TrainState(jnp.int32(3), jax.random.key(0), PlayerState({}, {}, ()), ())
    >>> measured = {"clean_loss": jnp.array(0.5), "classifier_loss": jnp.array(jnp.nan)}
    >>> state, watch = guard(empty, empty._replace(step=jnp.int32(4)), measured, begin(), policy="stop")
    >>> int(state.step), int(watch.at), finding(watch).name
    (3, 3, 'classifier_loss')
    """
    values = jnp.stack([jnp.asarray(metrics.get(name, 0.0), jnp.float32) for name, _ in WATCHED])
    finite, going = jnp.isfinite(values).all(), (watch.at < 0) | (policy == "skip")
    taken, found = finite & going, ~finite & going
    watch = NonFiniteState(
        watch.skipped + found,
        jnp.where(taken, 0, watch.in_a_row + found),
        jnp.where(found, before.step, watch.at),
        jnp.where(found, values, watch.values),
    )
    state = optax.tree.where(taken, after, before)
    return state._replace(step=after.step) if policy == "skip" else state, watch


def finding(watch: NonFiniteState) -> NonFiniteReport | None:
    """Returns what was not finite in the latest step that was not taken; None where there was none.

    Args:
        watch: On the host.
    """
    if watch.at < 0:
        return None
    index = int(np.flatnonzero(~np.isfinite(watch.values))[0])
    return NonFiniteReport(*WATCHED[index], float(watch.values[index]), int(watch.at) + 1)


def broken(state: TrainState) -> NonFiniteReport | None:
    """Returns which array of a state is not finite; None where all are.

    >>> from robust_gan.types import PlayerState
    >>> player = PlayerState({"kernel": jnp.array([1.0, jnp.inf])}, {}, ())
    >>> broken(TrainState(jnp.int32(3), jax.random.key(0), player, ())).name
    'classifier/params/kernel'
    """
    for name, leaf in leaves.named(state).items():
        array = leaves.to_host(leaf)
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            player = "generator" if name.startswith("adversary") else "classifier"
            return NonFiniteReport(name, player, float(array[~np.isfinite(array)][0]), int(state.step))
    return None

"""Optimizers of a configuration, and the mean of a gradient over devices."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_gan.config import OptimizerConfig
from robust_gan.types import Params, PyTree


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the optimizer's step count.

    >>> schedule = learning_rate(OptimizerConfig(learning_rate=0.1, decay_steps=(100,)))
    >>> print(f"{schedule(99):.3f} {schedule(100):.3f}")
    0.100 0.010
    """
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, config.schedule_steps)
    if config.schedule == "one_cycle":
        rise = max(1, round(0.4 * config.schedule_steps))
        up = optax.linear_schedule(0.0, config.learning_rate, rise)
        down = optax.linear_schedule(config.learning_rate, 0.0, max(1, config.schedule_steps - rise))
        return optax.join_schedules([up, down], [rise])
    return optax.piecewise_constant_schedule(
        config.learning_rate, {step: config.decay_factor for step in config.decay_steps}
    )


def build(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns a player's optimizer, with weight decay on kernels alone.

    Args:
        config: Validated already.

    Returns:
        The optax transformation. For sgd and adam the decay is part of the gradient, as in the released code's loss, so
        that momentum and Adam's scaling see it; for adamw it is decoupled.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    >>> optimizer = build(OptimizerConfig(learning_rate=1.0, momentum=0.0, weight_decay=0.5))
    >>> updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    >>> print(updates["kernel"], updates["bias"])
    [-0.5 -0.5] [-0. -0.]
    """
    rate = learning_rate(config)
    if config.name == "adamw":
        return optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=kernels)
    if config.name == "adam":
        optimizer = optax.adam(rate, b1=config.b1, b2=config.b2)
    else:
        optimizer = optax.sgd(rate, momentum=config.momentum or None)
        if config.restart_momentum and config.momentum:
            momentum = restarting_momentum(config.momentum, config.decay_steps)
            optimizer = optax.chain(momentum, optax.scale_by_learning_rate(rate))
    if config.weight_decay == 0:
        return optimizer
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask=kernels), optimizer)


class RestartingMomentum(NamedTuple):
    """State of `restarting_momentum`.

    Attributes:
        count: int32 `[]`, steps so far.
        trace: The momentum, of the structure of the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # Hides an unused method of tuple.
    trace: Params


def restarting_momentum(momentum: float, steps: Sequence[int]) -> optax.GradientTransformation:
    """Returns the momentum of `optax.trace`, restarted from 0 at given steps.

    The released code changes its learning rate by a new optimizer, whose momentum is 0.

    Args:
        momentum: Decay of the trace.
        steps: The steps at which it restarts, counted from 0.

    >>> transformation = restarting_momentum(0.5, [2])
    >>> state, updates = transformation.init(jnp.zeros(())), []
    >>> for _ in range(4):
    ...     update, state = transformation.update(jnp.ones(()), state)
    ...     updates.append(float(update))
    >>> updates
    [1.0, 1.5, 1.0, 1.5]
    """

    def init(params: Params) -> RestartingMomentum:
        return RestartingMomentum(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(
        updates: Params, state: RestartingMomentum, params: Params | None = None
    ) -> tuple[Params, RestartingMomentum]:
        del params
        decay = jnp.where(jnp.isin(state.count, jnp.asarray(steps, jnp.int32)), 0.0, momentum)
        trace = jax.tree.map(lambda g, t: g + decay.astype(t.dtype) * t, updates, state.trace)
        return trace, RestartingMomentum(optax.safe_increment(state.count), trace)

    return optax.GradientTransformation(init, update)


def kernels(params: Params) -> PyTree:
    """Returns which leaves are kernels (named `kernel`), not biases or BatchNorm's scales.

    >>> kernels({"conv": {"kernel": 1.0, "bias": 1.0}})
    {'conv': {'bias': False, 'kernel': True}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1] == jax.tree_util.DictKey("kernel"), params)


def mean_over(axis_name: str | None, tree: PyTree) -> PyTree:
    """Computes the mean of every array of a tree over the devices of a mapped axis; without an axis, the tree itself.

    >>> mean_over(None, {"loss": 1.0})
    {'loss': 1.0}
    """
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

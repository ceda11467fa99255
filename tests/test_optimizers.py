"""Optimisers against their recurrences in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robust_gan import networks, optimizers
from robust_gan.config import OptimizerConfig

START = {"kernel": np.array([1.0, -2.0, 0.5]), "bias": np.array([1.0, -2.0, 0.5])}
GRADIENTS = np.random.default_rng(0).normal(size=(5, 3))


def run(config, gradients=GRADIENTS):
    """Five steps: the parameters after each."""
    optimizer = optimizers.build(config)
    params = jax.tree.map(jnp.float32, START)
    state, after = optimizer.init(params), []
    for gradient in gradients:
        gradient = jnp.float32(gradient)
        updates, state = optimizer.update({"kernel": gradient, "bias": gradient}, state, params)
        params = optax.apply_updates(params, updates)
        after.append(params)
    return after


def reference(config, name):
    """The recurrence of one leaf, in float64."""
    weight, decay = START[name], config.weight_decay if name == "kernel" else 0.0
    velocity = first = second = np.zeros(3)
    after = []
    for step, gradient in enumerate(GRADIENTS):
        rate = config.learning_rate * config.decay_factor ** sum(step >= at for at in config.decay_steps)
        if config.name == "sgd":
            kept = 0.0 if config.restart_momentum and step in config.decay_steps else config.momentum
            velocity = kept * velocity + gradient + decay * weight
            weight = weight - rate * velocity
        else:
            coupled = gradient + (decay * weight if config.name == "adam" else 0)
            first = config.b1 * first + (1 - config.b1) * coupled
            second = config.b2 * second + (1 - config.b2) * coupled**2
            mean, square = first / (1 - config.b1 ** (step + 1)), second / (1 - config.b2 ** (step + 1))
            decoupled = decay * weight if config.name == "adamw" else 0
            weight = weight - rate * (mean / (np.sqrt(square) + 1e-8) + decoupled)
        after.append(weight)
    return after


@pytest.mark.parametrize("decay_steps", [(), (2,), (1, 3)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "sgd", "momentum": 0.0},
        {"name": "sgd", "momentum": 0.9},
        {"name": "sgd", "momentum": 0.9, "restart_momentum": True},
        {"name": "adam", "b1": 0.5},
        {"name": "adamw", "b1": 0.8, "b2": 0.99},
    ],
    ids=["sgd", "momentum", "restarted", "adam", "adamw"],
)
def test_five_steps_follow_the_recurrence(settings, weight_decay, decay_steps):
    config = OptimizerConfig(learning_rate=0.1, weight_decay=weight_decay, decay_steps=decay_steps, **settings)
    after = run(config)
    for name in START:
        np.testing.assert_allclose([params[name] for params in after], reference(config, name), rtol=2e-5, atol=1e-6)


def test_the_rate_drops_at_exactly_its_steps():
    schedule = optimizers.learning_rate(OptimizerConfig(learning_rate=0.8, decay_steps=(3, 5), decay_factor=0.5))
    np.testing.assert_allclose([schedule(step) for step in range(8)], [0.8] * 3 + [0.4] * 2 + [0.2] * 3, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_decay_is_on_the_kernels_of_a_network_alone(name):
    network = networks.build_classifier("digits_cnn", 10)
    params, _ = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    optimizer = optimizers.build(OptimizerConfig(name=name, weight_decay=0.5))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    kinds = {"kernel": [], "bias": [], "scale": []}
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        kinds[path[-1].key].append(update)
    assert all(len(leaves) > 0 for leaves in kinds.values())
    assert all((leaf < 0).all() for leaf in kinds["kernel"])
    assert all((leaf == 0).all() for leaf in kinds["bias"] + kinds["scale"])


def test_schedules_by_their_closed_forms():
    cosine = optimizers.learning_rate(OptimizerConfig(learning_rate=0.2, schedule="cosine", schedule_steps=100))
    one_cycle = optimizers.learning_rate(OptimizerConfig(learning_rate=0.2, schedule="one_cycle", schedule_steps=100))
    for step in (0, 1, 20, 40, 70, 99, 100, 150):
        share = min(step, 100) / 100
        np.testing.assert_allclose(cosine(step), 0.1 * (1 + np.cos(np.pi * share)), atol=1e-7)
        np.testing.assert_allclose(one_cycle(step), 0.2 * min(share / 0.4, (1 - share) / 0.6), atol=1e-7)

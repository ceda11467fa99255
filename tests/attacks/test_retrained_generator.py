"""A generator trained against a frozen classifier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import build_generator

from robust_gan import L2Threat, LinfThreat, attacks, threat_model
from robust_gan.attacks.retrained_generator import DESIGNS
from robust_gan.errors import UserError
from robust_gan.losses import cross_entropy, is_correct, margin
from robust_gan.networks import generator_for


def linear(weights, images):
    return (images - 0.5).reshape(images.shape[0], -1) @ weights


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    logits_fn = jax.tree_util.Partial(linear, jnp.asarray(rng.normal(size=(64, 4)), jnp.float32))
    images = jnp.asarray(rng.uniform(size=(30, 8, 8, 1)), jnp.float32)
    return logits_fn, images, jnp.argmax(logits_fn(images), -1)


@pytest.mark.slow
@pytest.mark.parametrize("threat", [LinfThreat(0.15), L2Threat(1.0)], ids=["linf", "l2"])
@pytest.mark.parametrize("design", DESIGNS.values(), ids=list(DESIGNS))
def test_it_learns_to_break_within_the_threat_model(problem, threat, design):
    logits_fn, images, labels = problem
    settings = {"network": build_generator(1), "design": design, "num_steps": 200, "learning_rate": 0.02}
    attack = jax.jit(functools.partial(attacks.retrained_generator, **settings))
    key = jax.random.key(0)
    attacked = attack(logits_fn, key, images, labels, threat)
    assert float(threat_model.distance(attacked, images, threat).max()) <= threat.epsilon * (1 + 1e-6)
    assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
    noise = attacks.uniform_noise(logits_fn, key, images, labels, threat)
    assert is_correct(logits_fn(attacked), labels).mean() < is_correct(logits_fn(noise), labels).mean() - 0.1
    assert np.array_equal(attacked, attack(logits_fn, key, images, labels, threat))


@pytest.mark.slow
def test_more_steps_raise_the_given_loss(problem):
    logits_fn, images, labels = problem
    for loss_fn in (cross_entropy, margin):
        means = [
            float(jnp.mean(loss_fn(logits_fn(attacks.retrained_generator(
                logits_fn, jax.random.key(1), images, labels, LinfThreat(0.1), network=build_generator(1),
                num_steps=steps, loss_fn=loss_fn)), labels)))
            for steps in (1, 80)
        ]  # fmt: skip
        assert means == sorted(means)


def test_the_classifier_is_left_alone(problem):
    logits_fn, images, labels = problem
    before = np.array(logits_fn.args[0])
    trained = attacks.train_generator(
        logits_fn, jax.random.key(0), images, labels, LinfThreat(0.1), network=build_generator(1), num_steps=2
    )
    assert np.array_equal(before, logits_fn.args[0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained))


def test_images_of_a_size_without_a_generator_are_refused():
    with pytest.raises(UserError, match="divisible by 4, not 8 x 6"):
        generator_for((8, 6, 1))

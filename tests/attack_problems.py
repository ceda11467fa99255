"""Small classifiers to attack, of which the answer is known or another program can compute it, and the ball."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import L2Threat, LinfThreat, losses

THREATS = {"linf": LinfThreat, "l2": L2Threat}
SHAPE = (4, 4, 1)
SIZE = 16
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(SIZE, 5)).astype(np.float32)
HIDDEN, OUT = RNG.normal(size=(SIZE, 12)).astype(np.float32), RNG.normal(size=(12, 5)).astype(np.float32)
KEY = jax.random.key(0)


def images_between(low, high, seed=0, count=8):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, (count, *SHAPE)), jnp.float32)


def flat(images):
    return images.reshape(len(images), -1)


def linear(images):
    """Five classes."""
    return flat(images).astype(jnp.float32) @ WEIGHTS


def two(images):
    """Two classes."""
    return linear(images)[:, :2]


def curved(images):
    """Five classes, far from linear: sines of random projections."""
    return jnp.sin(2 * flat(images).astype(jnp.float32) @ HIDDEN) @ OUT


def predicted(logits_fn, images):
    return jnp.argmax(logits_fn(images), -1).astype(jnp.int32)


def ascent_of_two(labels):
    """The gradient of the margin of `two` in float64, `[B, 16]`."""
    weights = np.float64(WEIGHTS[:, :2]).T
    labels = np.asarray(labels)
    return weights[1 - labels] - weights[labels]


def unit_step(direction, norm):
    """The step of unit size along which a linear function grows the most."""
    if norm == "linf":
        return np.sign(direction)
    return direction / np.linalg.norm(direction, axis=1, keepdims=True)


def assert_inside(adversarial, images, norm, epsilon):
    assert adversarial.dtype == images.dtype
    assert adversarial.shape == images.shape
    adversarial, images = np.asarray(adversarial, np.float64), np.asarray(images, np.float64)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    delta = flat(adversarial - images)
    size = np.abs(delta).max(1) if norm == "linf" else np.sqrt((delta**2).sum(1))
    assert size.max() <= epsilon + 2.0**-24


def compiled(attack, logits_fn):
    """The attack on one classifier, compiled without optimisation: compiling takes nearly all the time of a test."""
    return jax.jit(functools.partial(attack, logits_fn), compiler_options={"xla_backend_optimization_level": 0})


def three_lines(images):
    """Five classes; the likeliest wrong ones fall with the label's, only the fourth can overtake it."""
    x = jnp.mean(flat(images), axis=1)
    return jnp.stack([2 + x, 1.9 + x, 1.8 + x, 1.7 + x, 2.6 - x], -1)


def assert_the_fourth_target_counts(targeted, images, labels):
    """Asserts that images of `three_lines` are robust towards three classes and misclassified with the fourth."""
    robust = {}
    for num_targets in (3, 4):
        attack = functools.partial(targeted, num_steps=5, num_targets=num_targets)
        adversarial = compiled(attack, three_lines)(KEY, images, labels, LinfThreat(0.6))
        robust[num_targets] = losses.is_correct(three_lines(adversarial), labels)
    assert robust[3].all()
    assert not robust[4].any()
    return adversarial

"""Output-diversified starts by their definition, and multi-targeted PGD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_problems import (
    HIDDEN,
    KEY,
    OUT,
    SHAPE,
    THREATS,
    assert_the_fourth_target_counts,
    compiled,
    curved,
    flat,
    images_between,
    two,
)

from robust_gan import LinfThreat, attacks, losses, prng, threat_model
from robust_gan.attacks._start import odi_start
from robust_gan.errors import UserError


@pytest.mark.parametrize("norm", THREATS)
def test_the_odi_start_follows_its_definition(norm):
    epsilon, images = 0.15, images_between(0, 1, seed=5)
    threat, keys = THREATS[norm](epsilon), jax.random.split(KEY, len(images))
    found = flat(np.float64(compiled(lambda logits_fn, x: odi_start(logits_fn, keys, x, threat), curved)(images)))
    point_keys, weight_keys, _ = prng.split_per_image(keys, 3)
    weights = np.float64(prng.uniform_per_image(weight_keys, (5,), minval=-1.0, maxval=1.0))
    x, centre = (flat(np.float64(z)) for z in (threat_model.random_start(point_keys, images, threat), images))
    for _ in range(2):
        gradient = ((weights @ np.float64(OUT).T) * 2 * np.cos(2 * x @ np.float64(HIDDEN))) @ np.float64(HIDDEN).T
        if norm == "linf":
            x = np.clip(x + epsilon * np.sign(gradient), centre - epsilon, centre + epsilon)
        else:
            delta = x + epsilon * gradient / np.linalg.norm(gradient, axis=1, keepdims=True) - centre
            x = centre + delta * np.minimum(1, epsilon / np.linalg.norm(delta, axis=1, keepdims=True))
        x = x.clip(0, 1)
    np.testing.assert_allclose(found, x, atol=2e-6)


def test_odi_starts_differ_more_in_their_logits_than_uniform_ones():
    images, threat = jnp.repeat(images_between(0.3, 0.7, count=1), 64, axis=0), LinfThreat(0.05)
    keys = jax.random.split(KEY, 64)
    uniform, odi = threat_model.random_start(keys, images, threat), odi_start(curved, keys, images, threat)
    spread = [float(jnp.std(curved(start), axis=0).min()) for start in (uniform, odi)]
    assert spread[1] > 1.5 * spread[0]


@pytest.mark.parametrize("attack", [attacks.pgd, attacks.pgd_multi_targeted, attacks.apgd])
def test_an_unknown_start_is_refused(attack):
    with pytest.raises(UserError, match=r"^start must be one of (uniform, clean|sphere), odi, not 'random'$"):
        attack(two, KEY, images_between(0, 1), jnp.zeros(8, jnp.int32), LinfThreat(0.1), start="random")


def test_multi_targeted_pgd_tries_every_class():
    images, labels = images_between(0.78, 0.8), jnp.zeros(8, jnp.int32)
    adversarial = assert_the_fourth_target_counts(attacks.pgd_multi_targeted, images, labels)
    assert adversarial.shape == (8, *SHAPE)


def test_the_margin_of_a_target_class_is_a_difference_of_two_logits():
    logits = jnp.array([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]])
    assert losses.margin(logits, jnp.array([0, 0]), jnp.array([2, 1])).tolist() == [1.0, -4.0]
    with pytest.raises(UserError, match=r"^targets must be in 0..2"):
        losses.margin(logits, jnp.array([0, 0]), jnp.array([3, 1]))

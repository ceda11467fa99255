"""Traces: of the attack itself, step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_problems import KEY, THREATS, curved, images_between, predicted, two

from robust_gan import LinfThreat, attacks, losses
from robust_gan.errors import UserError

IMAGES = images_between(0, 1, seed=4, count=32)


@pytest.mark.parametrize("name", ["pgd6", "margin_pgd6_odi", "apgd_ce6"])
def test_a_trace_is_of_the_attack_itself(name):
    labels, threat = predicted(curved, IMAGES), THREATS["linf"](0.05)
    attack = attacks.by_name(name)
    steps = jax.jit(lambda key, x, y: attacks.trace(attack, curved, key, x, y, threat))(KEY, IMAGES, labels)
    alone = jax.jit(lambda key, x, y: attack(curved, key, x, y, threat))(KEY, IMAGES, labels)
    np.testing.assert_allclose(steps.images, alone, atol=1e-6)
    count = 7 if name.startswith("apgd") else 6
    assert {array.shape for array in steps[1:]} == {(count, 32)}
    fooled = np.asarray(steps.fooled)
    assert 0 < fooled[-1].sum() < 32
    assert (fooled[1:] >= fooled[:-1]).all()
    # Where no step misclassified the image, the best loss is the largest so far.
    stood = ~fooled[-1]
    expected = np.maximum.accumulate(np.asarray(steps.losses), axis=0)
    np.testing.assert_array_equal(np.asarray(steps.best_losses)[:, stood], expected[:, stood])
    if name == "apgd_ce6":
        # The last step is part of the loop, so that its best loss is the result's.
        result = np.asarray(attack.keywords["loss_fn"](curved(alone), labels))
        np.testing.assert_allclose(steps.best_losses[-1], result, rtol=1e-4, atol=1e-5)
        assert (np.diff(steps.step_sizes, axis=0) <= 0).all()
        np.testing.assert_allclose(steps.step_sizes[0], 0.1, rtol=1e-6)
    else:
        np.testing.assert_allclose(steps.step_sizes, 2.5 * 0.05 / 6, rtol=1e-6)


def test_what_has_no_steps_of_one_run_is_refused():
    arguments = two, KEY, IMAGES, predicted(two, IMAGES), LinfThreat(0.1)
    for attack in (attacks.fgsm, attacks.by_name("square10"), jax.jit(attacks.pgd, static_argnums=0)):
        with pytest.raises(UserError, match=r"^this attack records no steps: trace attacks\.pgd or attacks\.apgd, not"):
            attacks.trace(attack, *arguments)
    with pytest.raises(UserError, match=r"^the steps of one run are traced, not of 2: set num_restarts to 1$"):
        attacks.trace(attacks.pgd, *arguments, num_restarts=2)


def test_nothing_is_recorded_where_it_is_not_asked_for():
    labels, threat = predicted(two, IMAGES), LinfThreat(0.1)
    run = functools.partial(attacks.pgd, two, KEY, IMAGES, labels, threat, num_steps=9)
    assert "9,32" not in str(jax.make_jaxpr(run)())
    recorded = jax.make_jaxpr(lambda: attacks.trace(attacks.pgd, two, KEY, IMAGES, labels, threat, num_steps=9))()
    assert "9,32" in str(recorded)
    assert losses.is_correct(two(IMAGES), labels).all()
    assert jnp.isfinite(run()).all()

"""Attacks towards a class: the optimum of linear classifiers, success, and targets that are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_problems import KEY, THREATS, WEIGHTS, assert_inside, compiled, flat, images_between, linear

from attack_problems import predicted  # isort: skip

from robust_gan import LinfThreat, attacks, losses
from robust_gan.errors import UserError

ATTACKS = {
    "fgsm": attacks.fgsm,
    "pgd": functools.partial(attacks.pgd, num_steps=20, loss_fn=losses.margin),
    "pgd_restarts": functools.partial(attacks.pgd, num_steps=10, num_restarts=2, start="odi"),
    "apgd": functools.partial(attacks.apgd, num_steps=20),
    "square": functools.partial(attacks.square, num_queries=100),
    "fmn": functools.partial(attacks.fmn, num_steps=100),
}


def three(images):
    """Three classes by the mean pixel: class 2 below 0.1, class 1 above 0.45, which is nearer to 0.3, and class 0."""
    x = jnp.mean(flat(images), axis=1)
    return jnp.stack([1 + 0 * x, 4 * (x - 0.2), 1 + 4 * (0.1 - x)], -1)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_target_is_reached_where_another_class_is_nearer(name):
    images, labels, target = images_between(0.25, 0.35), jnp.zeros(8, jnp.int32), jnp.full(8, 2)
    attack = compiled(ATTACKS[name], three)
    reached = jax.jit(lambda target: attack.__wrapped__(KEY, images, labels, LinfThreat(0.3), target=target))(target)
    assert_inside(reached, images, "linf", 0.3)
    assert predicted(three, reached).tolist() == [2] * 8
    assert predicted(three, attack(KEY, images, labels, LinfThreat(0.3))).tolist() != [2] * 8


@pytest.mark.parametrize("norm", THREATS)
def test_targeted_pgd_reaches_the_optimum_on_a_linear_classifier(norm):
    # With the margin of two classes the optimum is known: along the difference of their weights.
    images = images_between(0.3, 0.7)
    labels = predicted(linear, images)
    target = (labels + 2) % 5

    def gap(logits, classes, labels):  # To be minimised.
        return (
            jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
            - jnp.take_along_axis(logits, classes[:, None], 1)[:, 0]
        )

    found = attacks.pgd(
        linear, KEY, images, labels, THREATS[norm](0.1), num_steps=20, loss_fn=gap, loss_args=(labels,), target=target
    )
    ascent = np.float64(WEIGHTS).T[target] - np.float64(WEIGHTS).T[labels]
    unit = np.sign(ascent) if norm == "linf" else ascent / np.linalg.norm(ascent, axis=1, keepdims=True)
    expected = flat(np.float64(images)) + 0.1 * unit
    reached = -gap(linear(found), target, labels)
    best = -gap(jnp.float32(expected) @ WEIGHTS, target, labels)
    np.testing.assert_allclose(reached, best, atol=1e-4 if norm == "linf" else 2e-2)


def test_the_smallest_targeted_perturbation_of_a_linear_classifier():
    images, labels = images_between(0.25, 0.35), jnp.zeros(8, jnp.int32)
    found = attacks.smallest_perturbations(three, KEY, images, labels, LinfThreat(0.1), num_steps=200, target=2)
    np.testing.assert_allclose(found.distances, np.asarray(images).mean((1, 2, 3)) - 0.1, rtol=0.03)


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd, attacks.apgd, attacks.square, attacks.fmn])
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (0, "target must differ from the label of each image, but is 0 for an image of class 0"),
        (3, "target must be in 0..2, but range from 3 to 3"),
        (np.array([1, 1, 2, 2, 1, 1, -1, 1]), "target must be in 0..2, but range from -1 to 2"),
        (np.array([1, 2]), "target must be 8, one for each image, not 2"),
        (1.5, r"target must be integers [B], the number of a class each, not float32 (8,)"),
    ],
)
def test_targets_that_cannot_be_meant_are_refused(attack, target, sentence):
    with pytest.raises(UserError) as raised:
        attack(three, KEY, images_between(0.25, 0.35), jnp.zeros(8, jnp.int32), LinfThreat(0.1), target=target)
    assert str(raised.value) == sentence


def test_an_attack_named_with_a_class_leaves_images_that_do_not_reach_it_and_those_of_the_class():
    images = jnp.concatenate([images_between(0.25, 0.35), images_between(0, 0.05)])
    labels = jnp.array([0] * 8 + [2] * 8, jnp.int32)
    attack = attacks.by_name("pgd10_to2")
    assert attack is attacks.by_name("pgd10_to2")
    far = compiled(attack, three)(KEY, images, labels, LinfThreat(0.3))
    assert predicted(three, far).tolist() == [2] * 16
    assert np.array_equal(far[8:], images[8:])
    # Here class 2 is out of reach.
    assert np.array_equal(compiled(attack, three)(KEY, images, labels, LinfThreat(0.16)), images)
    with pytest.raises(UserError, match=r"^target must be in 0\.\.2, not 7"):
        jax.eval_shape(lambda x: attacks.by_name("fgsm_to7")(three, KEY, x, labels, LinfThreat(0.1)), images)
    for name in ("spsa_to1", "pgd10_to", "pgd10_to01", "mt_pgd10_to1", "apgd_t_to1", "pgd_to1"):
        with pytest.raises(UserError, match="unknown attack"):
            attacks.by_name(name)
    assert attacks.classes_needed("apgd_dlr50_to1") == 3

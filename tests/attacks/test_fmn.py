"""FMN: the nearest points of linear classifiers, and distances that bound those of other attacks."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from attack_problems import KEY, SHAPE, THREATS, WEIGHTS, assert_inside, compiled, curved, flat, images_between, linear

from attack_problems import predicted, two  # isort: skip

from robust_gan import attacks, losses
from robust_gan.errors import UserError
from robust_gan.threat_model import distance


def closed_form(images, labels, norm):
    """The distances to the nearest of the hyperplanes where two linear logits tie, in float64."""
    logits, index = np.float64(flat(images)) @ np.float64(WEIGHTS), np.arange(len(labels))
    gaps = np.abs(logits - logits[index, labels][:, None])
    ascent = np.float64(WEIGHTS).T[None] - np.float64(WEIGHTS).T[labels][:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nanmin(gaps / (np.abs(ascent).sum(2) if norm == "linf" else np.linalg.norm(ascent, axis=2)), axis=1)


@pytest.mark.parametrize("norm", THREATS)
def test_fmn_finds_the_nearest_point_of_a_linear_classifier(norm):
    images = images_between(0.4, 0.6, seed=2, count=16)
    labels = np.asarray(predicted(linear, images))
    search = functools.partial(attacks.smallest_perturbations, num_steps=100)
    found = compiled(search, linear)(KEY, images, jnp.asarray(labels), THREATS[norm](0.1))
    expected = closed_form(images, labels, norm)
    np.testing.assert_array_less(expected - 1e-6, found.distances)
    np.testing.assert_allclose(found.distances, expected, rtol=0.03)
    assert not losses.is_correct(linear(found.images), labels).any()
    delta = flat(np.float64(found.images) - np.float64(images))
    sizes = np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)
    np.testing.assert_allclose(sizes, found.distances, rtol=1e-5)


@pytest.mark.parametrize("norm", THREATS)
def test_the_attack_is_the_smallest_perturbation_where_that_is_in_the_ball(norm):
    images = images_between(0, 1, seed=3, count=32)
    labels = predicted(curved, images)
    search = functools.partial(attacks.smallest_perturbations, num_steps=10, num_targets=2)
    smallest = compiled(search, curved)(KEY, images, labels, THREATS[norm](0.1))
    epsilon = float(np.median(smallest.distances))
    adversarial = compiled(functools.partial(attacks.fmn, num_steps=10, num_targets=2), curved)(
        KEY, images, labels, THREATS[norm](epsilon)
    )
    assert_inside(adversarial, images, norm, epsilon)
    inside = np.asarray(smallest.distances) < epsilon * (1 - 1e-5)
    assert 0 < inside.sum() < 32
    assert np.array_equal(adversarial[inside], smallest.images[inside])
    assert not losses.is_correct(curved(adversarial[inside]), labels[inside]).any()


@pytest.mark.parametrize("norm", THREATS)
def test_restarts_from_diversified_points_keep_the_nearest_image_and_find_nearer_ones(norm):
    images = images_between(0, 1, seed=6, count=32)
    labels = predicted(curved, images)
    once, more = (
        compiled(
            functools.partial(attacks.smallest_perturbations, num_steps=10, num_targets=1, num_restarts=n), curved
        )(KEY, images, labels, THREATS[norm](0.1))
        for n in (0, 5)
    )
    assert (more.distances <= once.distances).all()
    nearer = np.asarray(more.distances < once.distances)
    assert nearer.any()
    assert np.array_equal(more.images[~nearer], once.images[~nearer])
    np.testing.assert_allclose(distance(more.images, images, THREATS[norm](0.1)), more.distances, rtol=1e-6)
    with pytest.raises(UserError, match=r"^num_restarts must be at least 0, not -1$"):
        attacks.fmn(curved, KEY, images, labels, THREATS[norm](0.1), num_restarts=-1)


def test_an_image_that_is_misclassified_already_has_distance_0_and_a_constant_classifier_has_none():
    images = images_between(0.3, 0.7)
    labels = predicted(two, images)
    threat = THREATS["l2"](0.1)
    wrong = attacks.smallest_perturbations(two, KEY, images, 1 - labels, threat, num_steps=2)
    assert wrong.distances.tolist() == [0.0] * 8
    assert np.array_equal(wrong.images, images)
    constant = attacks.smallest_perturbations(
        lambda x: jnp.zeros((len(x), 3)).at[:, 1].set(1.0), KEY, images, jnp.ones(8, jnp.int32), threat, num_steps=3
    )
    assert np.isinf(constant.distances).all()
    assert constant.images.shape == (8, *SHAPE)
    assert np.array_equal(constant.images, images)


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
def test_the_distances_are_those_of_foolbox_or_smaller(norm):
    foolbox = pytest.importorskip("foolbox")
    images = images_between(0, 1, seed=4, count=16)
    labels = predicted(curved, images)
    theirs = {"linf": foolbox.attacks.LInfFMNAttack, "l2": foolbox.attacks.L2FMNAttack}[norm](steps=40)
    made = theirs.run(foolbox.JAXModel(curved, bounds=(0, 1)), images, foolbox.criteria.Misclassification(labels))
    fooled = ~losses.is_correct(curved(made), labels)
    far = np.where(fooled, distance(made, images, THREATS[norm](1.0)), np.inf)
    search = functools.partial(attacks.smallest_perturbations, num_steps=40, num_targets=None)
    one, all_classes = (
        np.asarray(compiled(run, curved)(KEY, images, labels, THREATS[norm](1.0)).distances)
        for run in (search, functools.partial(search, num_targets=4))
    )
    assert np.isfinite(far).sum() >= 8
    assert np.median(one) <= 1.02 * np.median(far)
    assert (all_classes <= 1.02 * far).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
def test_targeted_pgd_reaches_the_targets_that_foolbox_reaches(norm):
    foolbox = pytest.importorskip("foolbox")
    images = images_between(0, 1, seed=5, count=32)
    labels = predicted(curved, images)
    targets, epsilon = (labels + 1) % 5, {"linf": 0.1, "l2": 0.2}[norm]
    theirs = getattr(foolbox.attacks, {"linf": "LinfPGD", "l2": "L2PGD"}[norm])(rel_stepsize=0.125, steps=20)
    criterion = foolbox.criteria.TargetedMisclassification(targets)
    reached = theirs(foolbox.JAXModel(curved, bounds=(0, 1)), images, criterion, epsilons=epsilon)[2]
    attack = functools.partial(attacks.pgd, num_steps=20, target=targets)
    made = compiled(attack, curved)(KEY, images, labels, THREATS[norm](epsilon))
    ours = np.asarray(predicted(curved, made) == targets)
    assert 0 < ours.sum() < 32
    assert ours.sum() >= np.asarray(reached).sum() - 1

"""FAB: the projections of an independent solver, and the nearest misclassified point where it is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from attack_problems import (
    HIDDEN,
    KEY,
    OUT,
    SHAPE,
    THREATS,
    WEIGHTS,
    ascent_of_two,
    assert_inside,
    compiled,
    curved,
    flat,
    images_between,
    linear,
    predicted,
    two,
    unit_step,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_gan import attacks, losses
from robust_gan.attacks.fab import fill_level, to_hyperplane

to_hyperplane = jax.jit(to_hyperplane, static_argnums=(3, 4))


def solve(points, weights, offset, norm):
    """The size of the smallest step onto the hyperplane within [0, 1], by a linear program or by SLSQP."""
    size = len(points)
    room = list(zip(-points, 1 - points, strict=True))
    if norm == "linf":
        within = np.block([[np.eye(size), -np.ones((size, 1))], [-np.eye(size), -np.ones((size, 1))]])
        found = scipy.optimize.linprog(
            np.r_[np.zeros(size), 1],
            A_ub=within,
            b_ub=np.zeros(2 * size),
            A_eq=np.r_[weights, 0][None],
            b_eq=[-offset],
            bounds=[*room, (0, None)],
        )
        return found.fun
    onto = {"type": "eq", "fun": lambda step: weights @ step + offset, "jac": lambda step: weights}
    found = scipy.optimize.minimize(
        lambda step: 0.5 * step @ step,
        np.zeros(size),
        jac=lambda step: step,
        bounds=room,
        constraints=onto,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return np.linalg.norm(found.x)


def random_case(seed, size=9):
    """A point with saturated pixels, weights of which some are 0, and a hyperplane that cuts the box or not."""
    rng = np.random.default_rng(seed)
    points = np.where(rng.uniform(size=size) < 0.3, rng.integers(0, 2, size), rng.uniform(size=size))
    weights = rng.normal(size=size) * (rng.uniform(size=size) > 0.2)
    weights[0] = rng.normal()
    sign = rng.choice([-1, 1])
    reach = np.maximum(-sign * weights * (0 - points), -sign * weights * (1 - points)).sum()
    return points, weights, sign, reach


@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.98), norm=st.sampled_from(list(THREATS)))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_step_to_a_hyperplane_is_that_of_an_independent_solver(seed, share, norm):
    points, weights, sign, reach = random_case(seed)
    offset = sign * share * reach
    step = to_hyperplane(jnp.float32(points)[None], jnp.float32(weights)[None], jnp.float32([offset]), norm, (0.0, 1.0))
    step = np.float64(step[0])
    assert abs(weights @ step + offset) < 1e-5
    assert (points + step).min() > -1e-6
    assert (points + step).max() < 1 + 1e-6
    size = np.abs(step).max() if norm == "linf" else np.linalg.norm(step)
    assert size == pytest.approx(solve(points, weights, offset, norm), abs=2e-5)


@pytest.mark.parametrize("norm", THREATS)
def test_a_hyperplane_out_of_reach_is_approached_as_far_as_the_box_goes(norm):
    for seed in range(20):
        points, weights, sign, reach = random_case(seed)
        step = to_hyperplane(
            jnp.float32(points)[None], jnp.float32(weights)[None], jnp.float32([sign * 1.5 * reach]), norm, (0.0, 1.0)
        )
        assert -weights @ np.float64(step[0]) * sign == pytest.approx(reach, abs=1e-5)
        assert (np.asarray(step[0])[weights == 0] == 0).all()


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e20])
def test_the_step_does_not_depend_on_the_scale_of_the_hyperplane(norm, scale):
    points, weights, sign, reach = random_case(3)
    weights, offset = jnp.float32(weights)[None], jnp.float32([0.5 * sign * reach])
    step, scaled = (
        to_hyperplane(jnp.float32(points)[None], weights * x, offset * x, norm, (0.0, 1.0)) for x in (1.0, scale)
    )
    np.testing.assert_allclose(scaled, step, atol=1e-6)
    assert np.abs(step).max() > 0


@pytest.mark.parametrize("norm", THREATS)
def test_there_is_no_step_without_a_gradient_or_without_a_gap(norm):
    points = jnp.full((2, 4), 0.5)
    step = to_hyperplane(points, jnp.array([[0.0] * 4, [1.0] * 4]), jnp.array([1.0, 0.0]), norm, (0.0, 1.0))
    assert not np.asarray(step).any()


def test_the_level_does_not_depend_on_the_other_images():
    rng = np.random.default_rng(0)
    slopes, limits, amounts = (jnp.float32(rng.uniform(size=shape)) for shape in ((64, 30), (64, 30), (64,)))
    amounts *= jnp.sum(slopes * limits, axis=1)
    whole = jax.jit(fill_level)(slopes, limits, amounts)
    for index in range(64):
        alone = jax.jit(fill_level)(*(x[index : index + 1] for x in (slopes, limits, amounts)))
        np.testing.assert_allclose(alone[0], whole[index], rtol=1e-6)
    held = np.sum(np.float64(slopes) * np.minimum(np.float64(whole)[:, None], np.float64(limits)), axis=1)
    np.testing.assert_allclose(held, amounts, rtol=1e-5)


def images_near_the_boundary_of_two():
    """Images far from the borders of the range, and their distances from the hyperplane where the classes tie."""
    ascent = ascent_of_two(np.zeros(1, int))
    unit = unit_step(ascent, "l2")
    centres = np.float64(flat(images_between(0.45, 0.55)))
    away = np.linspace(-0.05, 0.05, len(centres))[:, None]
    images = centres - (centres @ unit.T) * unit + away * unit
    assert 0.04 < images.min() < images.max() < 0.96
    distances = np.abs(away[:, 0])
    return jnp.float32(images).reshape(-1, *SHAPE), {
        "l2": distances,
        "linf": distances * np.linalg.norm(ascent) / np.abs(ascent).sum(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("attack", [attacks.fab_targeted, attacks.fab], ids=["targeted", "untargeted"])
def test_fab_finds_the_nearest_point_of_a_linear_classifier(norm, attack):
    images, distances = images_near_the_boundary_of_two()
    labels = predicted(two, images)
    run = compiled(functools.partial(attack, num_steps=20, num_restarts=1), two)
    for factor, holds in ((1.02, False), (0.98, True)):
        for index, distance in enumerate(distances[norm]):
            one = slice(index, index + 1)
            adversarial = run(KEY, images[one], labels[one], THREATS[norm](np.float32(factor * distance)))
            assert losses.is_correct(two(adversarial), labels[one])[0] == holds
            assert_inside(adversarial, images[one], norm, factor * distance)


def test_fab_goes_to_the_nearest_class_of_many():
    # With linear logits the boundary to each class is a hyperplane; the nearest of the four counts.
    images = images_between(0.4, 0.6, seed=2, count=16)
    labels = np.asarray(predicted(linear, images))
    logits = np.float64(linear(images))
    gaps = np.abs(logits - logits[np.arange(16), labels][:, None])
    ascent = np.float64(WEIGHTS).T[None] - np.float64(WEIGHTS).T[labels][:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        distances = np.nanmin(gaps / np.abs(ascent).sum(2), axis=1)
    for attack in (functools.partial(attacks.fab_targeted, num_steps=25), functools.partial(attacks.fab, num_steps=25)):
        adversarial = compiled(attack, linear)(KEY, images, jnp.asarray(labels), THREATS["linf"](1.0))
        found = np.abs(flat(np.float64(adversarial) - np.float64(images))).max(1)
        # The targeted attack stops at the first class that falls, which need not be the nearest.
        np.testing.assert_array_less(distances - 1e-6, found)
        if attack.func is attacks.fab:
            np.testing.assert_allclose(found, distances, rtol=0.02)


def test_what_fab_returns_is_never_worse_than_the_image_and_in_the_ball():
    images, threat = images_between(0, 1, seed=1, count=40), THREATS["linf"](0.01)
    labels = predicted(curved, images)
    adversarial = compiled(functools.partial(attacks.fab_targeted, num_steps=5, num_targets=2), curved)(
        KEY, images, labels, threat
    )
    assert_inside(adversarial, images, "linf", 0.01)
    before, after = (losses.margin(curved(x), labels) for x in (images, adversarial))
    assert (after >= before - 1e-6).all()
    assert (np.asarray(after) > np.asarray(before) + 1e-4).mean() > 0.5
    assert (np.asarray(before) < 0).all()
    assert (np.asarray(after) < 0).any()


def rough(images):
    """Where the linearisation misleads: which boundary is found depends on the start."""
    return jnp.sin(9 * flat(images) @ HIDDEN) @ OUT


@pytest.mark.slow
def test_restarts_of_fab_start_elsewhere():
    images, threat = images_between(0, 1, seed=6, count=64), THREATS["linf"](0.01)
    labels = predicted(rough, images)

    def remaining(num_restarts):
        attack = functools.partial(attacks.fab, num_steps=2, num_restarts=num_restarts)
        adversarial = compiled(attack, rough)(KEY, images, labels, threat)
        return int(losses.is_correct(rough(adversarial), labels).sum())

    assert 0 < remaining(6) < remaining(1)


@pytest.mark.parametrize("name", ["num_steps", "num_restarts", "num_targets"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, not 0$"):
        attacks.fab_targeted(linear, KEY, images_between(0, 1), jnp.zeros(8, int), THREATS["l2"](0.1), **{name: 0})


@pytest.mark.parametrize("name", ["fab_t1", "fab1"])
def test_fab_is_mapped_over_devices(name):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("devices",))
    rows = jax.sharding.PartitionSpec("devices")
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(16, 4)).astype(np.float32)
    images = jnp.asarray(rng.uniform(0.3, 0.7, (4, 4, 4, 1)), jnp.float32)

    def logits_fn(x):
        return (x.reshape(len(x), -1) - 0.5) @ weights

    def attack(keys, images, labels):
        return attacks.by_name(name)(logits_fn, keys, images, labels, THREATS["linf"](0.1))

    batch = jax.random.split(jax.random.key(0), 4), images, logits_fn(images).argmax(-1)
    mapped = jax.jit(jax.shard_map(attack, mesh=mesh, in_specs=(rows, rows, rows), out_specs=rows))
    np.testing.assert_allclose(mapped(*batch), jax.jit(attack)(*batch), atol=1e-6)

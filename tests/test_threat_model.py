"""The ball and the range: every point that leaves this module is inside both, and the geometry is exact."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robust_gan import L2Threat, LinfThreat, threat_model
from robust_gan.config import ThreatConfig

THREATS = {"linf": LinfThreat, "l2": L2Threat}
SLACK = 2.0**-24
# Epsilon is a float32 by then: its own rounding is no fault of the projection.
EPSILONS = (0.0, 1e-12, 2.0**-25, 1.7e-6, 1e-3, 8 / 255, 0.3, 1.0)
SIZE = 12

project = jax.jit(threat_model.project)
perturb = jax.jit(threat_model.perturb)
random_start = jax.jit(threat_model.random_start, compiler_options={"xla_backend_optimization_level": 0})

pixels = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 0.5, 1e-30, 1 - 2.0**-24]), st.floats(0, 1, width=32, allow_subnormal=False)),
    min_size=2 * SIZE,
    max_size=2 * SIZE,
)
points = st.lists(
    st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e30, -1e38, np.inf, -np.inf]),
        st.floats(-2, 2, width=32, allow_subnormal=False),
    ),
    min_size=2 * SIZE,
    max_size=2 * SIZE,
)
noises = st.lists(
    st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1 - 2.0**-24]), st.floats(-1, 1, width=32, allow_subnormal=False)
    ),
    min_size=2 * SIZE,
    max_size=2 * SIZE,
)
settings_of_balls = {
    "norm": st.sampled_from(sorted(THREATS)),
    "epsilon": st.sampled_from(EPSILONS),
    "dtype": st.sampled_from(["float32", "bfloat16"]),
}


def array(values, dtype="float32"):
    with np.errstate(over="ignore"):
        return jnp.asarray(np.asarray(values, np.float64).astype(np.dtype(dtype)).reshape(2, 2, 2, 3))


def distances(adversarial, images, norm):
    """In float64, by NumPy."""
    delta = (np.asarray(adversarial, np.float64) - np.asarray(images, np.float64)).reshape(len(images), -1)
    return np.abs(delta).max(1) if norm == "linf" else np.sqrt((delta**2).sum(1))


def assert_inside(adversarial, images, norm, epsilon, bounds=(0.0, 1.0)):
    assert adversarial.dtype == images.dtype
    assert adversarial.shape == images.shape
    wide = np.asarray(adversarial, np.float64)
    assert (wide >= bounds[0]).all()
    assert (wide <= bounds[1]).all()
    assert distances(adversarial, images, norm).max() <= epsilon + SLACK
    if epsilon == 0:
        assert np.array_equal(adversarial, images)


@given(images=pixels, adversarial=points, **settings_of_balls)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_project_stays_in_the_ball_and_the_range(images, adversarial, norm, epsilon, dtype):
    images = array(images, dtype)
    assert_inside(project(array(adversarial), images, THREATS[norm](epsilon)), images, norm, epsilon)


@given(images=pixels, noise=noises, **settings_of_balls)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_perturb_stays_in_the_ball_and_the_range(images, noise, norm, epsilon, dtype):
    images = array(images, dtype)
    assert_inside(perturb(images, array(noise, dtype), THREATS[norm](epsilon)), images, norm, epsilon)


@given(images=pixels, adversarial=points, **settings_of_balls)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_project_is_idempotent(images, adversarial, norm, epsilon, dtype):
    images, threat = array(images, dtype), THREATS[norm](epsilon)
    once = project(array(adversarial), images, threat)
    assert np.array_equal(project(once, images, threat), once)


@pytest.mark.parametrize("epsilon", [0.0, 55.5 * 2.0**-25, 1.7e-6, 1e-4, 0.5, 8.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_pixels_that_all_round_outwards_stay_in_the_l2_ball(epsilon, dtype):
    rng = np.random.default_rng(0)
    for size in (3072, 50_000):
        images = jnp.asarray(rng.uniform(0.5, 1, (2, size)), dtype)
        adversarial = images.astype(jnp.float32) + 0.3 * rng.choice([-1.0, 1.0], (2, size)).astype(np.float32)
        assert_inside(project(adversarial, images, L2Threat(epsilon)), images, "l2", epsilon)
        noise = jnp.asarray(rng.uniform(-1, 1, (2, size)), dtype)
        assert_inside(perturb(images, noise, L2Threat(epsilon)), images, "l2", epsilon)


def test_points_inside_are_left_alone_and_points_outside_go_to_the_nearest():
    rng = np.random.default_rng(1)
    images = rng.uniform(0.3, 0.7, (4, 50)).astype(np.float32)
    direction = rng.normal(size=(4, 50))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    inside = (images + 0.2 * direction).astype(np.float32)
    assert np.array_equal(project(inside, images, L2Threat(0.25)), inside)
    assert np.array_equal(project(inside, images, LinfThreat(0.25)), inside)
    outside = images + 5 * direction
    np.testing.assert_allclose(project(outside, images, L2Threat(0.25)), images + 0.25 * direction, atol=1e-6)
    expected = np.clip(np.clip(outside, images - 0.25, images + 0.25), 0, 1)
    np.testing.assert_allclose(project(outside, images, LinfThreat(0.25)), expected, atol=1e-7)


@pytest.mark.parametrize("norm", THREATS)
def test_other_bounds_hold(norm):
    rng = np.random.default_rng(2)
    images = jnp.asarray(rng.uniform(-1, 1, (4, 30)), jnp.float32)
    threat = THREATS[norm](0.5, bounds=(-1.0, 1.0))
    adversarial = project(images + rng.normal(size=images.shape), images, threat)
    assert_inside(adversarial, images, norm, 0.5, (-1.0, 1.0))
    assert adversarial.min() < -0.5
    far = project(images + 100, images, THREATS[norm](1e3, bounds=(-1.0, 1.0)))
    assert np.array_equal(far, np.ones_like(far))


@pytest.mark.parametrize("norm", THREATS)
def test_a_nan_is_not_hidden(norm):
    images = jnp.full((2, 3), 0.5)
    adversarial = jnp.array([[0.5, jnp.nan, 0.5], [0.5, 0.6, 0.5]])
    result = project(adversarial, images, THREATS[norm](0.3))
    assert np.isnan(result[0]).any()
    assert np.array_equal(result[1], adversarial[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_perturb_is_epsilon_inside_the_range_and_zero_where_it_is_clipped(dtype):
    images = jnp.array([[0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 1.0, 1.0]], dtype)
    noise = jnp.array([[0.25, -0.5, 1.0, -1.0, -0.5, 0.5, 0.5, -0.5]], dtype)
    cotangent = jnp.arange(1.0, 9.0, dtype=dtype)[None]
    threat = LinfThreat(0.125)
    value, pullback = jax.vjp(lambda noise: threat_model.perturb(images, noise, threat), noise)
    expected = 0.125 * np.arange(1.0, 9.0) * [1, 1, 1, 1, 0, 1, 0, 1]
    assert np.array_equal(np.asarray(pullback(cotangent)[0], np.float64)[0], expected)
    np.testing.assert_allclose(
        np.asarray(value, np.float64)[0],
        np.clip(np.asarray(images, np.float64) + 0.125 * np.asarray(noise, np.float64), 0, 1)[0],
        atol=4e-3 if dtype == "bfloat16" else 1e-7,
    )


@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_the_gradient_of_perturb_in_l2_matches_finite_differences(scale):
    rng = np.random.default_rng(3)
    images, noise, weights = rng.uniform(0.4, 0.6, (1, 20)), scale * rng.uniform(-1, 1, (1, 20)), rng.normal(size=20)
    threat = L2Threat(0.25)

    def reference(noise):
        moved = images + 0.25 * noise / max(1, np.linalg.norm(noise))
        return float((moved * weights).sum())

    gradient = jax.grad(lambda noise: jnp.sum(threat_model.perturb(jnp.float32(images), noise, threat) * weights))(
        jnp.float32(noise)
    )
    step = 1e-6
    expected = [(reference(noise + step * e) - reference(noise - step * e)) / (2 * step) for e in np.eye(20)]
    np.testing.assert_allclose(gradient[0], expected, atol=2e-6)
    at_zero = jax.grad(lambda noise: jnp.sum(threat_model.perturb(jnp.float32(images), noise, threat)))(
        jnp.zeros((1, 20))
    )
    assert np.isfinite(at_zero).all()


@given(seed=st.integers(0, 2**31 - 1), **settings_of_balls)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_random_starts_stay_in_the_ball_and_the_range(seed, norm, epsilon, dtype):
    images = array(np.random.default_rng(seed).choice([0.0, 1.0, 0.3, 0.7], 2 * SIZE), dtype)
    keys = jax.random.split(jax.random.key(seed), 2)
    assert_inside(random_start(keys, images, THREATS[norm](epsilon)), images, norm, epsilon)


def test_random_starts_in_linf_are_uniform_and_independent():
    images = jnp.full((1000, 2, 2, 1), 0.5)
    starts = random_start(jax.random.split(jax.random.key(0), 1000), images, LinfThreat(0.25))
    delta = (np.asarray(starts, np.float64) - 0.5).reshape(1000, 4)
    assert stats.kstest(delta.ravel(), stats.uniform(-0.25, 0.5).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(delta.T) - np.eye(4)).max() < 0.15


def test_random_starts_in_l2_are_uniform_in_the_ball():
    images = jnp.full((2000, 3), 0.5)
    starts = random_start(jax.random.split(jax.random.key(1), 2000), images, L2Threat(0.25))
    delta = np.asarray(starts, np.float64) - 0.5
    radius = np.linalg.norm(delta, axis=1)
    assert stats.kstest((radius / 0.25) ** 3, "uniform").pvalue > 1e-3
    # By Archimedes a coordinate of a uniform point of the sphere in three dimensions is uniform.
    for coordinate in (delta / radius[:, None]).T:
        assert stats.kstest(coordinate, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_a_random_start_depends_on_its_own_key_alone():
    keys = jax.random.split(jax.random.key(2), 4)
    images = jax.random.uniform(jax.random.key(3), (4, 2, 2, 3))
    whole = random_start(keys, images, L2Threat(0.1))
    for index in range(4):
        alone = random_start(keys[index : index + 1], images[index : index + 1], L2Threat(0.1))
        np.testing.assert_allclose(alone[0], whole[index], atol=1e-7)


@given(
    gradient=st.lists(st.floats(-10, 10, width=32, allow_subnormal=False), min_size=6, max_size=6),
    norm=st.sampled_from(sorted(THREATS)),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_steepest_maximises_the_linear_function_in_its_norm(gradient, norm):
    gradient = np.float32(gradient)
    gradient[np.abs(gradient) < 1e-37] = 0  # Subnormal numbers are zeros on most accelerators.
    direction = np.float64(threat_model.steepest_ascent(jnp.asarray(gradient)[None], THREATS[norm](1.0))[0])
    # The largest value over the unit ball is the dual norm of the gradient.
    dual = np.abs(np.float64(gradient)).sum() if norm == "linf" else np.linalg.norm(np.float64(gradient))
    np.testing.assert_allclose(direction @ np.float64(gradient), dual, rtol=1e-5)
    size = np.abs(direction).max() if norm == "linf" else np.linalg.norm(direction)
    assert size <= 1 + 1e-6
    assert (direction == 0).all() == (gradient == 0).all()


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-20, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("norm", THREATS)
def test_steepest_does_not_depend_on_the_size_of_the_gradient(norm, scale):
    direction = threat_model.steepest_ascent(jnp.array([[3.0 * scale, -4.0 * scale], [0.0, 0.0]]), THREATS[norm](1.0))
    expected = [[0.6, -0.8], [0, 0]] if norm == "l2" else [[1, -1], [0, 0]]
    np.testing.assert_allclose(direction, expected, rtol=1e-6)


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_steepest_is_finite_where_the_gradient_is_not(norm, bad):
    direction = np.asarray(threat_model.steepest_ascent(jnp.array([[bad, 1.0, 2.0]]), THREATS[norm](1.0)))
    assert np.isfinite(direction).all()
    assert direction[0, 0] == (0 if np.isnan(bad) else np.sign(bad))


def test_steepest_of_a_bfloat16_gradient_has_unit_size():
    gradient = jax.random.normal(jax.random.key(0), (2, 3072), jnp.bfloat16)
    direction = np.float64(threat_model.steepest_ascent(gradient, L2Threat(1.0)))
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", THREATS)
def test_distance_is_that_of_numpy(norm, dtype):
    rng = np.random.default_rng(4)
    images, adversarial = (jnp.asarray(rng.uniform(size=(3, 5, 5, 1)), dtype) for _ in range(2))
    size = threat_model.distance(adversarial, images, THREATS[norm](1.0))
    np.testing.assert_allclose(size, distances(adversarial, images, norm), rtol=1e-6)


def test_the_l2_norm_and_its_gradient_are_finite_for_tiny_and_huge_entries_and_zero():
    rows = jnp.array([[3e-30, 4e-30], [3e30, -4e30], [0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(threat_model.l2_norm(rows), [5e-30, 5e30, 0, 5], rtol=1e-6)
    gradient = jax.grad(lambda rows: threat_model.l2_norm(rows).sum())(rows)
    np.testing.assert_allclose(gradient, [[0.6, 0.8], [0.6, -0.8], [0, 0], [0.6, 0.8]], rtol=1e-6)
    hessian = jax.hessian(lambda row: threat_model.l2_norm(row[None])[0])(rows[3])
    np.testing.assert_allclose(hessian, [[0.128, -0.096], [-0.096, 0.072]], rtol=1e-5)


@pytest.mark.parametrize("norm", THREATS)
def test_a_sweep_over_epsilon_does_not_recompile(norm):
    traces = []

    @jax.jit
    def sweep(images, threat):
        traces.append(threat)
        return threat_model.project(images + 1, images, threat)

    images = jnp.zeros((1, 4))
    results = [float(sweep(images, THREATS[norm](epsilon)).max()) for epsilon in (0.0, 0.25, 0.5)]
    assert len(traces) == 1
    assert results[0] == 0 < results[1] < results[2]
    swept = jax.vmap(lambda epsilon: threat_model.project(images + 1, images, THREATS[norm](epsilon)))
    np.testing.assert_allclose(swept(jnp.array([0.0, 0.25, 0.5])).max((1, 2)), results, rtol=1e-6)
    sweep(images, THREATS[norm](0.5, bounds=(-1.0, 1.0)))
    assert len(traces) == 2


def test_two_norms_are_two_structures_and_epsilon_the_only_leaf():
    structures = {norm: jax.tree.structure(kind(0.5)) for norm, kind in THREATS.items()}
    assert structures["linf"] != structures["l2"]
    for kind in THREATS.values():
        threat = kind(0.5, bounds=(-1.0, 1.0))
        assert jax.tree.leaves(threat) == [0.5]
        assert jax.tree.structure(threat) == jax.tree.structure(kind(0.25, bounds=(-1.0, 1.0)))
        assert jax.tree.structure(threat) != jax.tree.structure(kind(0.5))
        assert jax.tree.map(lambda epsilon: 2 * epsilon, threat) == kind(1.0, bounds=(-1.0, 1.0))


def test_the_threat_model_of_a_configuration_has_its_norm_and_epsilon():
    assert threat_model.from_config(ThreatConfig("linf", 8 / 255)) == LinfThreat(8 / 255)
    assert threat_model.from_config(ThreatConfig("l2", 2.0)) == L2Threat(2.0)


@pytest.mark.parametrize("norm", THREATS)
def test_compiled_and_uncompiled_projections_agree(norm):
    rng = np.random.default_rng(5)
    images = jnp.asarray(rng.uniform(size=(3, 40)), ml_dtypes.bfloat16)
    adversarial = jnp.asarray(rng.normal(size=(3, 40)), jnp.float32)
    function = functools.partial(threat_model.project, threat=THREATS[norm](0.3))
    compiled, plain = (np.float32(f(adversarial, images)) for f in (jax.jit(function), function))
    assert np.abs(compiled - plain).max() <= 2.0**-8

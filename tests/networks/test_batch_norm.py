"""BatchNorm in one pass: as exact as two passes, with their derivatives, and one all-reduce each way."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import parallel
from robust_gan.networks.batch_norm import BatchNorm

SHAPE = (16, 4, 4, 3)
EPSILON = 1e-5


def batch(mean, dtype=np.float64):
    rng = np.random.default_rng(0)
    return (mean + rng.normal(size=SHAPE) * np.array([1, 2, 0.5])).astype(dtype)


def variables(running_mean=0.0):
    rng = np.random.default_rng(1)
    params = {"scale": rng.uniform(0.5, 2, 3), "bias": rng.normal(size=3)}
    stats = {"mean": np.full(3, running_mean), "var": np.ones(3)}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), {"params": params, "batch_stats": stats})


def normalise(x, given, axis_name=None, **settings):
    norm = BatchNorm(use_running_average=False, axis_name=axis_name, momentum=0.9, epsilon=EPSILON, **settings)
    return norm.apply(given, x, mutable=["batch_stats"])


def split_over(devices, x, given):
    """The same on parts of the batch, under an axis."""
    parts = x.reshape(devices, -1, *x.shape[1:])
    y, updated = jax.vmap(lambda part: normalise(part, given, "axis"), axis_name="axis")(parts)
    return y.reshape(x.shape), jax.tree.map(lambda leaf: leaf[0], updated)


def exact(x, given):
    """In NumPy's float64, in two passes."""
    x = np.asarray(x, np.float64)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    scale, bias = (np.asarray(given["params"][name], np.float64) for name in ("scale", "bias"))
    return (x - mean) / np.sqrt(var + EPSILON) * scale + bias, mean, var


@pytest.mark.parametrize("caught_up", [False, True])
@pytest.mark.parametrize("devices", [1, 4, 16])
@pytest.mark.parametrize("mean", [0.0, 3.0, 1000.0, -4000.0])
def test_batch_norm_is_exact_however_far_the_mean_is(mean, devices, caught_up):
    x, given = jnp.asarray(batch(mean), jnp.float32), variables(mean if caught_up else 0.0)
    y, updated = jax.jit(normalise)(x, given) if devices == 1 else jax.jit(split_over, static_argnums=0)(
        devices, x, given
    )  # fmt: skip
    expected, expected_mean, expected_var = exact(x, given)
    stats = jax.tree.map(lambda new, old: (np.asarray(new) - 0.9 * np.asarray(old, np.float64)) / 0.1, *(
        tree["batch_stats"] for tree in (updated, given)
    ))  # fmt: skip
    np.testing.assert_allclose(stats["mean"], expected_mean, rtol=1e-5, atol=1e-5 * max(abs(mean), 1))
    near = devices == 1 or caught_up or abs(mean) < 10
    np.testing.assert_allclose(stats["var"], expected_var, rtol=3e-5 if near else 2e-3)
    # What is left is the rounding of the pixels themselves, and of the deviation.
    np.testing.assert_allclose(y, expected, atol=(1e-5 if near else 4e-3) + 4e-7 * abs(mean))


def test_an_outlier_in_the_place_of_the_shift_does_not_matter():
    x = jnp.asarray(batch(0.0), jnp.float32).at[0].set(1e4)
    y, _ = normalise(x, variables())
    np.testing.assert_allclose(y, exact(x, variables())[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [None, "axis"])
def test_batch_norm_has_the_derivatives_of_two_passes(axis):
    """Value, gradients, and the product of the gradient penalty: forward over reverse."""
    x, given = jnp.asarray(batch(2.0), jnp.float32), variables()
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def derivatives(apply):
        def loss(params, x):
            return jnp.sum(jnp.sin(apply(x, given | {"params": params})[0]) * weights)

        gradient = jax.grad(loss, (0, 1))
        point, tangent = (given["params"], x), (given["params"], jnp.sin(3 * x))
        return loss(*point), gradient(*point), jax.jvp(gradient, point, tangent)[1]

    def two_passes(x, given):
        norm = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=EPSILON, use_fast_variance=False)
        return norm.apply(given, x, mutable=["batch_stats"])

    ours = normalise if axis is None else lambda x, given: split_over(4, x, given)
    for actual, wanted in zip(
        jax.tree.leaves(jax.jit(lambda: derivatives(ours))()),
        jax.tree.leaves(jax.jit(lambda: derivatives(two_passes))()),
        strict=True,
    ):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=2e-5 * (1 + np.max(np.abs(wanted))))


def test_its_parameters_and_running_statistics_are_those_of_flax():
    x = jnp.asarray(batch(1.0), jnp.float32)
    ours, flax = BatchNorm(use_running_average=True), nn.BatchNorm(use_running_average=True)
    started = ours.init(jax.random.key(0), x)
    assert jax.tree.structure(started) == jax.tree.structure(flax.init(jax.random.key(0), x))
    given = variables(0.5)
    np.testing.assert_array_equal(ours.apply(given, x), flax.apply(given, x))
    flax = nn.BatchNorm(use_running_average=False, momentum=0.9, use_fast_variance=False)
    for actual, wanted in zip(
        jax.tree.leaves(normalise(x, given)),
        jax.tree.leaves(flax.apply(given, x, mutable=["batch_stats"])),
        strict=True,
    ):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_statistics_are_float32_for_inputs_of_bfloat16():
    x = jnp.asarray(batch(8.0), jnp.bfloat16)
    y, updated = normalise(x, variables(), dtype=jnp.bfloat16)
    assert (y.dtype, updated["batch_stats"]["var"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * exact(x, variables())[2], rtol=1e-5)


def test_a_channel_that_is_constant_stays_finite():
    x = jnp.full(SHAPE, 1e3)
    y, pullback = jax.vjp(lambda x: normalise(x, variables())[0], x)
    assert np.all(np.isfinite(pullback(jnp.ones_like(y))[0]))
    # The rounding of 1,000 beside a deviation of sqrt(epsilon).
    np.testing.assert_allclose(y, jnp.broadcast_to(variables()["params"]["bias"], SHAPE), atol=0.1)


def test_batch_norm_sends_one_all_reduce_each_way():
    devices = parallel.find_devices(num_devices=4)
    x = jnp.asarray(batch(0.0), jnp.float32).reshape(4, 4, *SHAPE[1:])

    def loss(x, given):
        y, updated = normalise(x, given, "axis")
        return jnp.sum(jnp.sin(y)), updated

    for function, count in ((loss, 1), (jax.grad(loss, has_aux=True), 2)):
        mapped = jax.pmap(function, axis_name="axis", in_axes=(0, None), devices=devices)
        assert mapped.lower(x, variables()).as_text().count("all_reduce") == count

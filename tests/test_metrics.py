"""Means that merge: the whole is the same however it is cut."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_gan.metrics import Mean, mean_of, merge, merge_over


def merged(values, mask, cuts):
    whole = Mean(0, 0)
    for part, kept in zip(np.split(values, cuts), np.split(mask, cuts), strict=True):
        whole = merge(whole, mean_of(jnp.asarray(part), jnp.asarray(kept)))
    return whole


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.lists(st.integers(0, 30), max_size=4),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_merged_means_equal_the_mean_of_the_whole_for_any_batching(rows, cuts):
    values, mask = np.array(rows).T
    whole = merged(values, mask, sorted(min(cut, len(rows)) for cut in cuts))
    assert int(whole.total) == (values & mask).sum()
    assert int(whole.count) == mask.sum()
    np.testing.assert_equal(whole.compute(), values[mask].mean() if mask.any() else np.nan)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_narrow_values_are_summed_in_float32(dtype):
    values = jnp.asarray(np.random.default_rng(0).uniform(1, 2, 4096), dtype)
    mean = merged(values, np.ones(4096, bool), [100, 3000])
    assert mean.total.dtype == jnp.float32
    np.testing.assert_allclose(mean.compute(), np.asarray(values, np.float64).mean(), rtol=1e-6)


def test_masked_values_do_not_count_whatever_they_are():
    values = jnp.array([1.0, jnp.nan, jnp.inf, 3.0])
    assert mean_of(values, jnp.array([True, False, False, True])) == (4.0, 2)
    assert mean_of(values, jnp.array([1, 0, 0, 2])) == (4.0, 2)
    assert np.isnan(mean_of(values, jnp.zeros(4, bool)).compute())


def test_ten_thousand_and_seven_images_in_batches_of_64_count_exactly():
    values = np.random.default_rng(1).uniform(size=10_007) < 0.5
    padded = np.pad(values, (0, -len(values) % 64), constant_values=True).reshape(-1, 64)
    mask = (np.arange(padded.size) < len(values)).reshape(-1, 64)
    totals, counts = jax.vmap(mean_of)(jnp.asarray(padded), jnp.asarray(mask))
    whole = Mean(0, 0)
    for part in zip(totals.tolist(), counts.tolist(), strict=True):
        whole = merge(whole, Mean(*part))
    assert whole == (int(values.sum()), 10_007)
    assert whole.compute() == values.sum() / 10_007


def test_counts_beyond_those_of_float32_are_exact():
    million = mean_of(jnp.ones(2**20, bool))
    whole = Mean(0, 0)
    for _ in range(17):
        whole = merge(whole, million)
    assert int(merge(whole, mean_of(jnp.ones(1, bool))).total) == 17 * 2**20 + 1


@pytest.mark.parametrize("mapping", [jax.vmap, jax.pmap])
def test_merging_over_an_axis_equals_merging_one_by_one(mapping):
    values = jnp.arange(12.0).reshape(4, 3)
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
    over = mapping(lambda v, m: merge_over(mean_of(v, m), "batch"), axis_name="batch")(values, mask)
    expected = np.asarray(values)[np.asarray(mask)]
    chex.assert_trees_all_close(over, Mean(np.full(4, expected.sum()), np.full(4, 6)))


def test_merging_over_no_axis_changes_nothing():
    mean = mean_of(jnp.arange(3.0))
    assert merge_over(mean, None) is mean

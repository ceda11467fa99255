"""Losses against NumPy and SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from robust_gan import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 5)).astype(np.float32) * 4
OTHER = RNG.normal(size=(7, 5)).astype(np.float32) * 4
LABELS = np.array([0, 1, 2, 3, 4, 0, 1], np.int32)
TARGETS = np.array([1, 2, 3, 4, 0, 4, 0], np.int32)
ROWS = np.arange(7)


def reference_cross_entropy(logits, labels):
    logits = np.float64(logits)
    return special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]


def reference_margin(logits, labels):
    logits, index = np.float64(logits), np.arange(len(labels))
    wrong = logits.copy()
    wrong[index, labels] = -np.inf
    return wrong.max(1) - logits[index, labels]


def reference_kl(logits, reference):
    return special.rel_entr(special.softmax(np.float64(reference), 1), special.softmax(np.float64(logits), 1)).sum(1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_losses_are_unreduced_and_those_of_float64(dtype):
    logits, other = jnp.asarray(LOGITS, dtype), jnp.asarray(OTHER, dtype)
    wide, wide_other = np.asarray(logits, np.float64), np.asarray(other, np.float64)
    for value, expected in (
        (losses.cross_entropy(logits, LABELS), reference_cross_entropy(wide, LABELS)),
        (losses.margin(logits, LABELS), reference_margin(wide, LABELS)),
        (losses.kl(logits, other), reference_kl(wide, wide_other)),
        (losses.generator_loss(logits, LABELS), -reference_cross_entropy(wide, LABELS)),
        (
            losses.classifier_loss(logits, other, LABELS, clean_weight=0.5, adversarial_weight=2.0),
            0.5 * reference_cross_entropy(wide, LABELS) + 2 * reference_cross_entropy(wide_other, LABELS),
        ),
    ):
        assert value.shape == (7,)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_cross_entropy_of_large_logits_is_finite():
    logits = np.float32([[1e4, 0, 0], [0, 1e4, 0], [3e4, 3e4, 0]])
    labels = np.zeros(3, np.int32)
    value, gradient = jax.vjp(lambda x: losses.cross_entropy(x, labels), logits)
    np.testing.assert_allclose(value, [0, 1e4, np.log(2)], rtol=1e-6)
    assert np.isfinite(gradient(jnp.ones(3))[0]).all()


# Halves are exact in float32: no margin is lost in rounding.
@given(st.lists(st.integers(-8, 8), min_size=6, max_size=6), st.integers(0, 5))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_margin_has_the_sign_of_the_mistake(values, label):
    logits, labels = np.float32([values]) / 2, np.int32([label])
    margin = float(losses.margin(logits, labels)[0])
    correct = bool(losses.is_correct(logits, labels)[0])
    assert correct == (int(np.argmax(values)) == label)
    if margin > 0:
        assert not correct
    elif margin < 0:
        assert correct
    else:
        assert sorted(values)[-1] == sorted(values)[-2] == values[label]


def test_dlr_is_that_of_the_paper():
    logits = np.float64(LOGITS)
    ordered = np.sort(logits, axis=1)[:, ::-1]
    untargeted = reference_margin(logits, LABELS) / (ordered[:, 0] - ordered[:, 2])
    np.testing.assert_allclose(losses.dlr(LOGITS, LABELS), untargeted, rtol=1e-5)
    below = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    targeted = (logits[ROWS, TARGETS] - logits[ROWS, LABELS]) / below
    np.testing.assert_allclose(losses.dlr(LOGITS, LABELS, TARGETS), targeted, rtol=1e-5)


@pytest.mark.parametrize("targets", [None, TARGETS])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 100.0), (0.0, 0.01), (20.0, 1.0), (-3.0, 7.0)])
def test_dlr_does_not_change_with_shift_and_scale(targets, shift, scale):
    changed = losses.dlr(scale * LOGITS + shift, LABELS, targets)
    np.testing.assert_allclose(changed, losses.dlr(LOGITS, LABELS, targets), rtol=1e-4, atol=1e-5)


def test_dlr_is_finite_where_all_logits_are_equal():
    logits = jnp.ones((1, 4))
    for targets in (None, jnp.array([1])):
        value, pullback = jax.vjp(lambda x, targets=targets: losses.dlr(x, jnp.array([0]), targets), logits)
        assert value.tolist() == [0]
        assert np.isfinite(pullback(jnp.ones(1))[0]).all()


def test_dlr_refuses_too_few_classes():
    with pytest.raises(ValueError, match="the DLR loss needs 3 classes, not 2"):
        losses.dlr(jnp.zeros((1, 2)), jnp.array([0]))
    with pytest.raises(ValueError, match="the targeted DLR loss needs 4 classes, not 3"):
        losses.dlr(jnp.zeros((1, 3)), jnp.array([0]), jnp.array([1]))
    losses.dlr(jnp.arange(3.0)[None], jnp.array([0]))


@given(st.lists(st.floats(-30, 30, width=32), min_size=8, max_size=8), st.sampled_from([0.0, 1e-6, 1e-3, 1.0]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_kl_is_never_negative_and_that_of_scipy(values, scale):
    reference = np.float32(values).reshape(2, 4)
    logits = reference + np.float32(scale) * np.float32([1, -2, 0, 3])
    value = np.asarray(losses.kl(logits, reference))
    assert (value >= 0).all()
    np.testing.assert_allclose(value, reference_kl(logits, reference), rtol=1e-3, atol=3e-6)


def test_the_gradient_of_kl_is_that_of_the_softmax_where_it_is_tiny_too():
    reference = np.float32([[0.3, -0.2, 0.9]])
    for difference in (1.0, 1e-3):
        logits = reference + np.float32([[difference, 0, 0]])
        gradient = jax.grad(lambda x: losses.kl(x, reference).sum())(logits)
        expected = special.softmax(np.float64(logits)) - special.softmax(np.float64(reference))
        np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_kl_counts_a_class_of_probability_zero_as_nothing():
    reference = jnp.array([[0.0, 0.0, -jnp.inf]])
    value, pullback = jax.vjp(lambda logits: losses.kl(logits, reference), jnp.array([[0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(value, np.log(1.5), rtol=1e-6)
    np.testing.assert_allclose(pullback(jnp.ones(1))[0], [[-1 / 6, -1 / 6, 1 / 3]], atol=1e-6)


def test_nan_and_infinite_predictions_are_never_correct():
    inf = jnp.inf
    logits = jnp.array([[jnp.nan, 0.0], [2.0, jnp.nan], [inf, 0.0], [-inf, -inf], [0.0, -inf], [1.0, 0.0]])
    # -inf is the logit of a masked class.
    assert losses.is_correct(logits, jnp.zeros(6, int)).tolist() == [False, False, False, False, True, True]
    assert losses.is_correct(jnp.zeros((1, 3)), jnp.array([3])).tolist() == [False]


def test_the_value_of_the_game_is_what_one_loses_and_the_other_wins():
    both = losses.classifier_loss(LOGITS, OTHER, LABELS) + losses.generator_loss(OTHER, LABELS)
    np.testing.assert_allclose(both, losses.cross_entropy(LOGITS, LABELS), rtol=1e-5, atol=1e-5)
    alone = losses.classifier_loss(LOGITS, OTHER, LABELS, clean_weight=0.0)
    assert np.array_equal(alone, -losses.generator_loss(OTHER, LABELS))
    assert (np.asarray(losses.generator_loss(OTHER, LABELS)) <= 0).all()

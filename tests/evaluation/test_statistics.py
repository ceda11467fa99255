"""Intervals and paired tests, against closed values."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_gan.evaluation import statistics

Z = 1.959963984540054


def test_wilson_against_closed_values():
    z2 = Z**2
    for count in (1, 10, 360, 10_000):
        low, high = statistics.wilson_interval(0, count)
        assert (low, high) == pytest.approx((0.0, z2 / (count + z2)), abs=1e-12)
        low, high = statistics.wilson_interval(count, count)
        assert (low, high) == pytest.approx((count / (count + z2), 1.0), abs=1e-12)
        if count % 2 == 0:
            half = 0.5 * Z / math.sqrt(count + z2)
            assert statistics.wilson_interval(count // 2, count) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)
    # Of Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 1998, table I.
    for successes, count, interval in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (1, 29, (0.0061, 0.1718)),
    ):
        assert statistics.wilson_interval(successes, count) == pytest.approx(interval, abs=5e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 500), st.integers(1, 500), st.sampled_from([0.5, 0.8, 0.95, 0.999]))
def test_wilson_holds_the_share_is_symmetric_and_grows_with_confidence(successes, count, confidence):
    successes = min(successes, count)
    low, high = statistics.wilson_interval(successes, count, confidence)
    assert 0 <= low <= successes / count <= high <= 1
    assert high > low
    mirrored = statistics.wilson_interval(count - successes, count, confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wider = statistics.wilson_interval(successes, count, 0.9999)
    assert wider[0] <= low
    assert high <= wider[1]
    assert statistics.interval_of(successes / count, count, confidence) == (low, high)


def test_what_is_no_share_is_refused_and_what_is_none_has_no_interval():
    assert all(map(math.isnan, statistics.wilson_interval(0, 0)))
    assert all(map(math.isnan, statistics.interval_of(None, 5) + statistics.interval_of(math.nan, 5)))
    assert statistics.format_accuracy(math.nan, 5) == "-"
    assert statistics.format_accuracy(0.5, 0) == "50.0"
    for successes, count in ((6, 5), (-1, 5), (1, 0)):
        with pytest.raises(ValueError, match="from 0 to the count"):
            statistics.wilson_interval(successes, count)
    with pytest.raises(ValueError, match="between 0 and 1"):
        statistics.wilson_interval(1, 2, confidence=95)


def vectors(both, first_only, second_only, neither):
    first = [True] * (both + first_only) + [False] * (second_only + neither)
    second = [True] * both + [False] * first_only + [True] * second_only + [False] * neither
    return np.array(first), np.array(second)


def test_mcnemar_against_closed_values():
    """The exact p-value is twice the tail of fair coins."""
    assert statistics.mcnemar(*vectors(7, 1, 5, 9)) == pytest.approx(2 * (1 + 6) / 2**6)
    assert statistics.mcnemar(*vectors(0, 0, 10, 0)) == pytest.approx(2 / 2**10)
    assert statistics.mcnemar(*vectors(3, 4, 4, 3)) == 1.0
    assert statistics.mcnemar(*vectors(3, 0, 0, 3)) == 1.0
    assert statistics.mcnemar([], []) == 1.0


def test_the_paired_difference_against_a_closed_value():
    found = statistics.paired_difference(*vectors(1, 1, 7, 12))
    # (2 - 8) / 23, and 1.96 sqrt((10/23 - (6/23)^2) / 23).
    half = Z * math.sqrt((10 / 23 - (6 / 23) ** 2) / 23)
    assert (found.low, found.high) == pytest.approx((-6 / 23 - half, -6 / 23 + half))
    assert found.difference == pytest.approx(-6 / 21)
    assert (found.first_only, found.second_only) == (1, 7)
    assert found.p_value == pytest.approx(2 * (1 + 8) / 2**8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=80))
def test_a_paired_difference_turns_its_sign_with_the_models(pairs):
    first, second = (np.array([pair[place] for pair in pairs], bool) for place in (0, 1))
    one, other = statistics.paired_difference(first, second), statistics.paired_difference(second, first)
    assert one.p_value == other.p_value
    assert (one.first_only, one.second_only) == (other.second_only, other.first_only)
    if not pairs:
        assert math.isnan(one.difference)
        return
    assert -1 <= one.low <= one.difference <= one.high <= 1
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.difference == pytest.approx(first.mean() - second.mean())


def test_the_intervals_cover_what_they_should():
    draws = np.random.default_rng(0)
    cells = np.array([0.5, 0.15, 0.1, 0.25])
    hits = []
    for counts in draws.multinomial(200, cells, size=400):
        found = statistics.paired_difference(*vectors(*counts))
        hits.append(found.low <= cells[1] - cells[2] <= found.high)
    assert 0.92 < np.mean(hits) < 0.98


@pytest.mark.parametrize(
    ("first", "second"), [([True], [True, False]), ([1.0, 0.0], [True, False]), ([[True]], [[True]]), (True, False)]
)
def test_what_is_not_paired_is_refused(first, second):
    for compare in (statistics.mcnemar, statistics.paired_difference):
        with pytest.raises(ValueError, match="of the same images"):
            compare(first, second)


def test_seeds_are_compared_by_student():
    # The five seeds of docs/results.md at equal gradients.
    hops, pgd = np.array([[78.1, 79.7, 76.9, 78.3, 80.3], [76.9, 76.7, 77.8, 75.3, 79.7]]) / 100
    mean, low, high, p_value = statistics.paired_over_seeds(hops, pgd)
    assert mean == pytest.approx(0.0138)
    assert p_value == pytest.approx(0.14, abs=0.005)
    assert low < 0 < high
    assert high - mean == pytest.approx(2.776 * 0.01665 / math.sqrt(5), abs=1e-4)
    # A difference of accuracies is at most 1.
    assert statistics.paired_over_seeds([0.9, 0.1], [0.2, 0.5])[1:3] == (-1.0, 1.0)
    assert all(map(math.isnan, statistics.paired_over_seeds([0.5], [0.4])[1:]))
    assert all(map(math.isnan, statistics.paired_over_seeds([0.5, 0.6], [0.4, 0.5])[1:]))
    with pytest.raises(ValueError, match="each seed"):
        statistics.paired_over_seeds([0.5], [0.4, 0.5])


def test_differences_are_written_with_their_sign():
    assert statistics.format_difference(-0.0001, -0.1, 0.1) == ("+0.0", "-10.0 to +10.0")
    assert statistics.format_p(0.5) == "0.500"

"""How far accuracies can be trusted: intervals of shares, and comparisons of two models on the same images."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats

CONFIDENCE = 0.95
"""Of every interval in a report."""
INTERVALS = "in brackets: the 95 % interval (Wilson), over images; other training runs (seeds) may differ by more"
PAIRED = (
    "Two models on the same images: the accuracy of the first minus that of the second in points, its 95 % interval "
    "(Bonett and Price), on how many images one alone is right, and the p-value of McNemar's exact test, not corrected "
    "for the number of rows. It compares these trained models, not the methods that trained them: that takes several "
    "seeds."
)
PAIRED_HEADER = ("models", "under", "difference", "95 % interval", "first alone", "second alone", "McNemar p")
WORST_WHITE, WORST_BLACK = "worst case, white box", "worst case, black box"

_FEW_PAIRS = 3
_MOST_MODELS = 8


class PairedDifference(NamedTuple):
    """Two models compared on the same images.

    Attributes:
        difference: Accuracy of the first minus that of the second, in [-1, 1]; NaN without an image.
        low: Lower end of its interval.
        high: Upper end.
        first_only: Number of images on which the first alone is right.
        second_only: Number of images on which the second alone is right.
        p_value: Of McNemar's exact test, two-sided.
    """

    difference: float
    low: float
    high: float
    first_only: int
    second_only: int
    p_value: float


def wilson_interval(successes: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns Wilson's score interval of a share: it stays within [0, 1] and has a width at 0 and at 1, too.

    Args:
        successes: How many of the images are right.
        count: How many images there are.
        confidence: Of the interval, in (0, 1).

    Returns:
        Its ends as shares; NaN where there is no image.

    Raises:
        ValueError: There are not 0 to `count` successes, or the confidence is not between 0 and 1.

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.

    >>> [round(end, 3) for end in wilson_interval(210, 360)]
    [0.532, 0.633]
    """
    _check_confidence(confidence)
    if not 0 <= successes <= count:
        raise ValueError(f"successes must be from 0 to the count of {count}, not {successes}")
    if not count:
        return math.nan, math.nan
    interval = scipy.stats.binomtest(int(successes), int(count)).proportion_ci(confidence, method="wilson")
    # Rounding must not put the share itself outside.
    return min(float(interval.low), successes / count), max(float(interval.high), successes / count)


def interval_of(share: float | None, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns Wilson's interval of an accuracy that is known as a share.

    Args:
        share: In [0, 1]; None or NaN where there is none.
        count: Of how many images.
        confidence: Of the interval, in (0, 1).

    Returns:
        Its ends as shares; NaN where there is no accuracy.

    Raises:
        ValueError: The share is not in [0, 1].

    >>> [round(end, 3) for end in interval_of(0.5, 10)]
    [0.237, 0.763]
    """
    if share is None or math.isnan(share):
        return math.nan, math.nan
    return wilson_interval(round(share * count), count, confidence)


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Returns the p-value of McNemar's exact test that two models are equally often right on the same images.

    Args:
        first: bool `[N]`, whether the first model is right on each image.
        second: bool `[N]`, the same of the second.

    Returns:
        The two-sided p-value; 1 where no image tells the models apart.

    Raises:
        ValueError: The two are not boolean vectors of one length.

    References:
        McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
        Psychometrika 1947.

    >>> mcnemar([True] * 5 + [False], [False] * 5 + [True])
    0.21875
    """
    first_only, second_only, _ = _discordant(first, second)
    return _mcnemar(first_only, second_only)


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike, confidence: float = CONFIDENCE) -> PairedDifference:
    """Returns by how much a model is more often right than another on the same images, with an interval and a test.

    The interval is Wald's with the adjustment of Bonett and Price: half an image more in each of the four cells.

    Args:
        first: bool `[N]`, whether the first model is right on each image.
        second: bool `[N]`, the same of the second.
        confidence: Of the interval, in (0, 1).

    Returns:
        The difference of the accuracies, its interval, the discordant images, and McNemar's p-value.

    Raises:
        ValueError: The two are not boolean vectors of one length, or the confidence is not between 0 and 1.

    References:
        Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
        data", Journal of Educational and Behavioral Statistics 2012.

    >>> found = paired_difference([True, True, True, False], [True, False, False, False])
    >>> found.difference, found.first_only, found.second_only, found.p_value
    (0.5, 2, 0, 0.5)
    """
    _check_confidence(confidence)
    first_only, second_only, count = _discordant(first, second)
    if not count:
        return PairedDifference(math.nan, math.nan, math.nan, 0, 0, 1.0)
    difference = (first_only - second_only) / count
    one, other = (first_only + 1) / (count + 2), (second_only + 1) / (count + 2)
    half = scipy.stats.norm.ppf(0.5 + confidence / 2) * math.sqrt((one + other - (one - other) ** 2) / (count + 2))
    low, high = max(-1.0, one - other - half), min(1.0, one - other + half)
    return PairedDifference(
        difference, float(min(low, difference)), float(max(high, difference)), first_only, second_only,
        _mcnemar(first_only, second_only),
    )  # fmt: skip


def paired_over_seeds(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float, float]:
    """Returns the mean difference of two methods trained with the same seeds, with the interval and test of Student.

    Args:
        first: Accuracies of the first method, one for each seed.
        second: Those of the second with the same seeds.
        confidence: Of the interval, in (0, 1).

    Returns:
        The mean difference, the ends of its interval, and the two-sided p-value of the paired t-test; all but the mean
        are NaN where there are fewer than two seeds or where all differences are equal.

    Raises:
        ValueError: There are not as many of the one as of the other.

    >>> [round(value, 2) for value in paired_over_seeds([0.8, 0.9, 0.7], [0.7, 0.7, 0.6])]
    [0.13, -0.01, 0.28, 0.06]
    """
    _check_confidence(confidence)
    differences = np.asarray(first, float) - np.asarray(second, float)
    if np.shape(first) != np.shape(second) or differences.ndim != 1:
        raise ValueError(f"there must be one accuracy of each for each seed, not {np.shape(first)}, {np.shape(second)}")
    mean = float(differences.mean()) if len(differences) else math.nan
    if len(differences) < 2 or not differences.std() > 1e-12:
        return mean, math.nan, math.nan, math.nan
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    student = scipy.stats.t(len(differences) - 1)
    half = float(student.ppf(0.5 + confidence / 2)) * error
    return mean, max(mean - half, -1.0), min(mean + half, 1.0), float(2 * student.sf(abs(mean) / error))


def format_accuracy(share: float | None, count: int) -> str:
    """Returns an accuracy in % with its interval, without the sign.

    Args:
        share: In [0, 1]; None or NaN where there is none.
        count: Of how many images; 0 where that is not known, and then there is no interval.

    >>> format_accuracy(210 / 360, 360), format_accuracy(None, 360)
    ('58.3 (53.2 to 63.3)', '-')
    """
    if share is None or math.isnan(share):
        return "-"
    if not count:
        return f"{100 * share:.1f}"
    low, high = interval_of(share, count)
    return f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def format_p(p_value: float) -> str:
    """Returns a p-value as it is printed.

    >>> format_p(0.0421), format_p(1e-9), format_p(math.nan)
    ('0.042', '< 0.001', '-')
    """
    return "-" if math.isnan(p_value) else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def format_difference(difference: float, low: float, high: float) -> tuple[str, str]:
    """Returns a difference and its interval in points of %.

    Args:
        difference: Of two accuracies that are shares.
        low: Lower end of its interval.
        high: Upper end.

    Returns:
        Both as they are printed; a dash where there is no interval.

    >>> format_difference(0.125, -0.01, 0.2), format_difference(0.125, math.nan, math.nan)
    (('+12.5', '-1.0 to +20.0'), ('+12.5', '-'))
    """
    # Adding 0 turns -0 into 0.
    written = f"{round(100 * difference, 1) + 0.0:+.1f}"
    ends = "-" if math.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"
    return written, ends


def paired_cells(paired: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the cells of the table of paired comparisons, under `PAIRED_HEADER`.

    Args:
        paired: Of `report.json`. Of more than three pairs only clean images and the worst cases are shown, of all
            pairs those of the first eight models, and those that all have one model in common.

    >>> paired_cells([])
    []
    """
    pairs = {(row["first"], row["second"]) for row in paired}
    names = list(dict.fromkeys(name for row in paired for name in (row["first"], row["second"])))
    shared = set.intersection(*map(set, pairs)) if pairs else set()
    left_out = set() if shared else set(names[_MOST_MODELS:])
    # The worst case over a single attack is not in the report: then that attack is shown.
    is_long = len(pairs) > _FEW_PAIRS and any(row["under"] == WORST_WHITE for row in paired)
    return [
        [
            f"{row['first']} minus {row['second']}",
            row["under"],
            *format_difference(row["difference"], *row["interval"]),
            str(row["first_only"]),
            str(row["second_only"]),
            format_p(row["p_value"]),
        ]
        for row in paired
        if (not is_long or row["under"] in ("clean", WORST_WHITE, WORST_BLACK))
        and not left_out & {row["first"], row["second"]}
    ]


def _check_confidence(confidence):
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence must be between 0 and 1, not {confidence}")


def _discordant(first, second):
    """Counts the images on which one of two models alone is right, and all images."""
    one, other = np.asarray(first), np.asarray(second)
    # An empty list has no dtype of its own.
    if one.shape != other.shape or one.ndim != 1 or (one.size and not one.dtype == other.dtype == np.dtype(bool)):
        raise ValueError(
            "two models are compared by a vector of True and False each, of the same images, not by arrays of shape "
            f"{one.shape} ({one.dtype}) and {other.shape} ({other.dtype})"
        )
    return int(np.sum(one & ~other)) if one.size else 0, int(np.sum(~one & other)) if one.size else 0, one.size


def _mcnemar(first_only, second_only):
    discordant = first_only + second_only
    return float(scipy.stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0

"""Alarms: signs that a figure of robustness means less than it says, each a rule that can fire or not.

References:
    Carlini et al., "On Evaluating Adversarial Robustness", 2019, https://arxiv.org/abs/1902.06705
    Pintor et al., "Indicators of Attack Failure: Debugging and Improving Optimization of Adversarial Examples",
        NeurIPS 2022, https://arxiv.org/abs/2106.09947
    Croce and Hein, AutoAttack's flags, https://github.com/fra31/auto-attack/blob/master/flags_doc.md
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from robust_gan import threat_model
from robust_gan.evaluation.checks import needs_gradient
from robust_gan.evaluation.curve import Curve
from robust_gan.evaluation.models import CLEAN, Model, check_images
from robust_gan.evaluation.probes import Probe, draw, invalid
from robust_gan.evaluation.rescaling import rescale
from robust_gan.evaluation.transfer import Scores
from robust_gan.types import LogitsFn, ThreatModel

TOLERANCE = {"points": 0.5, "black_box_points": 0.2}
"""By how many points robust accuracy may differ between attacks."""

_QUERY = ("square", "spsa")
_STEPS = 40
_PASSES = 5
_TIES = 0.01
"""The share of predictions that may change where no logit changes beyond rounding."""
_SIGNIFICANCE = 0.00135
"""Of the test against guessing: three standard deviations, one-sided."""


class Alarm(NamedTuple):
    """A rule and what it found.

    Attributes:
        name: Of the rule.
        fired: Whether the figures are to be distrusted.
        finding: One sentence, whether it fired or not.
        asked: Whether the rule could be asked at all; the finding says why not.
    """

    name: str
    fired: bool
    finding: str
    asked: bool = True


def check_model(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    threat: ThreatModel,
    *,
    count: int = 128,
    batch_size: int = 500,
    seed: int = 0,
    underivable: str = "",
    robust: Mapping[str, np.ndarray] = MappingProxyType({}),
    predicted: np.ndarray | None = None,
) -> list[Alarm]:
    """Examines a classifier by itself: its outputs, its gradients, and whether attacks on it do what they must.

    The logits of all images are computed once; what costs more is asked of a draw over the classes.

    Args:
        logits_fn: The classifier.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        threat: The threat model.
        count: How many images are drawn.
        batch_size: Images that the classifier is given at once, at most.
        seed: Of the attacks, the orders and the draw.
        underivable: Why the classifier has no derivative, where that is known already.
        robust: By the name of an attack, bool `[N]`: which images were classified right clean and under it in an
            evaluation. `not_converged` quotes these for `pgd40` in place of an attack of its own.
        predicted: int32 `[N]`, the classes that an evaluation took the clean images for.

    Returns:
        The alarms `randomised`, `changed` (with `predicted`), `probabilities`, `near_chance`, `nan_logits`,
        `zero_gradients`, `nan_gradients`, `not_converged` and `does_not_reach_0`. The last four are not asked of a
        classifier without a derivative.

    Raises:
        DataError: The images or labels are none that can be scored (`evaluation.check_images`).
        ValueError: `count` or `batch_size` is below 1, or `robust` or `predicted` is of other images.

    >>> import jax.numpy as jnp
    >>> images = np.random.default_rng(0).uniform(size=(16, 2, 2, 1))
    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 4 - x.sum((1, 2, 3))], -1)
    >>> labels = np.argmax(logits_fn(images), -1)
    >>> [alarm.name for alarm in check_model(logits_fn, images, labels, LinfThreat(0.1)) if alarm.fired]
    []
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1, not {count} and {batch_size}")
    if getattr(threat, "bounds", (0.0, 1.0)) != (0.0, 1.0):
        [model], images, labels, threat = rescale([Model("the model", logits_fn)], images, labels, threat)
        logits_fn = model.logits_fn
    every = Probe(logits_fn, batch_size, images, labels)
    logits = every.logits()
    check_images(images, labels, logits.shape[-1])
    for found in (*robust.values(), *([] if predicted is None else [predicted])):
        if np.shape(found) != labels.shape:
            raise ValueError(
                f"robust and predicted must be [{len(labels)}], a value for each image, not {np.shape(found)}"
            )
    drawn = draw(labels, count, seed)
    probe, some = every.part(drawn), logits[drawn]
    chosen = f"of {len(drawn)} images" + (f" drawn over the classes of {len(images)}" * (len(drawn) < len(images)))
    return [
        _randomised(probe, seed),
        *([] if predicted is None else [_changed(logits, predicted)]),
        _probabilities(logits),
        _near_chance(logits, labels),
        _nan_logits(logits),
        *_of_gradients(probe, some, threat, seed, chosen, underivable, robust),
    ]


def check_scores(
    scores: Scores,
    target: str,
    sequential: Mapping[str, np.ndarray] = MappingProxyType({}),
    *,
    predicted: Mapping[tuple[str, str], np.ndarray] | None = None,
) -> list[Alarm]:
    """Looks for attacks that find what stronger ones miss, and for adversarial images that no class is named for.

    Args:
        scores: Of an evaluation.
        target: Which model.
        sequential: For each attack made in turn, `clean` among them and in their order, bool `[N]`: what it broke. A
            query attack counts as a black-box one where no attack that needs_gradient comes after it.
        predicted: For each (target, attack), `clean` among them, the classes that images are taken for, -1 for none;
            by default those of the scores.

    Returns:
        The alarms `nan_logits_under_attack`, `black_box_beats_white` and `one_step_beats_many`, where their attacks
        were made.

    >>> robust = {("a", "a", "fgsm"): np.array([False, True]), ("a", "a", "pgd10"): np.array([True, True])}
    >>> scores = Scores(("a",), ("a",), ("fgsm", "pgd10"), np.array([[True, True]]), robust)
    >>> [(alarm.name, alarm.finding) for alarm in check_scores(scores, "a")]
    [('one_step_beats_many', 'fgsm breaks 50.0 points of images that pgd10 leave standing')]
    """
    white = {attack: scores.robust[target, target, attack] for attack in scores.attacks
             if (target, target, attack) in scores.robust}  # fmt: skip
    last = max((place for place, attack in enumerate(sequential) if needs_gradient(attack)), default=-1)
    queries = {attack: ~broke for place, (attack, broke) in enumerate(sequential.items())
               if place > last and attack.startswith(_QUERY)}  # fmt: skip
    differentiate = [robust for attack, robust in white.items() if needs_gradient(attack)]
    others = [~broke for attack, broke in sequential.items() if attack not in queries]
    alarms = _nan_under_attack(scores.predicted if predicted is None else predicted, target)
    black = queries | {f"{attack} made on {source}": robust for (name, source, attack), robust in scores.robust.items()
                       if name == target and (source != target or attack.startswith(_QUERY))}  # fmt: skip
    if black and (differentiate or last >= 0):
        remaining = np.all([*differentiate, *others], axis=0)
        worst, lost = max(((what, 100 * float((remaining & ~robust).mean())) for what, robust in black.items()),
                          key=lambda pair: pair[1])  # fmt: skip
        alarms.append(
            Alarm(
                "black_box_beats_white",
                lost > TOLERANCE["black_box_points"],
                f"{worst} breaks {lost:.1f} points of images that the white-box attacks leave standing",
            )
        )
    many = [attack for attack in white if attack.startswith("pgd")]
    if "fgsm" in white and many:
        strongest = np.all([white[attack] for attack in many], axis=0)
        lost = 100 * float((strongest & ~white["fgsm"]).mean())
        finding = f"fgsm breaks {lost:.1f} points of images that {', '.join(many)} leave standing"
        alarms.append(Alarm("one_step_beats_many", _is_more_than_chance(lost, len(strongest)), finding))
    return alarms


def _nan_under_attack(predicted, target):
    rows = {attack: row < 0 for (name, attack), row in predicted.items() if name == target}
    clean = rows.pop(CLEAN, np.False_)
    if not rows:
        return []
    counts = {attack: int((row & ~clean).sum()) for attack, row in rows.items()}
    worst = max(counts, key=counts.__getitem__)
    finding = f"{counts[worst]} of {len(rows[worst])} images have logits that are NaN or infinite under {worst} alone"
    return [
        Alarm(
            "nan_logits_under_attack",
            counts[worst] > 0,
            finding + (": they count as misclassified" if counts[worst] else ""),
        )
    ]


def check_curve(curve: Curve, target: str, count: int) -> list[Alarm]:
    """Looks for a larger ball in which more images stand.

    Args:
        curve: Of `evaluation.trace_curve`.
        target: Which model.
        count: Images scored.

    Returns:
        The alarm `robustness_rises_with_epsilon`.

    >>> check_curve(Curve("pgd10", (0.0, 0.1, 0.2), {"a": (0.9, 0.5, 0.6)}), "a", 1000)[0].fired
    True
    """
    row = np.asarray(curve.robust_accuracy[target], np.float64)
    if not np.isfinite(row).all():
        finding = f"robust accuracy under {curve.attack} is not a number at some radius"
        return [Alarm("robustness_rises_with_epsilon", True, finding)]
    rise = 100 * float(np.max(row[1:] - np.minimum.accumulate(row)[:-1], initial=0.0))
    finding = f"from one radius to a larger one robust accuracy under {curve.attack} rises by up to {rise:.1f} points"
    return [Alarm("robustness_rises_with_epsilon", _is_more_than_chance(rise, count), finding)]


def _randomised(probe, seed):
    """Gives the same images again, in other orders, in batches of other sizes, and alone: nothing may change."""
    everyone = np.arange(len(probe.labels))
    first = probe.uncompiled(everyone, len(everyone))
    few = everyone[: min(16, probe.width)]
    repeats = [
        (everyone, probe.uncompiled(everyone, len(everyone)), first),
        # Chance that is drawn while a function is traced is frozen in what is compiled, until it is compiled again.
        (few, *(probe.recompiled(few) for _ in range(2))),
    ]
    rng, others = np.random.default_rng(seed), []
    for index in range(_PASSES):
        order = rng.permutation(everyone)
        if index == _PASSES - 1:
            order = order[:16]
        size = 1 if index == _PASSES - 1 else len(everyone) // (index + 1)
        others.append((order, probe.uncompiled(order, size), first[order]))
    others.append((few, repeats[1][1], first[few]))
    allowed = [probe.allowance(first, repeated=repeated) for repeated in (False, True)]
    changed, beyond, share, compared = [0, 0], 0, 0.0, 0
    for repeated, passes in enumerate((others, repeats)):
        for order, again, before in passes:
            apart = _apart(again, before)
            beyond += int((apart > allowed[repeated][order]).sum())
            changed[repeated] += int((again.argmax(-1) != before.argmax(-1)).sum())
            share = max(share, float(np.max(apart / np.maximum(_size(before), 1e-30), initial=0.0)))
            compared += len(order)
    # In another batch rounding decides between two logits that are as good as equal, but not in the same batch.
    fired = bool(beyond or changed[True] or changed[False] > _TIES * compared)
    how = f"in {compared} comparisons over other batches and compilations"
    if not fired:
        return Alarm(
            "randomised", False, f"{how} an image's logits differ by rounding alone ({share:.1g} of the largest)"
        )
    return Alarm(
        "randomised",
        True,
        f"{how} {sum(changed)} predictions change, and logits by up to {share:.1g} of the largest, beyond rounding "
        f"{beyond} times: attacks see another classifier than is scored",
    )


def _apart(again, before):
    """Returns by how much the logits of each image differ, `[N]`; the same NaN or infinity is no difference."""
    again, before = np.asarray(again, np.float64), np.asarray(before, np.float64)
    same = (again == before) | (np.isnan(again) & np.isnan(before))
    with np.errstate(invalid="ignore"):
        differences = np.where(same, 0.0, np.abs(again - before))
    return np.where(np.isnan(differences), np.inf, differences).max(-1)


def _size(logits):
    logits = np.abs(np.asarray(logits, np.float64))
    return np.where(np.isfinite(logits), logits, 0.0).max(-1)


def _changed(logits, predicted):
    """Compares the classes of the clean images before the attacks and after them."""
    now = np.where(invalid(logits), -1, np.argmax(logits, axis=-1))
    others = np.flatnonzero(now != predicted)
    fired = len(others) > _TIES * len(predicted)
    finding = f"{len(others)} of {len(predicted)} clean images change their predicted class between attacks and alarms"
    if fired:
        finding += f"{_which(others)}: the classifier is not the one that was attacked"
    return Alarm("changed", fired, finding)


def _probabilities(logits):
    logits = np.asarray(logits, np.float64)[~invalid(logits)]
    within = len(logits) > 0 and logits.min() >= 0 and logits.max() <= 1
    fired = bool(within and np.abs(logits.sum(-1) - 1).max() < 1e-2)
    finding = "outputs lie in [0, 1] and sum to 1: give logits, for after a softmax gradients vanish"
    return Alarm("probabilities", fired, finding if fired else "outputs are no probabilities")


def _near_chance(logits, labels):
    """Tests all images: a classifier that was loaded wrongly is robust to nothing, and no attack says why."""
    import scipy.stats

    predicted = np.where(invalid(logits), -1, np.argmax(logits, axis=-1))
    right, count, chance = int((predicted == labels).sum()), len(labels), 1 / logits.shape[-1]
    # As good as guessing, and worse than a classifier half-way between guessing and all right.
    no_better = scipy.stats.binom.sf(right - 1, count, chance) > _SIGNIFICANCE
    no_good = scipy.stats.binom.cdf(right, count, (1 + chance) / 2) < 0.05
    several = int((np.bincount(labels) >= 5).sum()) > 1
    constant = several and len(np.unique(predicted)) == 1
    fired = bool((no_better and no_good) or constant)
    finding = f"{100 * right / count:.1f} % of {count} clean images are right, where guessing gets {100 * chance:.1f} %"
    if constant:
        finding += f", and all are taken for class {predicted[0]}" if predicted[0] >= 0 else ", and none for any class"
    if fired:
        finding += ": are the weights, the normalisation and the order of the classes right?"
    return Alarm("near_chance", fired, finding)


def _nan_logits(logits):
    bad = np.flatnonzero(invalid(logits))
    finding = f"{len(bad)} of {len(logits)} clean images have logits that are NaN or infinite{_which(bad)}"
    return Alarm("nan_logits", len(bad) > 0, finding + (": they count as misclassified" if len(bad) else ""))


def _of_gradients(probe, logits, threat, seed, chosen, underivable, robust):
    """Asks for gradients, and how far attacks come that follow them."""
    names = "zero_gradients", "nan_gradients", "not_converged", "does_not_reach_0"
    if why := underivable or probe.underivable():
        return [Alarm(name, False, f"not asked: no derivative ({why})", asked=False) for name in names]
    gradients = probe.gradients()
    found, once, twice, wide = _attacks_reach(probe, threat, seed)
    if (made := robust.get(f"pgd{_STEPS}")) is not None:
        once = made[probe.positions]
    attacked = probe.gradients(found)
    return [
        _zero_gradients(probe, logits, gradients, chosen),
        _nan_gradients(gradients, attacked, chosen),
        Alarm(
            "not_converged",
            _is_more_than_chance(100 * float(once.mean() - twice.mean()), len(once)),
            f"{once.sum()} {chosen} stand under pgd{_STEPS}, {twice.sum()} with twice the steps and restarts "
            f"({100 * once.mean():.1f} and {100 * twice.mean():.1f} %)",
        ),
        Alarm(
            "does_not_reach_0",
            bool(wide.any()),
            f"{wide.sum()} {chosen} stand under pgd{_STEPS} with the whole range of pixels allowed"
            f"{_which(probe.positions[wide])}",
        ),
    ]


def _zero_gradients(probe, logits, gradients, chosen):
    zero = (np.asarray(gradients) == 0).reshape(len(gradients), -1).all(-1)
    # Where the probability of the label is 1 in float32, the gradient is 0 or what rounding makes of it.
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        margins = logits - np.take_along_axis(logits, probe.labels[:, None], -1)
    others = np.exp(np.minimum(margins, 30.0))  # Far above the label is far enough, and no overflow.
    saturated = others.sum(-1) - 1 < 2.0**-24
    bad = zero | saturated
    return Alarm(
        "zero_gradients",
        bool(bad.any()),
        f"{bad.sum()} {chosen} have an input gradient of 0 or of rounding errors alone{_which(probe.positions[bad])}"
        ": attacks on the cross-entropy stand still there",
    )


def _nan_gradients(gradients, attacked, chosen):
    clean, moved = (~np.isfinite(np.asarray(found, np.float64)).reshape(len(found), -1).all(-1)
                    for found in (gradients, attacked))  # fmt: skip
    fired = bool(clean.any() or moved.any())
    return Alarm(
        "nan_gradients",
        fired,
        f"{clean.sum()} {chosen} have an input gradient that is NaN or infinite, {moved.sum()} after pgd{_STEPS}"
        + (": attacks go nowhere there, whatever the logits (often jnp.where over a root or a quotient)" * fired),
    )


def _attacks_reach(probe, threat, seed):
    """Returns the images after PGD, and which stand under it, under more of it, and with the whole range allowed."""
    once = probe.attack(threat, seed, num_steps=_STEPS)
    twice = probe.attack(threat, seed, num_steps=2 * _STEPS, num_restarts=2)
    wide = probe.attack(threat_model.whole_range(threat, probe.images.shape[1:]), seed, num_steps=_STEPS)
    return *once, twice[1], wide[1]


def _which(positions):
    """Names images by their positions, the first few of many."""
    if not len(positions):
        return ""
    return f" (numbers {', '.join(map(str, positions[:3]))}{', ...' * (len(positions) > 3)})"


def _is_more_than_chance(points: float, count: int) -> bool:
    """One image of a few is more than half a point, and may go either way."""
    return points > max(TOLERANCE["points"], 101 / count)


def fired(alarms: Sequence[Alarm]) -> list[Alarm]:
    """Returns those that fired.

    >>> fired([Alarm("a", True, ""), Alarm("b", False, "")])[0].name
    'a'
    """
    return [alarm for alarm in alarms if alarm.fired]

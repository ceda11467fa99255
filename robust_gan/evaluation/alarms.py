"""Alarms: rules that fire when a measured robust accuracy is unreliable.

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
from robust_gan.data.array_files import check_images
from robust_gan.data.streaming import StreamedImages
from robust_gan.evaluation.checks import needs_gradient
from robust_gan.evaluation.curve import Curve
from robust_gan.evaluation.models import CLEAN, Model
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
"""The largest share of predictions that may change while no logit changes by more than rounding."""
_SIGNIFICANCE = 0.00135
"""Significance level of the test against guessing: three standard deviations, one-sided."""


class Alarm(NamedTuple):
    """The result of one rule.

    Attributes:
        name: Name of the rule.
        fired: Whether the rule fired: robust accuracy is unreliable.
        finding: One sentence on the measurement, whether the rule fired or not.
        asked: Whether the rule could be checked; if not, the finding gives the reason.
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
    no_derivative: str = "",
    robust: Mapping[str, np.ndarray] = MappingProxyType({}),
    predicted: np.ndarray | None = None,
) -> list[Alarm]:
    """Computes the alarms on a classifier's outputs, its gradients and short attacks.

    The logits of all images are computed once; gradients and attacks use a sample that is balanced over the classes.

    Args:
        logits_fn: The classifier.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        threat: The threat model.
        count: Size of the sample.
        batch_size: Largest number of images in one call of the classifier.
        seed: Seed of the attacks, of the orders and of the sample.
        no_derivative: The reason why the classifier has no derivative, if it is known already.
        robust: Results of an evaluation: for each attack's name bool `[N]`, which images are classified correctly
            both clean and under the attack. `not_converged` uses the one of `pgd40` instead of its own attack.
        predicted: int32 `[N]`, the classes that the evaluation predicted for the clean images.

    Returns:
        The alarms `randomised`, `changed` (with `predicted`), `probabilities`, `near_chance`, `nan_logits`,
        `zero_gradients`, `nan_gradients`, `not_converged` and `does_not_reach_0`. The last four need a derivative.

    Raises:
        DataError: The images or labels are invalid (`evaluation.check_images`).
        ValueError: `count` or `batch_size` is below 1, or `robust` or `predicted` has another length.

    >>> import jax.numpy as jnp
    >>> images = np.random.default_rng(0).uniform(size=(16, 2, 2, 1))
    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 4 - x.sum((1, 2, 3))], -1)
    >>> labels = np.argmax(logits_fn(images), -1)
    >>> [alarm.name for alarm in check_model(logits_fn, images, labels, LinfThreat(0.1)) if alarm.fired]
    []
    """
    images, labels = images if isinstance(images, StreamedImages) else np.asarray(images), np.asarray(labels)
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch_size must be at least 1, not {count} and {batch_size}")
    if getattr(threat, "bounds", (0.0, 1.0)) != (0.0, 1.0):
        [model], images, labels, threat = rescale([Model("the model", logits_fn)], images, labels, threat)
        logits_fn = model.logits_fn
    every = Probe(logits_fn, batch_size, images, labels)
    logits = every.logits()
    check_images(images, labels, logits.shape[-1])
    for shape in map(np.shape, (*robust.values(), labels if predicted is None else predicted)):
        if shape != labels.shape:
            raise ValueError(f"robust and predicted must be [{len(labels)}], a value for each image, not {shape}")
    drawn = draw(labels, count, seed)
    probe, some = every.part(drawn), logits[drawn]
    chosen = f"of {len(drawn)} images" + (f" drawn over the classes of {len(images)}" * (len(drawn) < len(images)))
    return [
        _randomised(probe, seed),
        *([] if predicted is None else [_changed(logits, predicted)]),
        _probabilities(logits),
        _near_chance(logits, labels),
        _nan_logits(logits),
        *_check_gradients(probe, some, threat, seed, chosen, no_derivative, robust),
    ]


def check_scores(
    scores: Scores,
    target: str,
    sequential: Mapping[str, np.ndarray] = MappingProxyType({}),
    *,
    predicted: Mapping[tuple[str, str], np.ndarray] | None = None,
) -> list[Alarm]:
    """Computes the alarms that compare attacks: a weaker attack that breaks more, and invalid logits under attack.

    Args:
        scores: Scores of an evaluation.
        target: Name of the model.
        sequential: For each attack of a sequential evaluation, in order and with `clean`, bool `[N]`: the images that
            it broke. A query attack counts as black-box if no attack after it uses the gradient.
        predicted: For each (target, attack), with `clean`, the predicted classes, -1 for invalid logits; by default
            those of the scores.

    Returns:
        The alarms `nan_logits_under_attack`, `black_box_beats_white` and `one_step_beats_many`, each if its attacks
        were made.

    >>> robust = {("a", "a", "fgsm"): np.array([False, True]), ("a", "a", "pgd10"): np.array([True, True])}
    >>> scores = Scores(("a",), ("a",), ("fgsm", "pgd10"), np.array([[True, True]]), robust)
    >>> [(alarm.name, alarm.finding) for alarm in check_scores(scores, "a")]
    [('one_step_beats_many', 'fgsm breaks 50.0 points of images that are robust under pgd10')]
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
        diverse = [robust for attack, robust in white.items() if _is_diverse(attack)]
        plain = [robust for attack, robust in white.items() if needs_gradient(attack) and not _is_diverse(attack)]
        alarms.append(_black_box_beats_white(black, [*plain, *others], diverse))
    many = [attack for attack in white if attack.startswith("pgd")]
    if "fgsm" in white and many:
        strongest = np.all([white[attack] for attack in many], axis=0)
        lost = 100 * float((strongest & ~white["fgsm"]).mean())
        finding = f"fgsm breaks {lost:.1f} points of images that are robust under {', '.join(many)}"
        alarms.append(Alarm("one_step_beats_many", _is_more_than_chance(lost, len(strongest)), finding))
    return alarms


def _is_diverse(attack):
    return attack.endswith("_odi") or attack.startswith("mt_")


def _black_box_beats_white(black, plain, diverse):
    """Compares black-box attacks with plain white-box ones, and with those of diverse starts or targets."""

    def lost_most(white):
        remaining = np.all(white, axis=0)
        shares = {what: 100 * float((remaining & ~robust).mean()) for what, robust in black.items()}
        worst = max(shares, key=shares.__getitem__)
        return worst, shares[worst]

    worst, lost = lost_most([*plain, *diverse])
    fired = lost > TOLERANCE["black_box_points"]
    finding = f"{worst} breaks {lost:.1f} points of images that are robust under the white-box attacks"
    if diverse and plain:
        missed, more = lost_most(plain)
        if fired:
            finding += ", those with diverse starts or targets among them: gradients are masked"
        elif more > TOLERANCE["black_box_points"]:
            finding += (
                f"; {missed} breaks {more:.1f} points of images that are robust under those without diverse starts or "
                "targets: these were weak"
            )
    return Alarm("black_box_beats_white", fired, finding)


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
    """Computes the alarm on a robust accuracy that rises with the radius.

    Args:
        curve: The result of `evaluation.trace_curve`.
        target: Name of the model.
        count: Number of images.

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
    """Compares logits of the same images in other orders, in batches of other sizes, and alone."""
    everyone = np.arange(len(probe.labels))
    first = probe.uncompiled(everyone, len(everyone))
    few = everyone[: min(16, probe.width)]
    repeats = [
        (everyone, probe.uncompiled(everyone, len(everyone)), first),
        # Random numbers drawn during tracing are constants of the compiled code, until it is compiled again.
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
    # In another batch, rounding may decide between two nearly equal logits; in the same batch it must not.
    fired = bool(beyond or changed[True] or changed[False] > _TIES * compared)
    how = f"in {compared} comparisons over other batches and compilations"
    if not fired:
        return Alarm(
            "randomised", False, f"{how} an image's logits differ only by rounding ({share:.1g} of the largest)"
        )
    return Alarm(
        "randomised",
        True,
        f"{how} {sum(changed)} predictions change, and logits by up to {share:.1g} of the largest, more than rounding "
        f"in {beyond} of them: the classifier under attack is not the one that is scored",
    )


def _apart(again, before):
    """Returns the largest difference of each image's logits, `[N]`; 0 where both are the same NaN or infinity."""
    again, before = np.asarray(again, np.float64), np.asarray(before, np.float64)
    same = (again == before) | (np.isnan(again) & np.isnan(before))
    with np.errstate(invalid="ignore"):
        differences = np.where(same, 0.0, np.abs(again - before))
    return np.where(np.isnan(differences), np.inf, differences).max(-1)


def _size(logits):
    logits = np.abs(np.asarray(logits, np.float64))
    return np.where(np.isfinite(logits), logits, 0.0).max(-1)


def _changed(logits, predicted):
    """Compares the predictions on clean images before and after the attacks."""
    now = np.where(invalid(logits), -1, np.argmax(logits, axis=-1))
    others = np.flatnonzero(now != predicted)
    fired = len(others) > _TIES * len(predicted)
    finding = f"{len(others)} of {len(predicted)} clean images change their predicted class after the attacks"
    if fired:
        finding += f"{_which(others)}: the classifier changed since it was attacked"
    return Alarm("changed", fired, finding)


def _probabilities(logits):
    logits = np.asarray(logits, np.float64)[~invalid(logits)]
    within = len(logits) > 0 and logits.min() >= 0 and logits.max() <= 1
    fired = bool(within and np.abs(logits.sum(-1) - 1).max() < 1e-2)
    finding = "outputs are in [0, 1] and sum to 1: return logits, since gradients vanish after a softmax"
    return Alarm("probabilities", fired, finding if fired else "outputs are not probabilities")


def _near_chance(logits, labels):
    """Tests whether the accuracy on all images is better than guessing: often a model was loaded wrongly."""
    import scipy.stats

    predicted = np.where(invalid(logits), -1, np.argmax(logits, axis=-1))
    right, count, chance = int((predicted == labels).sum()), len(labels), 1 / logits.shape[-1]
    # No better than guessing, and worse than a classifier half-way between guessing and perfect.
    no_better = scipy.stats.binom.sf(right - 1, count, chance) > _SIGNIFICANCE
    no_good = scipy.stats.binom.cdf(right, count, (1 + chance) / 2) < 0.05
    several = int((np.bincount(labels) >= 5).sum()) > 1
    constant = several and len(np.unique(predicted)) == 1
    fired = bool((no_better and no_good) or constant)
    finding = f"{100 * right / count:.1f} % of {count} clean images are correct; guessing gets {100 * chance:.1f} %"
    if constant:
        finding += f", and every prediction is {predicted[0]}" if predicted[0] >= 0 else ", and no logits are valid"
    if fired:
        finding += ": check the weights, the normalisation and the order of the classes"
    return Alarm("near_chance", fired, finding)


def _nan_logits(logits):
    bad = np.flatnonzero(invalid(logits))
    finding = f"{len(bad)} of {len(logits)} clean images have logits that are NaN or infinite{_which(bad)}"
    return Alarm("nan_logits", len(bad) > 0, finding + (": they count as misclassified" if len(bad) else ""))


def _check_gradients(probe, logits, threat, seed, chosen, no_derivative, robust):
    """Computes the alarms on gradients and on short attacks that use them."""
    names = "zero_gradients", "nan_gradients", "not_converged", "does_not_reach_0"
    if why := no_derivative or probe.find_missing_derivative():
        return [Alarm(name, False, f"not checked: no derivative ({why})", asked=False) for name in names]
    gradients = probe.gradients()
    found, once, rising, twice, wide = _run_attacks(probe, threat, seed)
    of_all = ""
    if (made := robust.get(f"pgd{_STEPS}")) is not None:
        once = made[probe.positions]
        if len(made) > len(once):
            of_all = f"; of all {len(made)} images {made.sum()} ({100 * made.mean():.1f} %) are under pgd{_STEPS}"
    attacked = probe.gradients(found)
    return [
        _zero_gradients(probe, logits, gradients, chosen),
        _nan_gradients(gradients, attacked, chosen),
        Alarm(
            "not_converged",
            _is_more_than_chance(100 * float(once.mean() - twice.mean()), len(once)),
            f"{once.sum()} {chosen} are robust under pgd{_STEPS}, {twice.sum()} with twice the steps and restarts "
            f"({100 * once.mean():.1f} and {100 * twice.mean():.1f} %){of_all}; the losses of {rising.sum()} "
            f"{chosen} still rose by more than 1 % in the last quarter of pgd{_STEPS}",
        ),
        Alarm(
            "does_not_reach_0",
            bool(wide.any()),
            f"{wide.sum()} {chosen} are robust under pgd{_STEPS} with the whole range of pixels allowed"
            f"{_which(probe.positions[wide])}",
        ),
    ]


def _zero_gradients(probe, logits, gradients, chosen):
    zero = (np.asarray(gradients) == 0).reshape(len(gradients), -1).all(-1)
    # If the probability of the label rounds to 1 in float32, the gradient is 0 or a rounding error.
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        margins = logits - np.take_along_axis(logits, probe.labels[:, None], -1)
    others = np.exp(np.minimum(margins, 30.0))  # Avoids overflow.
    saturated = others.sum(-1) - 1 < 2.0**-24
    bad = zero | saturated
    return Alarm(
        "zero_gradients",
        bool(bad.any()),
        f"{bad.sum()} {chosen} have an input gradient that is 0 or a rounding error{_which(probe.positions[bad])}"
        ": attacks on the cross-entropy make no progress there",
    )


def _nan_gradients(gradients, attacked, chosen):
    clean, moved = (~np.isfinite(np.asarray(found, np.float64)).reshape(len(found), -1).all(-1)
                    for found in (gradients, attacked))  # fmt: skip
    fired = bool(clean.any() or moved.any())
    return Alarm(
        "nan_gradients",
        fired,
        f"{clean.sum()} {chosen} have an input gradient that is NaN or infinite, {moved.sum()} after pgd{_STEPS}"
        + (": attacks make no progress there (a common cause is jnp.where over a root or a quotient)" * fired),
    )


def _run_attacks(probe, threat, seed):
    """Returns the images after PGD, which are robust, which of these rise, and which are robust to longer and wider."""
    once = probe.attack(threat, seed, num_steps=_STEPS)
    twice = probe.attack(threat, seed, num_steps=2 * _STEPS, num_restarts=2)
    wide = probe.attack(threat_model.whole_range(threat, probe.images.shape[1:]), seed, num_steps=_STEPS)
    return *once, twice[1], wide[1]


def _which(positions):
    """Returns the positions of the first images in parentheses."""
    if not len(positions):
        return ""
    return f" (numbers {', '.join(map(str, positions[:3]))}{', ...' * (len(positions) > 3)})"


def _is_more_than_chance(points: float, count: int) -> bool:
    """Tells whether a difference is above the tolerance and more than one image."""
    return points > max(TOLERANCE["points"], 101 / count)


def fired(alarms: Sequence[Alarm]) -> list[Alarm]:
    """Returns the alarms that fired.

    >>> fired([Alarm("a", True, ""), Alarm("b", False, "")])[0].name
    'a'
    """
    return [alarm for alarm in alarms if alarm.fired]

"""Alarms: signs that a figure of robustness means less than it says, each a rule that can fire or not.

References:
    Carlini et al., "On Evaluating Adversarial Robustness", 2019, https://arxiv.org/abs/1902.06705
    Pintor et al., "Indicators of Attack Failure: Debugging and Improving Optimization of Adversarial Examples",
        NeurIPS 2022, https://arxiv.org/abs/2106.09947
    Croce and Hein, AutoAttack's flags, https://github.com/fra31/auto-attack/blob/master/flags_doc.md
"""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import random
from robust_gan.attacks import input_gradient, pgd
from robust_gan.evaluation.curve import Curve
from robust_gan.evaluation.matrix import Scores
from robust_gan.evaluation.models import GENERATOR, to_unit
from robust_gan.evaluation.running import as_pytree
from robust_gan.losses import is_correct
from robust_gan.types import LogitsFn, ThreatModel

TOLERANCE = {"logits": 1e-4, "points": 0.5, "black_box_points": 0.2}
"""By how much normalised logits may differ between passes, and robust accuracy (in points) between attacks."""

_QUERY = ("square", "spsa")
_STEPS = 40
_PASSES = 5
_DEVIATIONS = 3
"""Standard deviations of the share that guessing gets."""


class Alarm(NamedTuple):
    """A rule and what it found.

    Attributes:
        name: Of the rule.
        fired: Whether the figures are to be distrusted.
        finding: One sentence, whether it fired or not.
    """

    name: str
    fired: bool
    finding: str


def of_model(
    logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, threat: ThreatModel, *, count: int = 128, seed: int = 0
) -> list[Alarm]:
    """Examines a classifier by itself: its outputs, its gradients, and whether attacks on it do what they must.

    Args:
        logits_fn: The classifier.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        threat: The threat model.
        count: Only so many of the images, the first.
        seed: Of the attacks and the orders.

    Returns:
        The alarms `randomised`, `probabilities`, `near_chance`, `zero_gradients`, `not_converged` and
        `does_not_reach_0`.

    >>> images = np.random.default_rng(0).uniform(size=(16, 2, 2, 1))
    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 4 - x.sum((1, 2, 3))], -1)
    >>> labels = np.argmax(logits_fn(images), -1)
    >>> [alarm.name for alarm in of_model(logits_fn, images, labels, LinfThreat(0.1)) if alarm.fired]
    []
    """
    logits_fn = as_pytree(logits_fn)
    x, y = jnp.asarray(to_unit(images[:count])), jnp.asarray(labels[:count], jnp.int32)
    return [
        _randomised(logits_fn, x, seed),
        _probabilities(logits_fn, x),
        _near_chance(logits_fn, x, y),
        _zero_gradients(logits_fn, x, y),
        *_attacks_reach(logits_fn, x, y, threat, seed),
    ]


def of_scores(scores: Scores, target: str, in_turn: Mapping[str, np.ndarray] = MappingProxyType({})) -> list[Alarm]:
    """Looks for attacks that find what stronger ones miss.

    Args:
        scores: Of an evaluation.
        target: Which model.
        in_turn: For each attack made in turn, `clean` among them and in their order, bool `[N]`: what it broke. A query
            attack counts as a black-box one where no attack that differentiates comes after it: what it broke, no such
            attack has seen.

    Returns:
        The alarms `black_box_beats_white` and `one_step_beats_many`, where their attacks were made.

    >>> robust = {("a", "a", "fgsm"): np.array([False, True]), ("a", "a", "pgd10"): np.array([True, True])}
    >>> scores = Scores(("a",), ("a",), ("fgsm", "pgd10"), np.array([[True, True]]), robust)
    >>> [(alarm.name, alarm.finding) for alarm in of_scores(scores, "a")]
    [('one_step_beats_many', 'fgsm breaks 50.0 points of images that pgd10 leave standing')]
    """
    white = {attack: scores.robust[target, target, attack] for attack in scores.attacks
             if (target, target, attack) in scores.robust}  # fmt: skip
    last = max((place for place, attack in enumerate(in_turn) if _differentiates(attack)), default=-1)
    queries = {attack: ~broke for place, (attack, broke) in enumerate(in_turn.items())
               if place > last and attack.startswith(_QUERY)}  # fmt: skip
    differentiate = [kept for attack, kept in white.items() if _differentiates(attack)]
    others = [~broke for attack, broke in in_turn.items() if attack not in queries]
    alarms = []
    black = queries | {f"{attack} made on {maker}": kept for (name, maker, attack), kept in scores.robust.items()
                       if name == target and (maker != target or attack.startswith(_QUERY))}  # fmt: skip
    if black and (differentiate or last >= 0):
        standing = np.all([*differentiate, *others], axis=0)
        worst, lost = max(((what, 100 * float((standing & ~kept).mean())) for what, kept in black.items()),
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


def _differentiates(attack):
    return attack not in ("clean", GENERATOR, "uniform_noise") and not attack.startswith(_QUERY)


def of_curve(curve: Curve, target: str, count: int) -> list[Alarm]:
    """Looks for a larger ball in which more images stand.

    Args:
        curve: Of `evaluation.trace_curve`.
        target: Which model.
        count: Images scored.

    Returns:
        The alarm `robustness_rises_with_epsilon`.

    >>> of_curve(Curve("pgd10", (0.0, 0.1, 0.2), {"a": (0.9, 0.5, 0.6)}), "a", 1000)[0].fired
    True
    """
    row = np.asarray(curve.robust_accuracy[target])
    rise = 100 * float(np.max(row[1:] - np.minimum.accumulate(row)[:-1], initial=0.0))
    finding = f"from one radius to a larger one robust accuracy under {curve.attack} rises by up to {rise:.1f} points"
    return [Alarm("robustness_rises_with_epsilon", _is_more_than_chance(rise, count), finding)]


def _randomised(logits_fn, images, seed):
    """The same images in other orders, in batches of other sizes, and alone: nothing may change."""
    first = _normalised(logits_fn(images))
    changed, largest = 0, 0.0
    rng = np.random.default_rng(seed)
    for index in range(_PASSES):
        order = rng.permutation(len(images))
        if index == _PASSES - 1:
            order = order[:16]
            again = np.concatenate([_normalised(logits_fn(images[i : i + 1])) for i in order])
        else:
            size = max(1, len(images) // (index + 1))
            parts = [order[start : start + size] for start in range(0, len(order), size)]
            again = np.concatenate([_normalised(logits_fn(images[part])) for part in parts])
        changed += int((again.argmax(-1) != first[order].argmax(-1)).sum())
        largest = max(largest, float(np.abs(again - first[order]).max()))
    return Alarm(
        "randomised",
        bool(changed or not largest <= TOLERANCE["logits"]),
        f"over {_PASSES} passes in other batches {changed} predictions change and normalised logits by up to "
        f"{largest:.1g}: attacks see another classifier than is scored"
        if changed or not largest <= TOLERANCE["logits"]
        else f"an image's logits do not depend on its batch (normalised, to {largest:.1g})",
    )


def _normalised(logits):
    """Logits less their mean, by their largest: a pass through another batch size rounds them in proportion."""
    logits = np.asarray(logits, np.float64)
    centred = logits - logits.mean(-1, keepdims=True)
    size = np.abs(centred).max(-1, keepdims=True)
    return centred / np.where(size > 0, size, 1.0)


def _probabilities(logits_fn, images):
    logits = np.asarray(logits_fn(images), np.float64)
    fired = bool(logits.min() >= 0 and logits.max() <= 1 and np.abs(logits.sum(-1) - 1).max() < 1e-3)
    finding = "outputs lie in [0, 1] and sum to 1: give logits, for after a softmax gradients vanish"
    return Alarm("probabilities", fired, finding if fired else "outputs are no probabilities")


def _near_chance(logits_fn, images, labels):
    """What was loaded wrongly is robust to nothing, and no attack will say why."""
    logits = np.asarray(logits_fn(images))
    right, count, num_classes = np.mean(logits.argmax(-1) == np.asarray(labels)), len(images), logits.shape[-1]
    chance = 1 / num_classes
    fired = bool(right <= chance + _DEVIATIONS * (chance * (1 - chance) / count) ** 0.5)
    return Alarm(
        "near_chance",
        fired,
        f"{100 * right:.1f} % of {count} clean images are right, where guessing gets {100 * chance:.1f} %"
        + (": are the weights, the normalisation and the order of the classes right?" if fired else ""),
    )


def _zero_gradients(logits_fn, images, labels):
    gradient = np.asarray(_gradient(logits_fn, images, labels))
    zero = np.abs(gradient).reshape(len(images), -1).max(-1) == 0
    # Where the probability of the label is 1 in float32, the gradient is 0 or what rounding makes of it.
    logits = np.asarray(logits_fn(images), np.float64)
    margins = logits - np.take_along_axis(logits, np.asarray(labels)[:, None], -1)
    others = np.exp(np.minimum(margins, 30.0))  # Far above the label is far enough, and no overflow.
    saturated = others.sum(-1) - 1 < 2.0**-24
    count = int((zero | saturated).sum())
    return Alarm(
        "zero_gradients",
        count > 0,
        f"{count} of {len(images)} images have an input gradient of 0 or of rounding errors alone: attacks on the "
        "cross-entropy stand still there",
    )


def _attacks_reach(logits_fn, images, labels, threat, seed):
    keys = random.per_image_keys(jax.random.key(seed), len(images))

    def robust(threat, num_steps, num_restarts=1):
        right = _survives(logits_fn, keys, images, labels, threat, num_steps=num_steps, num_restarts=num_restarts)
        return 100 * float(np.mean(right))

    once, twice = robust(threat, _STEPS), robust(threat, 2 * _STEPS, 2)
    wide = robust(type(threat)(1.0 if threat.norm == "linf" else 10.0, bounds=threat.bounds), _STEPS)
    few = f"on {len(images)} images"
    return [
        Alarm(
            "not_converged",
            _is_more_than_chance(once - twice, len(images)),
            f"twice the steps and restarts of pgd{_STEPS} move robust accuracy from {once:.1f} to {twice:.1f} % {few}",
        ),
        Alarm(
            "does_not_reach_0",
            wide > 0,
            f"with the whole range of pixels allowed, robust accuracy under pgd{_STEPS} is {wide:.1f} % {few}",
        ),
    ]


# The classifier is an argument, so that models of one architecture share what is compiled.
_gradient = jax.jit(input_gradient)


@functools.partial(jax.jit, static_argnames=("num_steps", "num_restarts"))
def _survives(logits_fn, keys, images, labels, threat, *, num_steps, num_restarts):
    attacked = pgd(logits_fn, keys, images, labels, threat, num_steps=num_steps, num_restarts=num_restarts)
    return is_correct(logits_fn(attacked), labels) & is_correct(logits_fn(images), labels)


def _is_more_than_chance(points: float, count: int) -> bool:
    """One image of a few is more than half a point, and may go either way."""
    return points > max(TOLERANCE["points"], 101 / count)


def fired(alarms: Sequence[Alarm]) -> list[Alarm]:
    """Returns those that fired.

    >>> fired([Alarm("a", True, ""), Alarm("b", False, "")])[0].name
    'a'
    """
    return [alarm for alarm in alarms if alarm.fired]

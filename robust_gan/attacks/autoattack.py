"""AutoAttack: four attacks of different kinds in turn, each on the images that still stand, with nothing to tune."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan import prng
from robust_gan.attacks._best import where
from robust_gan.attacks._compaction import update_remaining
from robust_gan.attacks._eot import apply_logits
from robust_gan.attacks.apgd import apgd
from robust_gan.attacks.checking import check_batch, checked_logits
from robust_gan.attacks.registry import by_name, classes_needed
from robust_gan.errors import UserError
from robust_gan.losses import cross_entropy, dlr, is_correct
from robust_gan.types import Attack, LogitsFn, ThreatModel

VERSIONS = {
    "standard": ("apgd_ce", "apgd_t", "fab_t", "square"),
    "plus": ("apgd_ce100x5", "apgd_dlr100x5", "fab100x5", "square", "apgd_t", "fab_t"),
    "rand": ("apgd_ce", "apgd_dlr"),
}
"""The attacks of each version in their order; those of `rand` take 20 samples of a randomised classifier's gradient."""

_SAMPLES = 20
# Cached by being here: the same component is the same object, so that compiled functions are found again.
_RAND = {
    "apgd_ce": functools.partial(apgd, loss_fn=cross_entropy, num_samples=_SAMPLES),
    "apgd_dlr": functools.partial(apgd, loss_fn=dlr, num_samples=_SAMPLES),
}


class Outcome(NamedTuple):
    """What attacks in turn achieved.

    Attributes:
        images: `[B, H, W, C]`: where an attack broke an image, its adversarial image; otherwise the clean one.
        standing: bool `[1 + attacks, B]`: which images were right clean, and which still stood after each attack; the
            mean of a row is the robust accuracy after that attack, of the last row that of all.
    """

    images: jax.Array
    standing: jax.Array


def autoattack(version: str | Sequence[str] = "standard") -> tuple[tuple[str, Attack], ...]:
    """Returns the attacks of a version of AutoAttack in their order, with their names.

    Args:
        version: `standard`: APGD-CE, targeted APGD, targeted FAB and Square, one run each. `plus`: five restarts of
            APGD-CE, APGD-DLR and FAB beside those. `rand`, for randomised classifiers: APGD-CE and APGD-DLR with
            gradients in expectation. Or names of attacks, as `by_name` knows them.

    Returns:
        Pairs (name, attack).

    Raises:
        UserError: The version or a name is unknown, or there is no name.

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", ICML 2020, section 6, https://arxiv.org/abs/2003.01690

    >>> [name for name, _ in autoattack()]
    ['apgd_ce', 'apgd_t', 'fab_t', 'square']
    >>> [name for name, _ in autoattack(["apgd_ce50", "square1000"])]
    ['apgd_ce50', 'square1000']
    """
    if isinstance(version, str) and version not in VERSIONS:
        raise UserError(f"unknown version of AutoAttack {version!r}: the versions are {', '.join(VERSIONS)}")
    names = VERSIONS[version] if isinstance(version, str) else tuple(version)
    if not names:
        raise UserError("AutoAttack needs at least one attack")
    return tuple((name, _RAND[name] if version == "rand" else by_name(name)) for name in names)


def run_sequential(
    components: Sequence[tuple[str, Attack]],
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
) -> Outcome:
    """Attacks with one after the other, each only what still stands; an image that is broken keeps its point.

    Pure and jit-able: it saves work by attacking chunks of images, as many as still stand.

    Args:
        components: Pairs (name, attack), as `autoattack` returns them.
        logits_fn: The classifier; one that is `attacks.randomised` is asked once whether an attack broke an image.
        key: One key, or one per image.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`.
        threat: The threat model.

    Returns:
        The images, and which stood after each attack.

    Raises:
        UserError: Too few classes for one of the attacks: 3 are needed for the DLR loss, 4 for the targeted one; or an
            argument cannot be meant, see `checking`.

    Guarantees:
        `test_a_broken_image_keeps_its_point`, `test_attacks_in_turn_are_the_worst_case_of_each_alone`.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1) - jnp.array([1.0, 0.0])
    >>> x = jnp.array([0.7, 0.9]).reshape(2, 1, 1, 1)
    >>> outcome = run_sequential(autoattack(["fgsm", "square10"]), logits_fn, jax.random.key(0), x, jnp.array([0, 0]),
    ...                       LinfThreat(0.25))
    >>> outcome.standing.tolist()
    [[True, True], [False, True], [False, True]]
    """
    images, labels = check_batch(images, labels, threat)
    logits_fn = checked_logits(logits_fn, labels)
    keys = prng.per_image_keys(key, images.shape[0])
    clean = apply_logits(logits_fn, images, keys)
    _check_classes(components, clean.shape[-1])
    state = images, is_correct(clean, labels)
    standing = [state[1]]
    for index, (_, attack) in enumerate(components):

        def update(_, inputs, attack=attack, index=index):
            images, labels, keys = inputs
            keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
            attack_keys, judge_keys = prng.split_per_image(keys, 2)
            adversarial = attack(logits_fn, attack_keys, images, labels, threat)
            holds = is_correct(apply_logits(logits_fn, adversarial, judge_keys), labels)
            return where(holds, images, adversarial), holds

        state = update_remaining(update, state[1], state, (images, labels, keys))
        standing.append(state[1])
    return Outcome(state[0], jnp.stack(standing))


def _check_classes(components, num_classes):
    """Says before anything runs what a later attack could not do."""
    for name, _ in components:
        if num_classes < (needed := classes_needed(name)):
            raise UserError(f"{name} needs at least {needed} classes, but the classifier has {num_classes}")

"""AutoAttack: an ensemble of four attacks without hyperparameters, run sequentially on the remaining images."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan import prng
from robust_gan.attacks._best import where
from robust_gan.attacks._checks import check_batch, checked_logits
from robust_gan.attacks._compaction import update_remaining
from robust_gan.attacks._eot import apply_logits
from robust_gan.attacks.apgd import apgd
from robust_gan.attacks.registry import by_name, classes_needed
from robust_gan.errors import UserError
from robust_gan.losses import cross_entropy, dlr, is_correct
from robust_gan.types import Attack, LogitsFn, ThreatModel

VERSIONS = {
    "standard": ("apgd_ce", "apgd_t", "fab_t", "square"),
    "plus": ("apgd_ce100x5", "apgd_dlr100x5", "fab100x5", "square", "apgd_t", "fab_t"),
    "rand": ("apgd_ce", "apgd_dlr"),
    "few_classes": ("apgd_ce", "margin_pgd100x5", "fab_t", "square"),
}
"""The attacks of each version in their order; those of `rand` take 20 samples of a randomised classifier's gradient.

`few_classes` is `standard` for 2 or 3 classes, where the targeted DLR loss is not defined: margin PGD is run instead.
"""

_SAMPLES = 20
# The same component is the same object, so that compiled functions are reused.
_RAND = {
    "apgd_ce": functools.partial(apgd, loss_fn=cross_entropy, num_samples=_SAMPLES),
    "apgd_dlr": functools.partial(apgd, loss_fn=dlr, num_samples=_SAMPLES),
}


class SequentialResult(NamedTuple):
    """Result of a sequential attack.

    Attributes:
        images: `[B, H, W, C]`: the first misclassified adversarial image, otherwise the clean one.
        remaining: bool `[1 + attacks, B]`: which images are classified correctly, clean and after each attack; the mean
            of a row is the robust accuracy after that attack.
    """

    images: jax.Array
    remaining: jax.Array


def autoattack(version: str | Sequence[str] = "standard") -> tuple[tuple[str, Attack], ...]:
    """Returns the attacks of a version of AutoAttack in their order, with their names.

    Args:
        version: `standard`: APGD-CE, targeted APGD, targeted FAB and Square, one run each. `plus`: five restarts of
            APGD-CE, APGD-DLR and FAB beside those. `rand`, for randomised classifiers: APGD-CE and APGD-DLR with
            gradients in expectation. `few_classes`: `standard` for 2 or 3 classes, with margin PGD in place of targeted
            APGD. Or names of attacks, as `by_name` knows them.

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
) -> SequentialResult:
    """Runs attacks one after the other, each on the remaining images, which none before it has fooled.

    Pure and jit-able; the cost of an attack is proportional to the number of remaining images, in chunks.

    Args:
        components: Pairs (name, attack), as `autoattack` returns them.
        logits_fn: This and the four arguments after it as in `types.Attack`. A classifier that is
            `attacks.randomised` classifies each adversarial image once.

    Returns:
        The adversarial images `[B, H, W, C]`, and which images remain after each attack, `[attacks + 1, B]`.

    Raises:
        UserError: There are too few classes for one of the attacks (the DLR loss needs 3, the targeted one 4), or
            another argument is invalid, see `_checks`.

    Guarantees:
        `test_a_misclassified_image_keeps_its_point`, `test_sequential_attacks_are_the_worst_case_of_each_alone`.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1) - jnp.array([1.0, 0.0])
    >>> x = jnp.array([0.7, 0.9]).reshape(2, 1, 1, 1)
    >>> result = run_sequential(autoattack(["fgsm", "square10"]), logits_fn, jax.random.key(0), x, jnp.array([0, 0]),
    ...                         LinfThreat(0.25))
    >>> result.remaining.tolist()
    [[True, True], [False, True], [False, True]]
    """
    images, labels = check_batch(images, labels, threat)
    logits_fn = checked_logits(logits_fn, labels)
    keys = prng.per_image_keys(key, images.shape[0])
    clean = apply_logits(logits_fn, images, keys)
    _check_classes(components, clean.shape[-1])
    state = images, is_correct(clean, labels)
    remaining = [state[1]]
    for index, (_, attack) in enumerate(components):

        def update(_, inputs, attack=attack, index=index):
            images, labels, keys = inputs
            keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
            attack_keys, logits_keys = prng.split_per_image(keys, 2)
            adversarial = attack(logits_fn, attack_keys, images, labels, threat)
            correct = is_correct(apply_logits(logits_fn, adversarial, logits_keys), labels)
            return where(correct, images, adversarial), correct

        state = update_remaining(update, state[1], state, (images, labels, keys))
        remaining.append(state[1])
    return SequentialResult(state[0], jnp.stack(remaining))


def _check_classes(components, num_classes):
    """Refuses, before anything runs, attacks that need more classes."""
    for name, _ in components:
        if num_classes < (needed := classes_needed(name)):
            raise UserError(
                f"{name} needs at least {needed} classes, but the classifier has {num_classes}: take "
                "autoattack('few_classes')"
            )

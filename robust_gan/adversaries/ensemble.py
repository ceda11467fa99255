"""Ensemble adversarial training: attacks on frozen, trained classifiers, as in the released code or in Tramer et al."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan import attacks, prng
from robust_gan.losses import cross_entropy
from robust_gan.types import Adversary, LogitsFn, PyTree, ThreatModel


class EnsembleState(NamedTuple):
    """State of the ensemble.

    Attributes:
        sources: The arrays of each frozen classifier; constant.
        key: For the draw of a source for each batch; the same on all devices.
        count: int32 `[]`, batches so far.
    """

    sources: tuple[PyTree, ...]
    key: jax.Array
    count: jax.Array  # type: ignore[assignment]  # Hides an unused method of tuple.


def ensemble(
    sources: Sequence[LogitsFn],
    threat: ThreatModel,
    *,
    scheme: str = "paper",
    num_steps: int = 10,
    keep_best: bool = True,
    clean_share: float = 0.0,
) -> Adversary:
    """Returns the adversary that attacks frozen classifiers, so that the attack does not weaken during training.

    Args:
        sources: Trained classifiers; the arrays of a `jax.tree_util.Partial` become the adversary's state.
        threat: The threat model.
        scheme: `paper`: on the first source, for each image a random one of FGSM on the predicted label, PGD, and a
            step towards the least likely class. `tramer`: for each batch FGSM on one of the sources or the classifier.
        num_steps: Steps of PGD in `paper`.
        keep_best: PGD returns its best iterate, otherwise its last.
        clean_share: Share of the images that stay clean, drawn image by image; 1/4 with `clean_weight` 0 and
            `adversarial_weight` 1 is the released code's mixed batch.

    Returns:
        The adversary; its state is an `EnsembleState`.

    Raises:
        ValueError: There is no source.

    Guarantees:
        `test_sources_stay_frozen_bit_for_bit`, `test_the_released_ensemble_learns_from_the_mean_over_one_mixed_batch`.

    References:
        Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019, experiments.
        Tramer et al., "Ensemble Adversarial Training: Attacks and Defenses", ICLR 2018, section 3.4.

    >>> from robust_gan import LinfThreat
    >>> int(ensemble([lambda images: images.sum((1, 2))], LinfThreat(0.1)).init(jax.random.key(0), None).count)
    0
    """
    if not sources:
        raise ValueError("ensemble needs at least one source")
    frozen = [source if isinstance(source, jax.tree_util.Partial) else jax.tree_util.Partial(source)
              for source in sources]  # fmt: skip

    def init(key, images):
        del images
        arrays = tuple((source.args, dict(source.keywords)) for source in frozen)
        # Copies: a step may donate its state, but not the caller's sources.
        return EnsembleState(jax.tree.map(jnp.array, arrays), key, jnp.zeros((), jnp.int32))

    def improve(state, classifier_fn, batch, keys, *, axis_name=None):
        del classifier_fn, batch, keys, axis_name
        return state._replace(count=state.count + 1), {}

    def perturb(state, classifier_fn, batch, keys, *, axis_name=None):
        del axis_name
        if not clean_share:
            return attack(state, classifier_fn, batch, keys)
        clean_keys, attack_keys = prng.split_per_image(prng.per_image_keys(keys, batch.images.shape[0]), 2)
        clean = jax.vmap(lambda key: jax.random.bernoulli(key, clean_share))(clean_keys)
        return jnp.where(clean[:, None, None, None], batch.images, attack(state, classifier_fn, batch, attack_keys))

    def attack(state, classifier_fn, batch, keys):
        logits_fns = [_bind(source.func, arrays) for source, arrays in zip(frozen, state.sources, strict=True)]
        if scheme == "paper":
            return _paper_attack(logits_fns[0], keys, batch.images, batch.labels, threat, num_steps, keep_best)
        drawn = jax.random.randint(jax.random.fold_in(state.key, state.count), (), 0, len(logits_fns) + 1)
        choices = [functools.partial(attacks.fgsm, logits_fn, None) for logits_fn in (*logits_fns, classifier_fn)]
        return jax.lax.switch(drawn, choices, batch.images, batch.labels, threat)

    return Adversary(init, improve, perturb)


def _bind(function, arrays):
    args, keywords = jax.lax.stop_gradient(arrays)
    return lambda images: function(*args, images, **keywords)


def _paper_attack(logits_fn, keys, images, labels, threat, num_steps, keep_best):
    choice_keys, pgd_keys = prng.split_per_image(prng.per_image_keys(keys, images.shape[0]), 2)
    logits = logits_fn(images)
    predicted, least_likely = jnp.argmax(logits, axis=-1), jnp.argmin(logits, axis=-1)
    # One gradient for both single steps: up from the predicted label, or down to the least likely class.
    choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, 3))(choice_keys)
    away = choice == 0
    single = attacks.fgsm(
        logits_fn, None, images, jnp.where(away, predicted, least_likely), threat,
        loss_fn=lambda logits, labels, away: jnp.where(away, 1.0, -1.0) * cross_entropy(logits, labels),
        loss_args=(away,),
    )  # fmt: skip
    many = attacks.pgd(logits_fn, pgd_keys, images, labels, threat, num_steps=num_steps, keep_best=keep_best)
    return jnp.where((choice == 2)[:, None, None, None], many, single)

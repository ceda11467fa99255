"""Frozen, trained classifiers as the adversary: ensemble adversarial training, of the released code and as it began."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan import attacks, prng
from robust_gan.losses import cross_entropy
from robust_gan.types import Adversary, LogitsFn, PyTree, ThreatModel


class EnsembleState(NamedTuple):
    """What the ensemble carries.

    Attributes:
        sources: The arrays of each frozen classifier; never changed.
        key: Of the draw of a source for each batch: the same on all devices.
        count: int32 `[]`, batches so far.
    """

    sources: tuple[PyTree, ...]
    key: jax.Array
    count: jax.Array  # type: ignore[assignment]  # Hides a method of tuple that nobody needs.


def ensemble(
    sources: Sequence[LogitsFn],
    threat: ThreatModel,
    *,
    scheme: str = "paper",
    num_steps: int = 10,
    keep_best: bool = True,
    clean_share: float = 0.0,
) -> Adversary:
    """Builds the adversary that attacks other, frozen classifiers, so that the attack does not weaken as ours trains.

    Args:
        sources: Trained classifiers, as `checkpoint.load_classifier` returns them. A `jax.tree_util.Partial` has its
            arrays in the adversary's state; another function is taken as it is.
        threat: The threat model.
        scheme: `paper`: on the first source, each image in one of three ways, drawn at random: FGSM on the label that
            the source predicts, PGD on the true label, a step towards the least likely class. `tramer`: each batch by
            FGSM on a classifier drawn from the sources and the one that is trained.
        num_steps: Of PGD in `paper`.
        keep_best: PGD's best point seen, otherwise its last.
        clean_share: Share of the images that stay clean, drawn image by image. With 1/4, `clean_weight` 0 and
            `adversarial_weight` 1 the classifier learns from the mean loss over one mixed batch, which its BatchNorm
            sees as one, like the released code.

    Returns:
        The adversary; its state is an `EnsembleState`.

    Raises:
        ValueError: There is no source.

    Guarantees:
        `test_sources_stay_frozen_bit_for_bit`,
        `test_the_released_ensemble_learns_from_the_mean_over_one_mixed_batch`.

    References:
        Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019, experiments.
        Tramer, Kurakin, Papernot, Goodfellow, Boneh and McDaniel, "Ensemble Adversarial Training: Attacks and
            Defenses", ICLR 2018, section 3.4.

    >>> from robust_gan import LinfThreat
    >>> source = lambda images: images.sum((1, 2))
    >>> int(ensemble([source], LinfThreat(0.1)).init(jax.random.key(0), None).count)
    0
    """
    if not sources:
        raise ValueError("ensemble needs at least one source")
    frozen = [source if isinstance(source, jax.tree_util.Partial) else jax.tree_util.Partial(source)
              for source in sources]  # fmt: skip
    functions = [source.func for source in frozen]

    def init(key, images):
        del images
        arrays = tuple((source.args, dict(source.keywords)) for source in frozen)
        # Copies: a step may donate its state, and the sources are not ours to give away.
        return EnsembleState(jax.tree.map(jnp.array, arrays), key, jnp.zeros((), jnp.int32))

    def logits_fns(state):
        def bind(function, arrays):
            args, keywords = jax.lax.stop_gradient(arrays)
            return lambda images: function(*args, images, **keywords)

        return [bind(*pair) for pair in zip(functions, state.sources, strict=True)]

    def improve(state, classifier_fn, batch, keys, *, axis_name=None):
        del classifier_fn, batch, keys, axis_name
        return state._replace(count=state.count + 1), {}

    def perturb(state, classifier_fn, batch, keys, *, axis_name=None):
        del axis_name
        if not clean_share:
            return attack(state, classifier_fn, batch, keys)
        keys = prng.per_image_keys(keys, batch.images.shape[0])
        clean_keys, attack_keys = prng.split_per_image(keys, 2)
        clean = jax.vmap(lambda key: jax.random.bernoulli(key, clean_share))(clean_keys)
        return jnp.where(clean[:, None, None, None], batch.images, attack(state, classifier_fn, batch, attack_keys))

    def attack(state, classifier_fn, batch, keys):
        if scheme == "paper":
            return _three_ways(logits_fns(state)[0], keys, batch.images, batch.labels, threat, num_steps, keep_best)

        def single(logits_fn):
            return lambda images, labels: attacks.fgsm(logits_fn, None, images, labels, threat)

        choices = [single(logits_fn) for logits_fn in (*logits_fns(state), classifier_fn)]
        drawn = jax.random.randint(jax.random.fold_in(state.key, state.count), (), 0, len(choices))
        return jax.lax.switch(drawn, choices, batch.images, batch.labels)

    return Adversary(init, improve, perturb)


def _three_ways(logits_fn, keys, images, labels, threat, num_steps, keep_best):
    way_keys, pgd_keys = prng.split_per_image(prng.per_image_keys(keys, images.shape[0]), 2)
    logits = logits_fn(images)
    predicted, least_likely = jnp.argmax(logits, axis=-1), jnp.argmin(logits, axis=-1)
    # Both single steps are one gradient: up from the predicted label, or down to the least likely class.
    ways = jax.vmap(lambda key: jax.random.randint(key, (), 0, 3))(way_keys)
    away = ways == 0
    single = attacks.fgsm(
        logits_fn, None, images, jnp.where(away, predicted, least_likely), threat,
        loss_fn=lambda logits, labels, away: jnp.where(away, 1.0, -1.0) * cross_entropy(logits, labels),
        loss_args=(away,),
    )  # fmt: skip
    many = attacks.pgd(logits_fn, pgd_keys, images, labels, threat, num_steps=num_steps, keep_best=keep_best)
    return jnp.where((ways == 2)[:, None, None, None], many, single)

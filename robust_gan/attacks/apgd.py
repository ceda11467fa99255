"""Auto-PGD: projected gradient ascent with momentum that finds its own step size, untargeted and targeted."""

import jax
import jax.numpy as jnp

from robust_gan import prng
from robust_gan.attacks._apgd_search import search
from robust_gan.attacks._best import init_best
from robust_gan.attacks._compaction import run_restarts
from robust_gan.attacks._eot import apply_logits
from robust_gan.attacks.checking import check_counts, checked, checked_loss
from robust_gan.errors import UserError
from robust_gan.losses import check_labels, cross_entropy, dlr, is_correct
from robust_gan.types import LogitsFn, LossFn, PyTree, ThreatModel


@checked(randomised=True)
def apgd(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    loss_fn: LossFn = cross_entropy,
    loss_args: tuple[PyTree, ...] = (),
    num_samples: int = 1,
) -> jax.Array:
    """Auto-PGD without targets; the best point seen is returned.

    Args:
        logits_fn: The classifier, differentiable; with fresh keys at every pass where it is `attacks.randomised`.
        key: One key, or one per image.
        images: `[B, H, W, C]`; the iterates are float32 at least, and the classifier sees them in the images' dtype.
        labels: int32 `[B]`.
        threat: The threat model.
        num_steps: Gradient steps of each restart.
        num_restarts: Independent runs; an image that is misclassified already is not attacked again.
        loss_fn: What to ascend, unreduced: `losses.cross_entropy`, `losses.dlr`, ..., called as
            `loss_fn(logits, labels, *loss_args)`.
        loss_args: What the loss needs of each image beside its label, arrays `[B, ...]`; gathered with the images.
        num_samples: Passes through a randomised classifier for each gradient.

    Returns:
        Adversarial images `[B, H, W, C]`: of all iterates a misclassified one before a correctly classified one, and
        among equals the one of the highest loss.

    Raises:
        UserError: A count is below 1, the loss needs more classes or closes over an array of all images (with
            restarts), or an argument cannot be meant; see `checking`.

    Guarantees:
        `test_apgd_reaches_the_optimum_on_a_linear_classifier`, `test_apgd_follows_the_authors_rules`,
        `test_attack_does_not_depend_on_the_batch_size`.

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", ICML 2020, algorithm 1, https://arxiv.org/abs/2003.01690

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], -1)
    >>> x = jnp.full((1, 2, 2, 1), 0.5)
    >>> apgd(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25), num_steps=5).ravel().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    check_counts(num_steps=num_steps, num_restarts=num_restarts, num_samples=num_samples)
    keys = _keys_of_rounds(key, images, num_restarts)
    logits = apply_logits(logits_fn, images, keys[:, 0])
    loss_fn = checked_loss(loss_fn, logits, labels, loss_args, gathered=num_restarts > 1)
    best = init_best(images, loss_fn(logits, labels, *loss_args))

    def restart(index, best, keys, images, labels, loss_args):
        def loss(logits):
            return loss_fn(logits, labels, *loss_args)

        return search(
            logits_fn, loss, keys[:, index], images, labels, threat, best, num_steps=num_steps, num_samples=num_samples
        )

    if num_restarts == 1:
        return restart(0, best, keys, images, labels, loss_args).images
    return run_restarts(restart, num_restarts, best, (keys, images, labels, loss_args)).images


@checked(randomised=True)
def apgd_targeted(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int = 9,
    targets: jax.Array | None = None,
    num_samples: int = 1,
) -> jax.Array:
    """Auto-PGD on the targeted DLR loss, once for each of the most likely wrong classes; the best point is returned.

    Args:
        logits_fn: The classifier, differentiable.
        key: One key, or one per image.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`.
        threat: The threat model.
        num_steps: Gradient steps of each run.
        num_restarts: Runs for each target; an image that is misclassified, by any class, is not attacked again, and
            one that is so from the start is returned as it is.
        num_targets: How many classes to aim at, the most likely first; at most all wrong ones.
        targets: int32 `[B, T]`, the classes to aim at in place of the most likely ones; `num_targets` is of no account
            then.
        num_samples: Passes through a randomised classifier for each gradient.

    Returns:
        Adversarial images `[B, H, W, C]`.

    Raises:
        UserError: A count is below 1, there are fewer than 4 classes, or an argument cannot be meant; see `checking`.

    References:
        Croce and Hein 2020 (as `apgd`), section 5 and equation 7.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 1 - x.sum((1, 2, 3)), *2 * [0 * x.sum((1, 2, 3))]], -1)
    >>> x = jnp.full((1, 2, 1, 1), 0.5)
    >>> apgd_targeted(logits_fn, jax.random.key(0), x, jnp.array([0]), LinfThreat(0.25), num_steps=5).ravel().tolist()
    [0.25, 0.25]
    """
    check_counts(num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets, num_samples=num_samples)
    logits = apply_logits(logits_fn, images, prng.per_image_keys(key, images.shape[0]))
    if targets is None:
        targets = likely_wrong(logits, labels, num_targets)
    elif jnp.ndim(targets) != 2 or not targets.shape[1]:
        raise UserError(f"targets must be integers [B, T], T classes for each image, not of shape {jnp.shape(targets)}")
    else:
        targets = jnp.stack([check_labels(column, logits.shape, "targets") for column in targets.T], axis=1)
    rounds = targets.shape[1] * num_restarts
    keys = _keys_of_rounds(key, images, rounds)
    best = init_best(images, dlr(logits, labels, targets[:, 0]))._replace(fooled=~is_correct(logits, labels))

    def one_round(index, best, keys, images, labels, targets):
        def loss(logits):
            return dlr(logits, labels, targets[:, index // num_restarts])

        return search(
            logits_fn, loss, keys[:, index], images, labels, threat, best, num_steps=num_steps, num_samples=num_samples
        )

    return run_restarts(one_round, rounds, best, (keys, images, labels, targets)).images


def likely_wrong(logits: jax.Array, labels: jax.Array, num_targets: int) -> jax.Array:
    """Returns the most likely wrong classes of each image, the most likely first: `[B, min(num_targets, K - 1)]`.

    >>> likely_wrong(jnp.array([[1.0, 5.0, 3.0, 2.0]]), jnp.array([1]), 2).tolist()
    [[2, 3]]
    """
    count = logits.shape[-1]
    # NaN would go first; a label goes last in any case.
    ranked = jnp.where(jax.nn.one_hot(labels, count, dtype=bool), -jnp.inf, jnp.nan_to_num(logits))
    return jnp.argsort(ranked, axis=-1, descending=True)[:, : min(num_targets, count - 1)]


def _keys_of_rounds(key, images, num_rounds):
    """`[B, rounds]`, so that they are gathered with their images."""
    return jnp.swapaxes(prng.split_per_image(prng.per_image_keys(key, images.shape[0]), num_rounds), 0, 1)

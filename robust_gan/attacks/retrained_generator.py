"""A generator trained from scratch against a frozen classifier: what a learned adversary still finds there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_gan import prng
from robust_gan.attacks.checking import check_counts, check_size, checked, checked_loss
from robust_gan.attacks.generator import PAPER, Design, draw_latent, generate, generator
from robust_gan.losses import margin
from robust_gan.types import BatchStats, LogitsFn, LossFn, Network, Params, PyTree, ThreatModel

DESIGNS = {
    "retrained_generator": PAPER,
    "retrained_generator_label": Design(inputs=("label",)),
    "retrained_generator_refined": Design(
        inputs=("gradient", "perturbation", "label"), num_refinements=2, final_fgsm_step=0.5
    ),
}
"""The forms that evaluations know by name: one sees the image alone, one the label too, and one the gradient."""


class Trained(NamedTuple):
    """A generator after training.

    Attributes:
        params: Its parameters.
        batch_stats: Its running statistics.
    """

    params: Params
    batch_stats: BatchStats


@checked
def train_generator(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    network: Network,
    design: Design = PAPER,
    num_steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    loss_fn: LossFn = margin,
    loss_args: tuple[PyTree, ...] = (),
) -> Trained:
    """Trains a generator to raise a frozen classifier's loss.

    Adam with a cosine schedule; each minibatch is drawn without replacement. Pure and jit-able: the steps are one
    `lax.scan`. On a CPU a classifier whose convolutions are not those of `robust_gan.networks` is slow in it.

    Args:
        logits_fn: The classifier.
        key: One key.
        images: `[N, H, W, C]`, all that it may learn from.
        labels: int32 `[N]`.
        threat: The threat model.
        network: An untrained generator, as `networks.build_generator` returns it.
        design: What it sees, how often it is asked, how its noise becomes a perturbation.
        num_steps: Optimiser steps.
        batch_size: Images in a minibatch; all of them where there are fewer.
        learning_rate: The first.
        loss_fn: What it raises. The margin asks for misclassification; the cross-entropy for confidence. Called as
            `loss_fn(logits, labels, *loss_args)`.
        loss_args: What the loss needs of each image beside its label, arrays `[N, ...]`; drawn with the images.

    Returns:
        The generator; `generator.trained` makes an attack of it.

    Raises:
        UserError: A count is below 1, the loss closes over an array of all images, or an argument cannot be meant; see
            `checking`.

    >>> from robust_gan import LinfThreat, networks
    >>> images, labels = jnp.full((4, 8, 8, 1), 0.5), jnp.zeros(4, jnp.int32)
    >>> logits_fn = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1)
    >>> network = networks.build_generator("digits_generator", 1)
    >>> trained = train_generator(logits_fn, jax.random.key(0), images, labels, LinfThreat(0.1), network=network,
    ...                           num_steps=1)
    >>> sorted(trained._fields)
    ['batch_stats', 'params']
    """
    check_counts(num_steps=num_steps, batch_size=batch_size)
    check_size("learning_rate", learning_rate)
    key = prng.threefry(key)
    init_key, order_key, latent_key = jax.random.split(key, 3)
    count, size = images.shape[0], min(batch_size, images.shape[0])
    num_classes = jax.eval_shape(logits_fn, images[:1]).shape[-1]
    logits = jax.ShapeDtypeStruct((count, num_classes), jnp.float32)
    loss_fn = checked_loss(loss_fn, logits, labels, loss_args, gathered=True)
    seen = jnp.zeros((1, *images.shape[1:-1], design.channels(images.shape[-1], num_classes)), images.dtype)
    params, batch_stats = network.init(init_key, seen)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def objective(params, batch_stats, images, labels, loss_args, latent):
        def apply(batch_stats, seen):
            return network.apply(params, batch_stats, seen, train=True)

        adversarial, batch_stats = generate(
            apply, batch_stats, logits_fn, latent, images, labels, threat, design, num_classes
        )
        return -jnp.mean(loss_fn(logits_fn(adversarial), labels, *loss_args)), batch_stats

    def step(state, index):
        trained, opt_state = state
        rows = jax.random.permutation(jax.random.fold_in(order_key, index), count)[:size]
        keys = prng.per_image_keys(jax.random.fold_in(latent_key, index), size)
        latent = draw_latent(keys, design) if design.latent_size else None
        drawn = jax.tree.map(lambda leaf: leaf[rows], (images, labels, loss_args))
        gradient, batch_stats = jax.grad(objective, has_aux=True)(*trained, *drawn, latent)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (Trained(optax.apply_updates(trained.params, updates), batch_stats), opt_state), None

    start = Trained(params, batch_stats), optimizer.init(params)
    return jax.lax.scan(step, start, jnp.arange(num_steps))[0][0]


@checked
def retrained_generator(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    threat: ThreatModel,
    *,
    network: Network,
    design: Design = PAPER,
    **settings: Any,
) -> jax.Array:
    """Trains a generator on the very images that it then attacks.

    Unlike with the other attacks, the adversarial image of one depends on the others: the more there are, the more a
    generator can learn and the less it can learn by heart.

    Args:
        logits_fn: The classifier.
        key: One key.
        images: `[N, H, W, C]`.
        labels: int32 `[N]`.
        threat: The threat model.
        network: An untrained generator.
        design: How it attacks.
        **settings: Of `train_generator`.

    Returns:
        Adversarial images `[N, H, W, C]`.

    References:
        Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019, section 3: the
        inner maximisation of the game, here against a classifier that does not move.

    >>> from robust_gan import LinfThreat, networks
    >>> images, labels = jnp.full((4, 8, 8, 1), 0.5), jnp.zeros(4, jnp.int32)
    >>> logits_fn = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1)
    >>> network = networks.build_generator("digits_generator", 1)
    >>> attacked = retrained_generator(logits_fn, jax.random.key(0), images, labels, LinfThreat(0.1), network=network,
    ...                            num_steps=30)
    >>> logits_fn(attacked).argmax(-1).tolist()
    [1, 1, 1, 1]
    """
    train_key, attack_key = jax.random.split(prng.threefry(key))
    trained = train_generator(
        logits_fn, train_key, images, labels, threat, network=network, design=design, **settings
    )  # fmt: skip

    def noise_fn(seen):
        return network.apply(*trained, seen, train=False)[0]

    num_classes = jax.eval_shape(logits_fn, images[:1]).shape[-1]
    return generator(
        logits_fn, attack_key, images, labels, threat, noise_fn=noise_fn, design=design, num_classes=num_classes
    )

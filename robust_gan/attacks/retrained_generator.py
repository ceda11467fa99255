"""A generator trained from scratch against a frozen classifier, and the attack with it.

The steps are one `lax.scan`, which is slow on a CPU with convolutions other than those of `robust_gan.networks`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from robust_gan import prng
from robust_gan.attacks._checks import check_counts, check_size, checked, checked_loss
from robust_gan.attacks.generator import PAPER, Design, generate, generator
from robust_gan.losses import margin
from robust_gan.types import LogitsFn, LossFn, Network, PyTree, ThreatModel, Variables

DESIGNS = {
    "retrained_generator": PAPER,
    "retrained_generator_label": Design(inputs=("label",)),
    "retrained_generator_refined": Design(
        inputs=("gradient", "perturbation", "label"), num_refinements=2, final_fgsm_step=0.5
    ),
}
"""The designs that evaluations know by name."""


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
) -> Variables:
    """Trains a generator to raise a frozen classifier's loss, by Adam with a cosine schedule.

    Args:
        logits_fn: Differentiable; this and the four arguments after it as in `types.Attack`, but one key alone; `[N, H,
            W, C]` are the training images.
        network: An untrained generator, as `networks.build_generator` returns it.
        design: How it attacks.
        num_steps: Optimiser steps.
        batch_size: Images in a batch, drawn without replacement; all where there are fewer.
        learning_rate: The initial one.
        loss_fn: The unreduced loss that it raises: `loss_fn(logits, labels, *loss_args)`.
        loss_args: Further arguments of the loss, arrays `[N, ...]`; drawn with the images.

    Returns:
        The variables of the generator; `generator.trained` makes an attack of them.

    Raises:
        UserError: An argument is invalid (`_checks`), or the loss closes over an array of all images.

    >>> from robust_gan import LinfThreat, networks
    >>> images, labels = jnp.full((4, 8, 8, 1), 0.5), jnp.zeros(4, jnp.int32)
    >>> logits_fn = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1)
    >>> net = networks.build_generator("digits_generator", 1)
    >>> train_generator(logits_fn, jax.random.key(0), images, labels, LinfThreat(0.1), network=net, num_steps=1)._fields
    ('params', 'batch_stats')
    """
    check_counts(num_steps=num_steps, batch_size=batch_size)
    check_size("learning_rate", learning_rate)
    init_key, order_key, latent_key = jax.random.split(prng.threefry(key), 3)
    count, size = images.shape[0], min(batch_size, images.shape[0])
    num_classes = jax.eval_shape(logits_fn, images[:1]).shape[-1]
    logits = jax.ShapeDtypeStruct((count, num_classes), jnp.float32)
    loss_fn = checked_loss(loss_fn, logits, labels, loss_args, gathered=True)
    inputs = jnp.zeros((1, *images.shape[1:-1], design.channels(images.shape[-1], num_classes)), images.dtype)
    variables = Variables(*network.init(init_key, inputs))
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def objective(params, batch_stats, images, labels, loss_args, keys):
        apply = functools.partial(network.apply, params, train=True)
        adversarial, batch_stats = generate(
            apply, batch_stats, logits_fn, keys, images, labels, threat, design, num_classes
        )
        return -jnp.mean(loss_fn(logits_fn(adversarial), labels, *loss_args)), batch_stats

    def step(state, index):
        trained, opt_state = state
        rows = jax.random.permutation(jax.random.fold_in(order_key, index), count)[:size]
        keys = prng.per_image_keys(jax.random.fold_in(latent_key, index), size)
        drawn = jax.tree.map(lambda leaf: leaf[rows], (images, labels, loss_args))
        gradient, batch_stats = jax.grad(objective, has_aux=True)(*trained, *drawn, keys)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (Variables(optax.apply_updates(trained.params, updates), batch_stats), opt_state), None

    return jax.lax.scan(step, (variables, optimizer.init(variables.params)), jnp.arange(num_steps))[0][0]


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
    """Trains a generator on the images that it then attacks.

    Unlike with the other attacks, an adversarial image depends on the other images.

    Args:
        logits_fn: As `train_generator`; this and the four arguments after it as in `types.Attack`, but one key alone.
        network: An untrained generator.
        design: How it attacks.
        **settings: Of `train_generator`.

    Returns:
        Adversarial images `[N, H, W, C]`.

    References:
        Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019, section 3: the
        inner maximisation of the game, here against a frozen classifier.

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

    def noise_fn(inputs):
        return network.apply(*trained, inputs, train=False)[0]

    num_classes = jax.eval_shape(logits_fn, images[:1]).shape[-1]
    return generator(
        logits_fn, attack_key, images, labels, threat, noise_fn=noise_fn, design=design, num_classes=num_classes
    )

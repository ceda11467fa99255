"""A generator network as the adversary: the paper's game."""

import jax
import jax.numpy as jnp
import optax

from robust_gan import threat_model
from robust_gan.losses import generator_loss
from robust_gan.metrics import mean_over
from robust_gan.types import Adversary, Network, PlayerState, ThreatModel


def generator(
    network: Network, optimizer: optax.GradientTransformation, threat: ThreatModel, *, steps: int = 1
) -> Adversary:
    """Builds the adversary that is a network: image in, noise in [-1, 1] out.

    While it trains, its BatchNorm uses the statistics of the batch; as an attack after training, the running ones.

    Args:
        network: The generator; outputs noise of the shape of the images.
        optimizer: How it moves, weight decay included.
        threat: The threat model.
        steps: Optimiser steps on each batch, k of the paper.

    Returns:
        The adversary; its state is a `PlayerState`.

    Guarantees:
        `test_a_generator_step_raises_the_frozen_classifiers_loss_and_leaves_it_alone`.

    References:
        Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019, section 3.

    >>> import optax
    >>> from robust_gan import LinfThreat, networks
    >>> adversary = generator(networks.build_generator("digits_generator", 1), optax.adam(2e-3), LinfThreat(0.15))
    >>> state = adversary.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> sorted(state._fields)
    ['batch_stats', 'opt_state', 'params']
    """

    def init(key, images):
        params, batch_stats = network.init(key, images)
        return PlayerState(params, batch_stats, optimizer.init(params))

    def adversarial_images(params, batch_stats, images, axis_name):
        noise, batch_stats = network.apply(params, batch_stats, images, train=True, axis_name=axis_name)
        return threat_model.perturb(images, noise, threat), batch_stats

    def improve(state, classifier_fn, batch, keys, *, axis_name=None):
        del keys  # The paper's generator is deterministic.

        def loss_fn(params, batch_stats):
            images, batch_stats = adversarial_images(params, batch_stats, batch.images, axis_name)
            return jnp.mean(generator_loss(classifier_fn(images), batch.labels)), batch_stats

        def step(state, _):
            (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state.batch_stats)
            loss, gradient = mean_over(axis_name, (loss, gradient))
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            return PlayerState(optax.apply_updates(state.params, updates), batch_stats, opt_state), loss

        # One step or many, it is the same compiled body; see networks/convolution.py for why a loop is fast on CPU.
        state, losses = jax.lax.scan(step, state, None, length=steps)
        return state, {"generator_loss": losses[-1]}

    def response(state, batch, keys, *, axis_name=None):
        del keys

        def images_fn(params):
            return adversarial_images(params, state.batch_stats, batch.images, axis_name)[0]

        return state.params, images_fn

    def perturb(state, classifier_fn, batch, keys, *, axis_name=None):
        del classifier_fn
        params, images_fn = response(state, batch, keys, axis_name=axis_name)
        return images_fn(params)

    return Adversary(init, improve, perturb, response)

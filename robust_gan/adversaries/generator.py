"""A generator network as the adversary: the game of Wang and Yu, with later extensions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from robust_gan import prng
from robust_gan.attacks.generator import PAPER, Design, draw_latent, generate
from robust_gan.losses import generator_loss
from robust_gan.optimizers import mean_over
from robust_gan.types import Adversary, Network, PlayerState, ThreatModel


def generator(
    network: Network,
    optimizer: optax.GradientTransformation,
    threat: ThreatModel,
    *,
    steps: int = 1,
    design: Design = PAPER,
    diversity: float = 0.0,
    num_classes: int = 0,
) -> Adversary:
    """Returns the adversary that is a network from images to noise in [-1, 1].

    In training its BatchNorm uses the statistics of the batch; as an attack after training, the running ones.

    Args:
        network: The generator: from the inputs of `design` to noise of the shape of the images.
        optimizer: Its optimizer, weight decay included.
        threat: The threat model.
        steps: Optimizer steps on each batch, k.
        design: Its inputs, number of refinements, and parametrization.
        diversity: Reward for the mean distance between two perturbations of an image, in units of epsilon, over the
            mean distance between their random inputs.
        num_classes: K; used only where the label is an input.

    Returns:
        The adversary; its state is a `PlayerState`.

    Raises:
        ValueError: There is a reward for diversity, but no random input.

    Guarantees:
        `test_a_generator_step_raises_the_frozen_classifiers_loss_and_leaves_it_alone`.

    References:
        Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019, section 3.
        Mao, Lee, Tseng, Ma and Yang, "Mode Seeking Generative Adversarial Networks for Diverse Image Synthesis", CVPR
            2019, equation 3 (diversity).

    >>> import optax
    >>> from robust_gan import LinfThreat, networks
    >>> adversary = generator(networks.build_generator("digits_generator", 1), optax.adam(2e-3), LinfThreat(0.15))
    >>> state = adversary.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> sorted(state._fields)
    ['batch_stats', 'opt_state', 'params']
    """
    if diversity and not design.latent_size:
        raise ValueError(f"diversity is {diversity}, but the design has no random input to differ by")

    player = _Generator(network, optimizer, threat, steps, design, diversity, num_classes)
    return Adversary(player.init, player.improve, player.perturb, player.response)


# Compared by identity: a threat model with an array as its radius has no hash.
@dataclasses.dataclass(frozen=True, eq=False)
class _Generator:
    """The functions of the adversary `generator`, whose arguments these are."""

    network: Network
    optimizer: optax.GradientTransformation
    threat: ThreatModel
    steps: int
    design: Design
    diversity: float
    num_classes: int

    def init(self, key, images):
        channels = self.design.channels(images.shape[-1], self.num_classes)
        params, batch_stats = self.network.init(key, jnp.zeros((*images.shape[:-1], channels), images.dtype))
        return PlayerState(params, batch_stats, self.optimizer.init(params))

    def adversarial_images(self, params, batch_stats, classifier_fn, batch, keys, axis_name):
        def apply(batch_stats, inputs):
            return self.network.apply(params, batch_stats, inputs, train=True, axis_name=axis_name)

        return generate(
            apply, batch_stats, classifier_fn, keys, batch.images, batch.labels, self.threat, self.design,
            self.num_classes, start=batch.start,
        )  # fmt: skip

    def improve(self, state, classifier_fn, batch, keys, *, axis_name=None):
        def loss_fn(params, batch_stats, draws):
            images, batch_stats = self.adversarial_images(
                params, batch_stats, classifier_fn, batch, draws[0], axis_name
            )
            loss = jnp.mean(generator_loss(classifier_fn(images), batch.labels))
            objective = loss
            if self.diversity:
                others, batch_stats = self.adversarial_images(
                    params, batch_stats, classifier_fn, batch, draws[1], axis_name
                )
                first, second = (draw_latent(keys, self.design) for keys in draws)
                ratio = mode_seeking_ratio(images, others, first, second, self.threat)
                objective = loss - self.diversity * jnp.mean(ratio)
            return objective, (loss, batch_stats)

        def step(state, index):
            draws: list[Any] = [None]
            if self.design.is_random:
                step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
                draws = list(prng.split_per_image(step_keys, 2)) if self.diversity else [step_keys]
            gradient, (loss, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params, state.batch_stats, draws)
            loss, gradient = mean_over(axis_name, (loss, gradient))
            updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.params)
            state = PlayerState(optax.apply_updates(state.params, updates), batch_stats, opt_state)
            return state, {"generator_loss": loss, "generator_gradient_norm": optax.tree.norm(gradient)}

        # One compiled body for any number of steps; networks/convolution.py says why a loop is fast on a CPU.
        state, metrics = jax.lax.scan(step, state, jnp.arange(self.steps))
        return state, {name: values[-1] for name, values in metrics.items()}

    def response(self, state, classifier_fn, batch, keys, *, axis_name=None):
        def images_fn(params):
            return self.adversarial_images(params, state.batch_stats, classifier_fn, batch, keys, axis_name)[0]

        return state.params, images_fn

    def perturb(self, state, classifier_fn, batch, keys, *, axis_name=None):
        params, images_fn = self.response(state, classifier_fn, batch, keys, axis_name=axis_name)
        return images_fn(params)


def mode_seeking_ratio(
    images: jax.Array, others: jax.Array, latent: jax.Array, other_latent: jax.Array, threat: ThreatModel
) -> jax.Array:
    """Computes the distance of two perturbations of each image over the distance of their random inputs: `[B]`.

    Both distances are mean absolute differences, of the images in units of epsilon.

    Args:
        images: `[B, H, W, C]`.
        others: `[B, H, W, C]`, for the same clean images.
        latent: `[B, L]`, the random inputs of `images`.
        other_latent: `[B, L]`, the random inputs of `others`.
        threat: The threat model.

    >>> from robust_gan import LinfThreat
    >>> x = jnp.zeros((1, 2, 2, 1))
    >>> mode_seeking_ratio(x, x + 0.25, jnp.zeros((1, 3)), jnp.full((1, 3), 0.5), LinfThreat(0.25)).item()
    2.0
    """
    apart = jnp.mean(jnp.abs(images - others), axis=(1, 2, 3)) / jnp.asarray(threat.epsilon, images.dtype)
    return apart / jnp.maximum(jnp.mean(jnp.abs(latent - other_latent), axis=-1), 1e-3)

"""A generator network as the adversary: the game of Wang and Yu, with later extensions."""

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

    def init(key, images):
        channels = design.channels(images.shape[-1], num_classes)
        params, batch_stats = network.init(key, jnp.zeros((*images.shape[:-1], channels), images.dtype))
        return PlayerState(params, batch_stats, optimizer.init(params))

    def adversarial_images(params, batch_stats, classifier_fn, batch, latent, axis_name):
        def apply(batch_stats, inputs):
            return network.apply(params, batch_stats, inputs, train=True, axis_name=axis_name)

        images, labels = batch
        return generate(apply, batch_stats, classifier_fn, latent, images, labels, threat, design, num_classes)

    def draw(keys):
        return draw_latent(keys, design) if design.latent_size else None

    def improve(state, classifier_fn, batch, keys, *, axis_name=None):
        def loss_fn(params, batch_stats, latents):
            images, batch_stats = adversarial_images(params, batch_stats, classifier_fn, batch, latents[0], axis_name)
            loss = jnp.mean(generator_loss(classifier_fn(images), batch.labels))
            objective = loss
            if diversity:
                others, batch_stats = adversarial_images(
                    params, batch_stats, classifier_fn, batch, latents[1], axis_name
                )
                objective = loss - diversity * jnp.mean(
                    mode_seeking_ratio(images, others, latents[0], latents[1], threat)
                )
            return objective, (loss, batch_stats)

        def step(state, index):
            latents = [None]
            if design.latent_size:
                step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
                pairs = prng.split_per_image(step_keys, 2) if diversity else [step_keys]
                latents = [draw(key) for key in pairs]
            gradient, (loss, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params, state.batch_stats, latents)
            loss, gradient = mean_over(axis_name, (loss, gradient))
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            state = PlayerState(optax.apply_updates(state.params, updates), batch_stats, opt_state)
            return state, {"generator_loss": loss, "generator_gradient_norm": optax.tree.norm(gradient)}

        # One compiled body for any number of steps; networks/convolution.py says why a loop is fast on a CPU.
        state, metrics = jax.lax.scan(step, state, jnp.arange(steps))
        return state, {name: values[-1] for name, values in metrics.items()}

    def response(state, classifier_fn, batch, keys, *, axis_name=None):
        latent = draw(keys)

        def images_fn(params):
            return adversarial_images(params, state.batch_stats, classifier_fn, batch, latent, axis_name)[0]

        return state.params, images_fn

    def perturb(state, classifier_fn, batch, keys, *, axis_name=None):
        params, images_fn = response(state, classifier_fn, batch, keys, axis_name=axis_name)
        return images_fn(params)

    return Adversary(init, improve, perturb, response)


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

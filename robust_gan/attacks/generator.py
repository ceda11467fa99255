"""A trained generator as an attack: its inputs, its refinement steps, and the parametrization of its perturbation.

The input of the generator of Wang and Yu is the image, and it is applied once. Later work adds the options of `Design`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robust_gan import prng, threat_model
from robust_gan.attacks._checks import checked
from robust_gan.attacks.pgd import input_gradient
from robust_gan.networks import inference
from robust_gan.types import LogitsFn, PyTree, ThreatModel

INPUTS = ("gradient", "perturbation", "label")
"""The inputs that a generator can have beside the image."""


class Design(NamedTuple):
    """How a generator attacks.

    Attributes:
        inputs: Its inputs beside the image, any of `INPUTS`: the gradient of the classifier's loss in the pixels at the
            current point, the current perturbation, the label.
        num_refinements: How often it is applied; each time conditioned on the current point, whose perturbation the new
            one replaces.
        latent_size: Random input channels, so that one image has many perturbations.
        final_fgsm_step: Length, in units of epsilon, of a last gradient step (FGSM) from the generator's point; 0 for
            none.
        start: The point at which it is first applied: `none`: the clean image; `uniform`: a random point of the ball;
            `vertex`: the image plus or minus epsilon in each pixel (L-infinity only), clipped to valid pixels; `noise`:
            in training noise of up to `NOISE` epsilon is added to the image first, as in N-FGSM, and the ball is around
            the result; `memory`: in training, the image with its last perturbation.
        parametrization: `clip`: epsilon times the noise, clipped to valid pixels; or `rescale`: noise in [-1, 1] is
            mapped onto the valid pixels within epsilon of each pixel, so that none is clipped (L-infinity only).
    """

    inputs: tuple[str, ...] = ()
    num_refinements: int = 1
    latent_size: int = 0
    final_fgsm_step: float = 0.0
    parametrization: str = "clip"
    start: str = "none"

    @property
    def is_random(self) -> bool:
        """Whether an image has many perturbations, so that the attack needs a key."""
        return self.latent_size > 0 or self.start not in ("none", "memory")

    def channels(self, image_channels: int, num_classes: int) -> int:
        """Returns the number of input channels of the generator.

        >>> Design().channels(3, 10), Design(inputs=("gradient", "label"), latent_size=4).channels(3, 10)
        (3, 20)
        """
        sizes = {"gradient": image_channels, "perturbation": image_channels, "label": num_classes}
        return image_channels + sum(sizes[name] for name in self.inputs) + self.latent_size


NOISE = 2.0
"""Size of the noise of the start `noise`, in units of epsilon."""
PAPER = Design()
"""The generator of Wang and Yu."""


@checked(optional=("logits_fn", "key", "labels"))
def generator(
    logits_fn: LogitsFn | None,
    key: jax.Array | None,
    images: jax.Array,
    labels: jax.Array | None,
    threat: ThreatModel,
    *,
    noise_fn: Callable[[jax.Array], jax.Array],
    design: Design = PAPER,
    num_classes: int = 0,
) -> jax.Array:
    """Perturbs images with the noise of a trained generator.

    Args:
        logits_fn: Used, as the labels are, only by a design with the gradient or a final step; the key only by a random
            one. This and the four arguments after it as in `types.Attack`.
        noise_fn: Inputs `[B, H, W, C']` in [0, 1] (`generator_inputs`) to noise `[B, H, W, C]` in [-1, 1], as
            `checkpoint.load_generator` returns it.
        design: How it attacks.
        num_classes: K; used only where the label is an input.

    Returns:
        Adversarial images `[B, H, W, C]`; the clean pixels where the noise is NaN.

    Raises:
        ValueError: The design is random and there is no key.

    References:
        Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019, section 3.

    >>> from robust_gan import LinfThreat
    >>> x = jnp.full((1, 2, 1, 1), 0.5)
    >>> generator(None, None, x, None, LinfThreat(0.25), noise_fn=jnp.ones_like).ravel().tolist()
    [0.75, 0.75]
    """

    def apply(carry, inputs):
        noise = noise_fn(inputs)
        return jnp.where(jnp.isnan(noise), 0, noise), carry

    if design.start in ("noise", "memory"):
        design = design._replace(start="none")
    if design.is_random and key is None:
        raise ValueError("a design with a random start or latent channels needs a key")
    return generate(apply, (), logits_fn, key, images, labels, threat, design, num_classes)[0]


def trained(
    noise_fn: Callable[..., jax.Array], design: Design = PAPER, num_classes: int = 0
) -> Callable[..., jax.Array]:
    """Returns the attack of a network: `(params, batch_stats, logits_fn, key, images, labels, threat) -> images`.

    With the network's arrays bound by `jax.tree_util.Partial` it is an `Attack`. The same arguments return the same
    object for a network of this package, so that compiled functions are reused; a cache would keep any other function,
    and the arrays that it closes over, for as long as the process lives.

    Args:
        noise_fn: `(params, batch_stats, inputs) -> noise`, as `networks.inference.generate` returns it.
        design: How it attacks.
        num_classes: K.

    >>> noise_fn = inference.generate("digits_generator", 1)
    >>> trained(noise_fn) is trained(noise_fn), trained(jnp.add) is trained(jnp.add)
    (True, False)
    """
    make = _trained if inference.architecture_of(noise_fn) else _trained.__wrapped__
    return make(noise_fn, design, num_classes)


@functools.cache
def _trained(noise_fn, design, num_classes):
    def attack(params, batch_stats, logits_fn, key, images, labels, threat):
        apply = functools.partial(noise_fn, params, batch_stats)
        return generator(
            logits_fn, key, images, labels, threat, noise_fn=apply, design=design, num_classes=num_classes
        )  # fmt: skip

    if name := inference.architecture_of(noise_fn):
        inference.as_architecture(attack, f"{name}, {design}, {num_classes} classes")
    return attack


def draw_latent(keys: jax.Array, design: Design) -> jax.Array:
    """Draws the random input of each image, uniform in [0, 1]: `[B, latent_size]`.

    >>> draw_latent(jax.random.split(jax.random.key(0), 3), Design(latent_size=2)).shape
    (3, 2)
    """
    return prng.uniform_per_image(keys, (design.latent_size,))


def draw_start(keys: jax.Array, images: jax.Array, threat: ThreatModel, design: Design) -> jax.Array:
    """Draws the point of each image at which a generator is first applied: `[B, H, W, C]`.

    References:
        Wong, Rice and Kolter, "Fast is better than free: Revisiting adversarial training", ICLR 2020 (`uniform`).
        Jia, Zhang, Wei, Wu, Wang, Wang and Cao, "Prior-Guided Fast Adversarial Training", ECCV 2022 (starts compared).

    >>> from robust_gan import LinfThreat
    >>> x = jnp.full((1, 2, 2, 1), 0.5)
    >>> start = draw_start(jax.random.split(jax.random.key(0), 1), x, LinfThreat(0.25), Design(start="vertex"))
    >>> sorted(set(start.ravel().tolist()))
    [0.25, 0.75]
    """
    if design.start in ("none", "memory"):
        return images
    # Other bits than those of the latent, which are drawn from the keys themselves.
    threat = threat_model.scaled(threat, NOISE) if design.start == "noise" else threat
    start = threat_model.random_start(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), images, threat)
    if design.start == "vertex":
        return threat_model.perturb(images, jnp.where(start >= images, 1.0, -1.0), threat)
    return start


def generate(
    apply: Callable[[PyTree, jax.Array], tuple[jax.Array, PyTree]],
    carry: PyTree,
    logits_fn: LogitsFn | None,
    key: jax.Array | None,
    images: jax.Array,
    labels: jax.Array | None,
    threat: ThreatModel,
    design: Design,
    num_classes: int,
    start: jax.Array | None = None,
) -> tuple[jax.Array, PyTree]:
    """Computes a generator's adversarial images, in training and after it.

    Differentiable in the generator's parameters: through the perturbation that is the input of a later refinement, but
    not through the classifier's gradient, which is a constant.

    Args:
        apply: `(carry, inputs [B, H, W, C']) -> (noise [B, H, W, C], carry)`, called for each refinement.
        carry: State of `apply`: the running statistics in training.
        logits_fn: The classifier, or None where the design does not use it.
        key: One key, or one per image; None where the design is not random.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`, or None where the design does not use them.
        threat: The threat model.
        design: How it attacks.
        num_classes: K; used only where the label is an input.
        start: `[B, H, W, C]`, the perturbation in units of epsilon at which the generator is first applied; None for
            the start of the design.

    Returns:
        Adversarial images `[B, H, W, C]`, and the last carry.

    References:
        Jiang, Chen, Shi, Dai and Zhao, "Learning to Defend by Learning to Attack" (L2L), AISTATS 2021
            (gradient, refinements).
        Jia, Zhang, Wu, Wang, Cao, "Boosting Fast Adversarial Training with Learnable Adversarial Initialization"
            (FGSM-SDI), IEEE Transactions on Image Processing 2022 (the final step).

    >>> from robust_gan import LinfThreat
    >>> x = jnp.full((1, 1, 1, 1), 0.5)
    >>> half = lambda carry, inputs: (0.5 * jnp.ones_like(inputs), carry + 1)
    >>> adversarial, count = generate(half, 0, None, None, x, None, LinfThreat(0.25), Design(num_refinements=3), 0)
    >>> adversarial.item(), count
    (0.625, 3)
    """
    latent, point = None, images
    if design.is_random:
        assert key is not None  # A random design needs keys.
        keys = prng.per_image_keys(key, images.shape[0])
        latent = draw_latent(keys, design) if design.latent_size else None
        point = draw_start(keys, images, threat, design)
        images = point if design.start == "noise" else images
    if start is not None:
        point = threat_model.project(images + jnp.asarray(threat.epsilon, images.dtype) * start, images, threat)
    for _ in range(design.num_refinements):
        inputs = generator_inputs(logits_fn, latent, images, point, labels, threat, design, num_classes)
        noise, carry = apply(carry, inputs)
        if design.parametrization == "rescale":
            point = threat_model.perturb_rescaled(images, noise, threat)
        else:
            point = threat_model.perturb(images, noise, threat)
    if design.final_fgsm_step:
        if logits_fn is None or labels is None:
            raise ValueError("a design with a final FGSM step needs the classifier and the labels")
        direction = threat_model.steepest_ascent(input_gradient(logits_fn, point, labels), threat)
        length = design.final_fgsm_step * jnp.asarray(threat.epsilon, direction.dtype)
        point = threat_model.project(point + length * direction, images, threat)
    return point, carry


def generator_inputs(
    logits_fn: LogitsFn | None,
    latent: jax.Array | None,
    images: jax.Array,
    point: jax.Array,
    labels: jax.Array | None,
    threat: ThreatModel,
    design: Design,
    num_classes: int,
) -> jax.Array:
    """Computes the generator's inputs: channels in [0, 1], the image first, `[B, H, W, C']`.

    The gradient is divided by its root mean square over the image and passed through tanh, so that its scale does not
    depend on the confidence of the classifier. It and the perturbation (in units of epsilon) are moved from [-1, 1] to
    [0, 1].

    >>> from robust_gan import LinfThreat
    >>> x = jnp.full((1, 1, 1, 1), 0.5)
    >>> inputs = generator_inputs(None, None, x, x + 0.25, jnp.array([1]), LinfThreat(0.25),
    ...                           Design(inputs=("perturbation", "label")), num_classes=2)
    >>> inputs.ravel().tolist()
    [0.5, 1.0, 0.0, 1.0]
    """
    low, high = threat.bounds
    stack = [images if (low, high) == (0.0, 1.0) else (images - low) / (high - low)]
    for name in design.inputs:
        if name == "gradient":
            gradient = _unit_gradient(logits_fn, point, labels)
            size = jnp.sqrt(jnp.mean(jnp.square(gradient), axis=(1, 2, 3), keepdims=True))
            stack.append(0.5 + 0.5 * jnp.tanh(gradient / jnp.where(size > 0, size, 1.0)))
        elif name == "perturbation":
            epsilon = jnp.asarray(threat.epsilon, images.dtype)
            stack.append(0.5 + 0.5 * (point - images) / jnp.where(epsilon > 0, epsilon, 1.0))
        else:
            stack.append(_broadcast(jax.nn.one_hot(labels, num_classes), images))
    if latent is not None:
        stack.append(_broadcast(latent, images))
    return jnp.concatenate([part.astype(images.dtype) for part in stack], axis=-1)


def _unit_gradient(logits_fn, point, labels):
    gradient = input_gradient(logits_fn, point, labels)
    # Tiny gradients would underflow when squared. A maximum over many numbers loses NaN on a CPU (jaxlib 0.10).
    largest = jnp.max(jnp.where(jnp.isnan(gradient), 0.0, jnp.abs(gradient)), axis=(1, 2, 3), keepdims=True)
    return jnp.nan_to_num(gradient / jnp.where(largest > 0, largest, 1.0))


def _broadcast(vectors, images):
    return jnp.broadcast_to(vectors[:, None, None, :], (*images.shape[:3], vectors.shape[-1]))

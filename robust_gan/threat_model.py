"""What the attacker may do: the ball around an image and the range of valid pixels, with the guarantee on both."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from robust_gan import random
from robust_gan.config import ThreatConfig
from robust_gan.types import ThreatModel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinfThreat:
    """The L-infinity ball: no pixel moves by more than epsilon.

    A pytree with the leaf `epsilon`, so that a sweep over epsilon does not recompile.

    Attributes:
        epsilon: Radius in units of the pixel range.
        bounds: Smallest and largest valid pixel.
    """

    epsilon: jax.typing.ArrayLike
    bounds: tuple[float, float] = dataclasses.field(default=(0.0, 1.0), metadata={"static": True})
    norm: ClassVar[str] = "linf"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class L2Threat:
    """The L2 ball: the perturbation of an image has a Euclidean norm of at most epsilon.

    Attributes:
        epsilon: Radius in units of the pixel range.
        bounds: Smallest and largest valid pixel.
    """

    epsilon: jax.typing.ArrayLike
    bounds: tuple[float, float] = dataclasses.field(default=(0.0, 1.0), metadata={"static": True})
    norm: ClassVar[str] = "l2"


def from_config(config: ThreatConfig) -> LinfThreat | L2Threat:
    """Builds the threat model of a configuration.

    >>> from_config(ThreatConfig(norm="l2", epsilon=0.5))
    L2Threat(epsilon=0.5, bounds=(0.0, 1.0))
    """
    return {"linf": LinfThreat, "l2": L2Threat}[config.norm](config.epsilon)


def project(adversarial: jax.Array, images: jax.Array, threat: ThreatModel) -> jax.Array:
    """Projects points onto the ball around the images, and then onto the valid range.

    Args:
        adversarial: `[B, ...]`, any points.
        images: `[B, ...]`, the centres, inside the range.
        threat: The threat model.

    Returns:
        `[B, ...]` of the dtype of `images`. In L-infinity the nearest such point; in L2 the ball is projected onto
        first and the range second, which ends inside both.

    Guarantees:
        `test_project_stays_in_the_ball_and_the_range`: within epsilon + 2**-24 of the image, computed in float64, and
            inside the bounds, for float32 and bfloat16, at epsilon 0 and at saturated pixels.
        `test_project_is_idempotent`.

    >>> project(jnp.array([[0.9, -0.5]]), jnp.array([[0.5, 0.0]]), LinfThreat(0.25)).tolist()
    [[0.75, 0.0]]
    """
    wide = jnp.promote_types(images.dtype, jnp.float32)
    centre = images.astype(wide)
    epsilon = jnp.asarray(threat.epsilon, wide)
    if threat.norm == "linf":
        moved = jnp.clip(adversarial.astype(wide), centre - epsilon, centre + epsilon)
    else:
        delta = adversarial.astype(wide) - centre
        norm = l2_norm(delta)
        # The margin of 2**-20 absorbs the rounding of the norm itself.
        shrink = jnp.where(norm > epsilon, epsilon * (1 - 2.0**-20) / jnp.maximum(norm, 1e-12), 1.0)
        moved = centre + _expand(shrink, delta) * delta
    moved = jnp.clip(moved, *threat.bounds)
    if threat.norm == "linf" and images.dtype == wide:
        return moved
    return _round_towards(moved, centre, images.dtype)


def perturb(images: jax.Array, noise: jax.Array, threat: ThreatModel) -> jax.Array:
    """Adds noise in [-1, 1] to images so that the result lies inside the ball and the valid range.

    In L-infinity the perturbation is epsilon * noise; in L2 it is epsilon * noise / max(1, ||noise||). Where that
    leaves the range it is clipped. Differentiable in `noise`.

    Args:
        images: `[B, ...]`, inside the range.
        noise: `[B, ...]` in [-1, 1], a generator's output.
        threat: The threat model.

    Returns:
        `[B, ...]` of the dtype of `images`.

    Guarantees:
        `test_perturb_stays_in_the_ball_and_the_range`: as for `project`.

    References:
        Wang and Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019, section 3
        (which does not clip to the range).

    >>> perturb(jnp.array([[0.5, 0.0]]), jnp.array([[1.0, -1.0]]), LinfThreat(0.25)).tolist()
    [[0.75, 0.0]]
    """
    wide = jnp.promote_types(images.dtype, jnp.float32)
    noise = noise.astype(wide)
    if threat.norm == "l2":
        noise = noise / _expand(jnp.maximum(l2_norm(noise), 1.0), noise)
    return project(images.astype(wide) + jnp.asarray(threat.epsilon, wide) * noise, images, threat)


def random_start(keys: jax.Array, images: jax.Array, threat: ThreatModel) -> jax.Array:
    """Draws a point uniformly from the ball around each image, clipped to the range.

    Args:
        keys: One key per image, `[B]`.
        images: `[B, ...]`.
        threat: The threat model.

    Returns:
        `[B, ...]`.

    >>> x = jnp.full((2, 4, 4, 1), 0.5)
    >>> start = random_start(jax.random.split(jax.random.key(0), 2), x, LinfThreat(0.1))
    >>> bool(jnp.all(jnp.abs(start - x) <= 0.1)), bool(jnp.any(start != x))
    (True, True)
    """
    shape, wide = images.shape[1:], jnp.promote_types(images.dtype, jnp.float32)
    if threat.norm == "linf":
        delta = random.uniform_per_image(keys, shape, wide, -1.0, 1.0)
    else:
        # A normalised Gaussian is uniform on the sphere; the radius of a uniform point in the d-ball is u ** (1 / d).
        direction_keys, radius_keys = random.split_per_image(keys, 2)
        direction = random.normal_per_image(direction_keys, shape, wide)
        radius = random.uniform_per_image(radius_keys, (), wide) ** (1 / max(1, direction[0].size))
        delta = direction * _expand(radius / jnp.maximum(l2_norm(direction), 1e-12), direction)
    return project(images + jnp.asarray(threat.epsilon, wide) * delta, images, threat)


def steepest(gradient: jax.Array, threat: ThreatModel) -> jax.Array:
    """Returns the direction of unit size along which a linear function grows the most: sign(g), or g / ||g||.

    Args:
        gradient: `[B, ...]`.
        threat: The threat model, for its norm.

    Returns:
        `[B, ...]`; zero where the gradient of an image is zero.

    >>> steepest(jnp.array([[3.0, -4.0]]), L2Threat(1.0)).tolist()
    [[0.6000000238418579, -0.800000011920929]]
    """
    if threat.norm == "linf":
        return jnp.sign(gradient)
    # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
    largest = jnp.max(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)), keepdims=True)
    scaled = gradient / jnp.where(largest > 0, largest, 1.0)
    return scaled / _expand(jnp.maximum(l2_norm(scaled), 1e-12), scaled)


def distance(adversarial: jax.Array, images: jax.Array, threat: ThreatModel) -> jax.Array:
    """Returns the size of each perturbation in the norm of the threat model: `[B]`.

    >>> distance(jnp.array([[0.3, 0.4]]), jnp.zeros((1, 2)), L2Threat(1.0)).tolist()
    [0.5]
    """
    delta = adversarial - images
    if threat.norm == "linf":
        return jnp.max(jnp.abs(delta), axis=tuple(range(1, delta.ndim)))
    return l2_norm(delta)


def l2_norm(delta: jax.Array) -> jax.Array:
    """Returns the Euclidean norm of each row, with gradient 0 (not NaN) at 0: `[B, ...]` to `[B]`.

    >>> l2_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [5.0, 0.0]
    """
    square = jnp.sum(jnp.square(delta), axis=tuple(range(1, delta.ndim)))
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _expand(per_image: jax.Array, like: jax.Array) -> jax.Array:
    return per_image.reshape(per_image.shape + (1,) * (like.ndim - per_image.ndim))


def _round_towards(point: jax.Array, centre: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Casts so that no coordinate ends farther from the centre: 8/255 is about two ulps of bfloat16 at 1."""
    rounded = point.astype(dtype)
    nearer = jnp.nextafter(rounded, centre.astype(dtype))
    overshoots = jnp.abs(rounded.astype(centre.dtype) - centre) > jnp.abs(point - centre)
    inside = jnp.where(overshoots, nearer, rounded)
    # Rounding has no derivative; the gradient is that of the cast.
    return rounded + jax.lax.stop_gradient(inside - rounded)

"""Threat models: the ball around an image and the range of valid pixels, and the projection onto both."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import prng
from robust_gan.config import ThreatConfig
from robust_gan.errors import UserError
from robust_gan.types import ThreatModel, get_compute_dtype


class _Ball:
    """Base of both threat models: checks the fields where they are known."""

    epsilon: float | jax.Array
    bounds: tuple[float, float]
    norm: ClassVar[str]

    def __post_init__(self) -> None:
        """Raises `UserError` for invalid fields and converts known numbers to floats."""
        object.__setattr__(self, "bounds", check_bounds(self.bounds))
        object.__setattr__(self, "epsilon", check_radius(self.epsilon, self.norm, self.bounds))


@dataclasses.dataclass(frozen=True)
class LinfThreat(_Ball):
    """The L-infinity ball: no pixel moves by more than epsilon.

    A pytree with the leaf `epsilon`, so that a sweep over epsilon does not recompile.

    Attributes:
        epsilon: Radius in units of the pixel range: a number or a scalar of NumPy or JAX, also a traced one.
        bounds: Smallest and largest valid pixel.

    Raises:
        UserError: Epsilon is known and negative, not finite, or beyond the range but up to 255 (grey levels; a larger
            one allows every image), or bounds are not two finite numbers in ascending order.

    >>> LinfThreat(8)
    Traceback (most recent call last):
    robust_gan.errors.UserError: epsilon is 8, but pixels are in [0, 1]: for 8 grey levels of 255 write 8/255 (0.03137)
    """

    epsilon: float | jax.Array
    bounds: tuple[float, float] = (0.0, 1.0)
    norm: ClassVar[str] = "linf"


@dataclasses.dataclass(frozen=True)
class L2Threat(_Ball):
    """The L2 ball: the perturbation of an image has a Euclidean norm of at most epsilon.

    Attributes:
        epsilon: Radius in units of the pixel range: a number or a scalar of NumPy or JAX, also a traced one.
        bounds: Smallest and largest valid pixel.

    Raises:
        UserError: Epsilon is known and negative or not finite, or bounds are not two finite numbers in
            ascending order. Attacks also refuse an epsilon beyond the diagonal of the range of the images.

    >>> L2Threat(-0.5)
    Traceback (most recent call last):
    robust_gan.errors.UserError: epsilon must be a finite number of at least 0, not -0.5
    """

    epsilon: float | jax.Array
    bounds: tuple[float, float] = (0.0, 1.0)
    norm: ClassVar[str] = "l2"


def _unchecked(kind: type, epsilon: Any, bounds: tuple[float, float]) -> Any:
    """Returns a threat model without checks: JAX builds pytrees of tracers, axis specifications and placeholders."""
    threat: Any = object.__new__(kind)
    object.__setattr__(threat, "epsilon", epsilon)
    object.__setattr__(threat, "bounds", bounds)
    return threat


# Not register_dataclass: it makes the structures of two classes with the same fields equal, and when their hashes
# collide too, jit runs the code that was compiled for the other norm.
def _register(kind: Any) -> None:
    jax.tree_util.register_pytree_with_keys(
        kind,
        lambda threat: (((jax.tree_util.GetAttrKey("epsilon"), threat.epsilon),), (threat.norm, threat.bounds)),
        lambda static, leaves: _unchecked(kind, next(iter(leaves)), static[1]),
    )


_register(LinfThreat)
_register(L2Threat)


def known(value: Any) -> np.ndarray | None:
    """Returns the values of an array, or None for one that is traced or on another process's devices.

    >>> known(jnp.ones(2)).tolist(), jax.eval_shape(lambda x: x if known(x) is None else 0, 1.0).shape
    ([1.0, 1.0], ())
    """
    if isinstance(value, jax.core.Tracer) or (isinstance(value, jax.Array) and not value.is_fully_addressable):
        return None
    return np.asarray(value)


def check_bounds(bounds: Any) -> tuple[float, float]:
    """Returns the smallest and the largest valid pixel as floats.

    Args:
        bounds: Two numbers.

    Raises:
        UserError: They are not two static, finite numbers in ascending order.

    >>> check_bounds([0, 255])
    (0.0, 255.0)
    """
    try:
        low, high = (math.nan if isinstance(value, str | bool | np.bool_) else float(value) for value in bounds)
    except (TypeError, ValueError, OverflowError, jax.errors.ConcretizationTypeError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise UserError(f"bounds must be the smallest and the largest valid pixel, as (0, 1) is, not {bounds!r}")
    return low, high


def check_radius(epsilon: Any, norm: str, bounds: tuple[float, float], num_pixels: int = 0) -> Any:
    """Returns a checked radius, as a float if it is a number of Python or NumPy.

    Args:
        epsilon: A real number, an array of them (for `vmap`), or a tracer, which is not checked.
        norm: `linf` or `l2`.
        bounds: Smallest and largest valid pixel.
        num_pixels: Values in an image, for the diagonal of its range in L2; 0 if unknown.

    Raises:
        UserError: It is no real number, negative, not finite, or beyond the range but up to 255 (grey levels).

    >>> check_radius(np.float32(0.5), "linf", (0.0, 1.0)), check_radius(1, "l2", (0.0, 1.0))
    (0.5, 1.0)
    """
    wrong = UserError(f"epsilon must be a finite number of at least 0, not {epsilon!r}")
    array = isinstance(epsilon, np.ndarray | np.generic | jax.Array)
    if not array and (isinstance(epsilon, bool) or not isinstance(epsilon, numbers.Real)):
        raise wrong
    if array and not (jnp.issubdtype(epsilon.dtype, jnp.floating) or jnp.issubdtype(epsilon.dtype, jnp.integer)):
        raise wrong
    values = known(epsilon) if array else np.asarray(float(epsilon))
    if values is None or not values.size:
        return epsilon
    values = values.astype(np.float64)
    if not np.all((values >= 0) & (values < math.inf)):
        raise UserError(f"epsilon must be a finite number of at least 0, not {epsilon}")
    low, high = bounds
    limit = (high - low) * (1.0 if norm == "linf" else math.sqrt(num_pixels) if num_pixels else math.inf)
    largest = float(values.max())
    if limit * (1 + 1e-6) < largest <= 255:  # A larger one allows every image.
        if bounds == (0.0, 1.0):
            raise UserError(
                f"epsilon is {largest:g}, but pixels are in [0, 1]: for {largest:g} grey levels of 255 "
                f"write {largest:g}/255 ({largest / 255:.4g})"
            )
        raise UserError(f"epsilon is {largest:g}, but no two images in [{low:g}, {high:g}] are farther apart than "
                        f"{limit:g} in {norm}")  # fmt: skip
    return epsilon if isinstance(epsilon, jax.Array) or values.ndim else float(values)


def check_threat(threat: Any, num_pixels: int = 0) -> None:
    """Raises `UserError` unless this is a threat model with one valid radius.

    Args:
        threat: The threat model.
        num_pixels: Values in an image, for the largest radius of L2; 0 if unknown.

    Raises:
        UserError: It has another norm, several radii, or a known radius that is invalid.

    >>> check_threat(0.1)
    Traceback (most recent call last):
    robust_gan.errors.UserError: threat must be LinfThreat(epsilon) or L2Threat(epsilon), not 0.1
    """
    if getattr(threat, "norm", None) not in ("linf", "l2"):
        raise UserError(f"threat must be LinfThreat(epsilon) or L2Threat(epsilon), not {threat!r}")
    if jnp.shape(threat.epsilon) != ():
        raise UserError(
            f"epsilon must be one number for all images, not an array {jnp.shape(threat.epsilon)}: "
            "map over several radii with jax.vmap"
        )
    if threat.norm == "l2" and num_pixels:
        check_radius(threat.epsilon, threat.norm, threat.bounds, num_pixels)


def check_images(images: jax.Array, threat: ThreatModel) -> None:
    """Raises `UserError` for images that are not floats within the bounds of the threat model.

    Args:
        images: `[B, ...]`. Their values are checked only outside compiled functions.
        threat: The threat model, for its bounds.

    Raises:
        UserError: They are not floats, or some pixel is not finite or out of the bounds by more than a millionth of
            their width.

    >>> check_images(jnp.array([[2.0]]), LinfThreat(0.1))
    Traceback (most recent call last):
    robust_gan.errors.UserError: pixels must be in [0, 1], but range from 2 to 2: divide by 255, or give the threat \
model their bounds
    """
    low, high = threat.bounds
    if not jnp.issubdtype(images.dtype, jnp.floating):
        remedy = ": divide by 255" if images.dtype == jnp.uint8 and (low, high) == (0.0, 1.0) else ""
        raise UserError(f"images must be floats between {low} and {high}, not {images.dtype}{remedy}")
    values, slack = known(images), 1e-6 * (high - low)
    if values is None or not values.size:
        return
    least, greatest = (float(extreme) for extreme in (values.min(), values.max()))  # NaN where any pixel is.
    if not -math.inf < least <= greatest < math.inf:
        raise UserError("images must be finite, but hold NaN or infinite pixels")
    if least < low - slack or greatest > high + slack:
        remedy = "normalise inside the model" if least < low - slack else "divide by 255"
        raise UserError(
            f"pixels must be in [{low:g}, {high:g}], but range from {least:g} to {greatest:g}: {remedy}, "
            "or give the threat model their bounds"
        )


def from_config(config: ThreatConfig) -> LinfThreat | L2Threat:
    """Returns the threat model of a configuration.

    >>> from_config(ThreatConfig(norm="l2", epsilon=0.5))
    L2Threat(epsilon=0.5, bounds=(0.0, 1.0))
    """
    return LinfThreat(config.epsilon) if config.norm == "linf" else L2Threat(config.epsilon)


def scaled(threat: ThreatModel, factor: float | jax.Array) -> ThreatModel:
    """Returns the threat model with `factor` times its epsilon, which may exceed the range.

    >>> scaled(LinfThreat(0.25), 2.0)
    LinfThreat(epsilon=0.5, bounds=(0.0, 1.0))
    """
    if isinstance(threat, _Ball):
        return _unchecked(type(threat), threat.epsilon * factor, threat.bounds)
    return dataclasses.replace(threat, epsilon=threat.epsilon * factor)  # type: ignore[type-var]  # A user's own.


def whole_range(threat: ThreatModel, image_shape: Sequence[int]) -> ThreatModel:
    """Returns the threat model with the smallest radius that allows every image.

    Args:
        threat: Its norm and bounds are used.
        image_shape: `[H, W, C]`.

    >>> whole_range(L2Threat(0.5), (8, 8, 1)), whole_range(LinfThreat(0.5, bounds=(-1.0, 1.0)), (8, 8, 1)).epsilon
    (L2Threat(epsilon=8.0, bounds=(0.0, 1.0)), 2.0)
    """
    low, high = map(float, threat.bounds)
    farthest = (high - low) * (1.0 if threat.norm == "linf" else math.prod(image_shape) ** 0.5)
    return dataclasses.replace(threat, epsilon=farthest)  # type: ignore[type-var]  # They all are such.


def project(adversarial: jax.Array, images: jax.Array, threat: ThreatModel) -> jax.Array:
    """Projects points onto the ball around the images, and then onto the valid range.

    Args:
        adversarial: `[B, ...]`, any points; NaN stays NaN.
        images: `[B, ...]`, the centres, inside the range.
        threat: The threat model.

    Returns:
        `[B, ...]` of the dtype of `images`. In L-infinity the nearest such point; in L2 the ball is projected onto
        first and the range second, which ends inside both. Differentiable, also on the border of ball and range,
        where the gradient is that of the inside.

    Raises:
        UserError: The images are not floats, are known to be out of the range, or have another shape than the points.

    Guarantees:
        `test_project_stays_in_the_ball_and_the_range`: within epsilon + 2**-24 of the image, computed in float64, and
            inside the bounds, for float32 and bfloat16, at epsilon 0 and at saturated pixels.
        `test_project_is_idempotent`.

    >>> project(jnp.array([[0.9, -0.5]]), jnp.array([[0.5, 0.0]]), LinfThreat(0.25)).tolist()
    [[0.75, 0.0]]
    """
    check_threat(threat)
    check_images(images, threat)
    if adversarial.shape != images.shape:
        raise UserError(f"the points must have the shape of the images, {images.shape}, not {adversarial.shape}")
    compute_dtype = get_compute_dtype(images.dtype)
    centre, moved = images.astype(compute_dtype), adversarial.astype(compute_dtype)
    epsilon = jnp.asarray(threat.epsilon, compute_dtype)
    if threat.norm == "linf":
        moved = _clip(moved, centre - epsilon, centre + epsilon)
    else:
        delta = jnp.clip(moved - centre, -1e30, 1e30)
        norm = l2_norm(delta)
        # The margins absorb the rounding of the norm; the first is smaller, so that the projection is idempotent.
        outside = norm > epsilon * (1 - 2.0**-21)
        step = expand(epsilon * (1 - 2.0**-20) / jnp.where(outside, norm, 1.0), delta) * delta
        shrunk = _round_towards(centre + step, centre, jnp.abs(step), compute_dtype)
        moved = jnp.where(expand(outside, delta), shrunk, moved)
    moved = _clip(moved, *threat.bounds)
    return (
        moved if images.dtype == compute_dtype else _round_towards(moved, centre, jnp.abs(moved - centre), images.dtype)
    )


def perturb(images: jax.Array, noise: jax.Array, threat: ThreatModel) -> jax.Array:
    """Perturbs images by noise in [-1, 1]: the result is inside the ball and the valid range.

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
    compute_dtype = get_compute_dtype(images.dtype)
    noise = noise.astype(compute_dtype)
    if threat.norm == "l2":
        noise = noise / expand(jnp.maximum(l2_norm(noise), 1.0), noise)
    return project(images.astype(compute_dtype) + jnp.asarray(threat.epsilon, compute_dtype) * noise, images, threat)


def perturb_rescaled(images: jax.Array, noise: jax.Array, threat: ThreatModel) -> jax.Array:
    """Maps noise onto the valid pixels within epsilon of each pixel: -1 to the least of them, 1 to the greatest.

    Where `perturb` clips, noise beyond the border of the range has no effect and no gradient; here it has. Noise of 0
    is mapped to the middle of this interval, which near the border of the range is not the image.

    Args:
        images: `[B, ...]`, inside the range.
        noise: `[B, ...]` in [-1, 1].
        threat: An L-infinity threat model.

    Returns:
        `[B, ...]` of the dtype of `images`.

    Raises:
        ValueError: The threat model is not L-infinity: only there are the valid perturbations a box.

    >>> perturb_rescaled(jnp.array([[0.5, 0.0]]), jnp.array([[1.0, 0.0]]), LinfThreat(0.25)).tolist()
    [[0.75, 0.125]]
    """
    if threat.norm != "linf":
        raise ValueError(f"perturb_rescaled needs an L-infinity threat model, not {threat.norm!r}")
    compute_dtype = get_compute_dtype(images.dtype)
    centre, epsilon = images.astype(compute_dtype), jnp.asarray(threat.epsilon, compute_dtype)
    low, high = jnp.maximum(centre - epsilon, threat.bounds[0]), jnp.minimum(centre + epsilon, threat.bounds[1])
    return project(low + 0.5 * (high - low) * (1 + noise.astype(compute_dtype)), images, threat)


def random_start(keys: jax.Array, images: jax.Array, threat: ThreatModel) -> jax.Array:
    """Draws a point uniformly from the ball around each image, clipped to the range.

    Args:
        keys: One key, or one per image.
        images: `[B, ...]`.
        threat: The threat model.

    Returns:
        `[B, ...]`.

    Raises:
        UserError: As `project`, or the number of keys is wrong.

    >>> x = jnp.full((2, 4, 4, 1), 0.5)
    >>> start = random_start(jax.random.split(jax.random.key(0), 2), x, LinfThreat(0.1))
    >>> bool(jnp.all(jnp.abs(start - x) <= 0.1)), bool(jnp.any(start != x))
    (True, True)
    """
    check_threat(threat)
    check_images(images, threat)
    keys = prng.per_image_keys(keys, images.shape[0])
    shape, compute_dtype = images.shape[1:], get_compute_dtype(images.dtype)
    if threat.norm == "linf":
        delta = prng.uniform_per_image(keys, shape, compute_dtype, -1.0, 1.0)
    else:
        # A normalised Gaussian is uniform on the sphere; the radius of a uniform point in the d-ball is u ** (1 / d).
        direction_keys, radius_keys = prng.split_per_image(keys, 2)
        direction = prng.normal_per_image(direction_keys, shape, compute_dtype)
        radius = prng.uniform_per_image(radius_keys, (), compute_dtype) ** (1 / max(1, math.prod(shape)))
        delta = direction * expand(radius / l2_norm(direction), direction)
    return project(images + jnp.asarray(threat.epsilon, compute_dtype) * delta, images, threat)


def steepest_ascent(gradient: jax.Array, threat: ThreatModel) -> jax.Array:
    """Computes the direction of steepest ascent, of unit norm: sign(g), or g / ||g||.

    Args:
        gradient: `[B, ...]`.
        threat: The threat model, for its norm.

    Returns:
        `[B, ...]`, at least float32; zero where the gradient of an image is zero, and where it is NaN.

    >>> steepest_ascent(jnp.array([[3.0, -4.0]]), L2Threat(1.0)).tolist()
    [[0.6000000238418579, -0.800000011920929]]
    """
    compute_dtype = get_compute_dtype(gradient.dtype)
    gradient = jnp.nan_to_num(gradient.astype(compute_dtype), posinf=1e30, neginf=-1e30)
    if threat.norm == "linf":
        return jnp.sign(gradient)
    norm = l2_norm(gradient)
    return gradient / expand(jnp.where(norm > 0, norm, 1.0), gradient)


def distance(adversarial: jax.Array, images: jax.Array, threat: ThreatModel) -> jax.Array:
    """Computes the norm of each perturbation: `[B]`; NaN where a pixel is NaN.

    Args:
        adversarial: `[B, ...]`.
        images: `[B, ...]`, the clean images.
        threat: The threat model, for its norm.

    >>> distance(jnp.array([[0.3, 0.4]]), jnp.zeros((1, 2)), L2Threat(1.0)).tolist()
    [0.5]
    """
    compute_dtype = get_compute_dtype(images.dtype)
    delta = adversarial.astype(compute_dtype) - images.astype(compute_dtype)
    axes = tuple(range(1, delta.ndim))
    size = jnp.max(jnp.abs(delta), axis=axes) if threat.norm == "linf" else l2_norm(delta)
    # A maximum over many numbers loses NaN on a CPU (jaxlib 0.10).
    return jnp.where(jnp.any(jnp.isnan(delta), axis=axes), jnp.nan, size)


def dual_norm(gradient: jax.Array, threat: ThreatModel) -> jax.Array:
    """Computes how much a linear function grows over a step of unit size: `[B, ...]` to `[B]`.

    Args:
        gradient: Of the function.
        threat: The threat model, for its norm.

    >>> dual_norm(jnp.array([[3.0, -4.0]]), LinfThreat(0.1)).tolist()
    [7.0]
    """
    if threat.norm == "linf":
        return jnp.sum(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)))
    return l2_norm(gradient)


def l2_norm(delta: jax.Array) -> jax.Array:
    """Computes the Euclidean norm of each row, with gradient 0 (not NaN) at 0: `[B, ...]` to `[B]`.

    The squares of tiny and of huge entries neither underflow nor overflow.

    >>> l2_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [5.0, 0.0]
    """
    largest = jnp.max(jnp.abs(delta), axis=tuple(range(1, delta.ndim)))
    # Quotients of subnormal numbers are inexact; the scale is a constant to the derivatives.
    positive = largest >= jnp.finfo(delta.dtype).tiny
    scale = jax.lax.stop_gradient(jnp.where(positive, largest, 1.0))
    square = jnp.sum(jnp.square(delta / expand(scale, delta)), axis=tuple(range(1, delta.ndim)))
    return jnp.where(positive, scale * jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _clip(values: jax.Array, low: jax.typing.ArrayLike, high: jax.typing.ArrayLike) -> jax.Array:
    """Clips with gradient 1 on the border, where `jnp.clip` has 1/2: a generator's noise is often exactly 1."""
    return jnp.where(values < low, low, jnp.where(values > high, high, values))


def expand(per_image: jax.Array, like: jax.Array) -> jax.Array:
    """Returns values `[B]` as `[B, 1, ..., 1]`, which broadcast over arrays of the images' rank.

    >>> expand(jnp.zeros(2), jnp.zeros((2, 28, 28, 1))).shape
    (2, 1, 1, 1)
    """
    return per_image.reshape(per_image.shape + (1,) * (like.ndim - per_image.ndim))


def _round_towards(point: jax.Array, centre: jax.Array, limit: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Casts so that no coordinate ends farther from the centre than the limit: 8/255 is two ulps of bfloat16 at 1."""
    rounded = point.astype(dtype)
    # Rounding has no derivative, and nextafter none in JAX; the gradient is that of the cast.
    fixed, centre, limit = jax.lax.stop_gradient((rounded, centre, limit))
    overshoots = jnp.abs(fixed.astype(centre.dtype) - centre) > limit
    return rounded + jnp.where(overshoots, jnp.nextafter(fixed, centre.astype(dtype)) - fixed, 0)

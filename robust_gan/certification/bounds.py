"""Certified robustness in the L-infinity ball: bounds of a model's outputs and of the differences of its logits."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robust_gan.certification import interval, linear
from robust_gan.certification.interval import Interval
from robust_gan.certification.program import Value, trace
from robust_gan.errors import UserError
from robust_gan.losses import check_labels
from robust_gan.threat_model import check_images
from robust_gan.types import LogitsFn, ThreatModel, get_compute_dtype

METHODS = ("ibp", "crown_ibp", "crown")
"""Interval bounds; the better of them and linear bounds; and the best, with linear bounds before each ReLU too."""


def input_box(images: jax.Array, threat: ThreatModel) -> Interval:
    """Returns the box of all images that the threat model allows: `[B, H, W, C]`.

    It is wider than the ball by a rounding error, as attacks are allowed to be.

    Raises:
        UserError: The threat model is of another norm than L-infinity, or the images are not within its bounds.

    >>> from robust_gan import LinfThreat
    >>> box = input_box(jnp.full((1, 1, 1, 1), 0.9), LinfThreat(0.25))
    >>> round(box.lower.item(), 4), box.upper.item()
    (0.65, 1.0)
    """
    if threat.norm != "linf":
        raise UserError(
            f"interval bounds need the norm linf, but the threat model has {threat.norm}: use randomised smoothing"
        )
    check_images(jnp.asarray(images), threat)
    low, high = threat.bounds
    images = jnp.asarray(images, get_compute_dtype(jnp.result_type(images)))
    slack = 4 * float(jnp.finfo(images.dtype).eps) * max(abs(low), abs(high))
    epsilon = jnp.asarray(threat.epsilon, images.dtype) + slack
    return Interval(jnp.clip(images - epsilon, low, high), jnp.clip(images + epsilon, low, high))


def interval_bounds(
    fn: Callable[[jax.Array], jax.Array], images: jax.Array, threat: ThreatModel
) -> tuple[jax.Array, jax.Array]:
    """Computes bounds of a function of images over all images that the threat model allows.

    Args:
        fn: A function of JAX from images `[1, H, W, C]` to an array `[1, ...]`, which treats each image by itself.
        images: `[B, H, W, C]`.
        threat: The threat model, of the norm L-infinity.

    Returns:
        The lower and the upper bounds, `[B, ...]`.

    Raises:
        UserError: The function has an operation without a rule, returns no floats, or the norm is another.

    Guarantees:
        `test_no_point_of_the_box_leaves_the_bounds`, for what the function computes in float32 (`interval`).

    >>> from robust_gan import LinfThreat
    >>> lower, upper = interval_bounds(lambda x: x.sum((1, 2)), jnp.full((1, 2, 1, 1), 0.5), LinfThreat(0.25))
    >>> jnp.round(lower, 4).tolist(), jnp.round(upper, 4).tolist()
    ([[0.5]], [[1.5]])
    """
    boxes = input_box(images, threat)
    program = trace(fn, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))

    def bounds(box: Interval) -> Interval:
        result = interval.run(program, jax.tree.map(lambda side: side[None], box))
        return jax.tree.map(lambda side: side[0], interval.as_interval(_read(result, program.output)))

    lower, upper = jax.vmap(bounds)(boxes)
    return lower, upper


def margin_bounds(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, threat: ThreatModel, *, method: str = "ibp"
) -> jax.Array:
    """Computes lower bounds of the logit of the label less every other logit: `[B, K]`, 0 at the label.

    The operations after the last nonlinear one are bounded together: an affine model is bounded exactly.

    Args:
        logits_fn: The classifier, which treats each image by itself.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`.
        threat: The threat model, of the norm L-infinity.
        method: `ibp`: interval bounds. `crown_ibp`: the better of them and of linear bounds through ReLUs, at the cost
            of one backward pass for each class. `crown`: the best of these and of linear bounds with linear bounds
            before each ReLU, at the cost of two backward passes for each element before one, image by image.

    Raises:
        UserError: As `interval_bounds` does; the method is unknown, or labels are no integers in 0..K-1.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 1 + x.sum((1, 2, 3))], axis=-1)
    >>> jnp.round(margin_bounds(logits_fn, jnp.ones((1, 2, 1, 1)), jnp.array([1]), LinfThreat(0.5)), 3).tolist()
    [[1.0, 0.0]]
    """
    if method not in METHODS:
        raise UserError(f"the methods of certification by bounds are {', '.join(METHODS)}, not {method!r}")
    boxes, labels = input_box(images, threat), check_labels(labels, images.shape[:1])
    program = trace(logits_fn, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))

    def bounds(box: Interval, label: jax.Array) -> jax.Array:
        values = interval.run(program, jax.tree.map(lambda side: side[None], box))
        num_classes = interval.as_interval(_read(values, program.output)).lower.shape[-1]
        rows = (jax.nn.one_hot(label, num_classes) - jnp.eye(num_classes))[:, None, :]
        found = [linear.lower_bounds(program, values, rows)]
        if method != "ibp":
            found.append(linear.lower_bounds(program, values, rows, relax=True))
        if method == "crown":
            tight = linear.tighten(program, jax.tree.map(lambda side: side[None], box))
            found += [linear.lower_bounds(program, tight, rows, relax=relax) for relax in (False, True)]
        return jnp.where(jnp.arange(num_classes) == label, 0.0, functools.reduce(jnp.fmax, found))

    if method == "crown":  # All rows of all images at once would not fit into memory.
        found = jax.lax.map(lambda one: bounds(*one), (boxes, labels))
    else:
        found = jax.vmap(bounds)(boxes, labels)
    check_labels(labels, found.shape)
    return found


def certify(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, threat: ThreatModel, *, method: str = "ibp"
) -> jax.Array:
    """Returns whether no image that the threat model allows is misclassified: bool `[B]`.

    Args:
        logits_fn: The classifier, which treats each image by itself.
        images: `[B, H, W, C]`.
        labels: int32 `[B]`, the true labels.
        threat: The threat model, of the norm L-infinity.
        method: Of `METHODS`, see `margin_bounds`.

    Returns:
        True where the image is proven robust. False says nothing about the model.

    Raises:
        UserError: As `margin_bounds` does.

    Guarantees:
        `test_a_certified_image_is_not_misclassified_by_any_attack`.

    >>> from robust_gan import LinfThreat
    >>> logits_fn = lambda x: jnp.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], axis=-1)
    >>> images = jnp.array([0.7, 0.9]).reshape(2, 1, 1, 1)
    >>> certify(logits_fn, images, jnp.array([0, 0]), LinfThreat(0.25)).tolist()
    [False, True]
    """
    margins = margin_bounds(logits_fn, images, labels, threat, method=method)
    others = jnp.arange(margins.shape[-1]) != labels[:, None]
    return jnp.all((margins > 0) | ~others, axis=-1) & ~jnp.all(others, axis=-1)


def _read(values: dict[Value, Any], output: Any) -> Any:
    return values[output] if isinstance(output, Value) else output

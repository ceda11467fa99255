"""The checks of an attack's arguments.

Shapes and types are always checked, values only outside compiled functions. The checks never call the classifier: its
logits are checked where the attack computes them.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import prng, threat_model
from robust_gan.attacks._eot import apply_logits, is_randomised, needs_keys
from robust_gan.errors import UserError
from robust_gan.losses import check_labels, check_logits
from robust_gan.types import LogitsFn, LossFn, PyTree


def checked(
    attack: Callable[..., Any] | None = None, *, randomised: bool = False, optional: Sequence[str] = ()
) -> Callable[..., Any]:
    """Returns an attack that checks its arguments and the logits, and converts NumPy arrays to JAX arrays.

    Args:
        attack: `(logits_fn, key, images, labels, threat, **settings)`.
        randomised: Whether it takes classifiers that are `attacks.randomised`.
        optional: Which of `logits_fn`, `key` and `labels` may be None.

    Returns:
        The attack, which raises `UserError` for an invalid argument.

    Raises:
        UserError: When it is called: an argument is invalid.

    >>> from robust_gan import LinfThreat
    >>> attack = checked(lambda logits_fn, key, images, labels, threat: logits_fn(images))
    >>> attack(lambda x: x[:, 0, 0], jax.random.key(0), jnp.zeros((2, 1, 1, 3)), jnp.array([0, 7]), LinfThreat(0.1))
    Traceback (most recent call last):
    robust_gan.errors.UserError: labels must be in 0..2, but range from 0 to 7
    """
    if attack is None:
        return functools.partial(checked, randomised=randomised, optional=optional)
    name = getattr(attack, "__name__", "this attack")

    @functools.wraps(attack)
    def wrapper(logits_fn, key, images, labels, threat, **settings):
        for argument, value in (("logits_fn", logits_fn), ("key", key), ("labels", labels)):
            if value is None and argument not in optional:
                raise UserError(f"{name} needs {argument}, not None")
        images, labels = check_batch(images, labels, threat)
        if key is not None:
            key = prng.threefry(key, images.shape[0])
        if logits_fn is not None:
            if not randomised and is_randomised(logits_fn):
                raise UserError(f"{name} takes no randomised classifier: take apgd or apgd_targeted")
            logits_fn = checked_logits(logits_fn, labels)
        if settings.get("target") is not None:
            settings["target"] = check_target(settings["target"], labels, count_classes(logits_fn, images, key))
        return attack(logits_fn, key, images, labels, threat, **settings)

    return wrapper


def check_batch(images: Any, labels: Any, threat: Any) -> tuple[jax.Array, Any]:
    """Returns images and labels as JAX arrays.

    Args:
        images: Floats `[B, ...]`, B at least 1, inside the bounds of the threat model.
        labels: Integers `[B]`, or None where they are not used.
        threat: The threat model.

    Raises:
        UserError: One of them has a wrong type or shape, or an invalid value.

    >>> from robust_gan import LinfThreat
    >>> check_batch(np.zeros((1, 2), np.float32), np.array([-1]), LinfThreat(0.1))
    Traceback (most recent call last):
    robust_gan.errors.UserError: labels must be class numbers from 0, but range from -1 to -1
    """
    threat_model.check_threat(threat)
    shape = getattr(images, "shape", ())
    if not hasattr(images, "dtype") or len(shape) < 2 or 0 in shape:
        given = f"an array of shape {shape}" if hasattr(images, "dtype") else type(images).__name__
        raise UserError(f"images must be a non-empty array [B, H, W, C], not {given}")
    threat_model.check_images(images, threat)
    threat_model.check_threat(threat, math.prod(shape[1:]))
    if labels is not None:
        labels = check_labels(labels, shape[:1])
    return jnp.asarray(images), labels


def checked_logits(logits_fn: LogitsFn, labels: jax.Array | None = None) -> LogitsFn:
    """Returns the classifier with checked logits of at least float32.

    Args:
        logits_fn: The classifier.
        labels: int32 `[B]`; where they are known, they must be in 0..K-1.

    Raises:
        UserError: It is not callable, or (when called) its result is not `[B, K]` or a label is not in 0..K-1.

    >>> checked_logits(lambda x: x.sum())(jnp.zeros((2, 1, 1, 3)))
    Traceback (most recent call last):
    robust_gan.errors.UserError: logits must be numbers [B, K], not float32 ()
    """
    if not callable(logits_fn):
        raise UserError(f"logits_fn must be a function from images to logits, not {type(logits_fn).__name__}")
    if needs_keys(logits_fn):
        raise UserError("logits_fn needs the argument keys: mark it as random with attacks.randomised(logits_fn)")

    def checked_fn(points, **keywords):
        # A copy, for a classifier may donate its argument; compiled code does not copy.
        logits = check_logits(logits_fn(jnp.array(points, copy=True), **keywords))
        if logits.shape[0] != points.shape[0]:
            raise UserError(f"logits_fn returned {logits.shape[0]} rows of logits for {points.shape[0]} images")
        if labels is not None:
            check_labels(labels, (labels.shape[0], logits.shape[1]))
        return logits

    checked_fn.takes_keys = is_randomised(logits_fn)  # type: ignore[attr-defined]
    return checked_fn


def count_classes(logits_fn: LogitsFn, images: jax.Array, key: jax.Array | None) -> int:
    """Returns the number of classes of a classifier, which is traced but not run.

    >>> count_classes(lambda x: x.reshape(len(x), -1), jnp.zeros((1, 1, 1, 3)), None)
    3
    """
    if not is_randomised(logits_fn):
        return jax.eval_shape(logits_fn, images).shape[-1]
    assert key is not None  # Randomised classifiers need keys.
    keys = prng.per_image_keys(key, images.shape[0])
    return jax.eval_shape(functools.partial(apply_logits, logits_fn), images, keys).shape[-1]


def check_target(target: Any, labels: jax.Array, num_classes: int) -> jax.Array:
    """Returns the target class of each image, int32 `[B]`.

    Args:
        target: A class, or integers `[B]`.
        labels: int32 `[B]`.
        num_classes: K.

    Raises:
        UserError: A target is not in 0..K-1, or known to be the label of its image.

    >>> check_target(2, jnp.array([0, 2]), 3)
    Traceback (most recent call last):
    robust_gan.errors.UserError: target must differ from the label of each image, but is 2 for an image of class 2
    """
    target = jnp.broadcast_to(jnp.asarray(target), labels.shape) if jnp.ndim(target) == 0 else target
    target = check_labels(target, (labels.shape[0], num_classes), "target")
    classes, aims = threat_model.known(labels), threat_model.known(target)
    if classes is not None and aims is not None and (same := classes == aims).any():
        equal = int(classes[same][0])
        raise UserError(
            f"target must differ from the label of each image, but is {equal} for an image of class {equal}"
        )
    return target


def aim(labels: jax.Array, target: jax.Array | None, loss_fn: LossFn) -> tuple[jax.Array, LossFn, bool]:
    """Returns the classes that the loss is computed for, the loss to be maximised, and whether they are targets.

    Args:
        labels: int32 `[B]`.
        target: int32 `[B]`, or None; with targets the loss of the target class is minimised.
        loss_fn: `(logits, labels, *loss_args) -> losses [B]`.

    >>> classes, loss_fn, targeted = aim(jnp.array([0]), jnp.array([1]), lambda logits, labels: logits[:, 0])
    >>> classes.tolist(), loss_fn(jnp.array([[2.0]]), classes).tolist(), targeted
    ([1], [-2.0], True)
    """
    if target is None:
        return labels, loss_fn, False
    return target, lambda logits, labels, *loss_args: -loss_fn(logits, labels, *loss_args), True


def check_counts(least: int = 1, /, **counts: Any) -> None:
    """Raises `UserError` unless all settings are static integers of at least `least`.

    Raises:
        UserError: One is not.

    >>> check_counts(num_steps=np.int64(3))
    >>> check_counts(num_steps=0)
    Traceback (most recent call last):
    robust_gan.errors.UserError: num_steps must be at least 1, not 0
    """
    for name, value in counts.items():
        try:
            if isinstance(value, bool | np.bool_) or operator.index(value) < least:
                raise UserError(f"{name} must be at least {least}, not {value}")
        except TypeError:
            raise UserError(f"{name} must be a whole number that is known when compiling, not {value!r}") from None


def check_size(name: str, value: Any) -> None:
    """Raises `UserError` for a step size that is known and not a positive number.

    Raises:
        UserError: It is not.

    >>> check_size("step_size", -1.0)
    Traceback (most recent call last):
    robust_gan.errors.UserError: step_size must be a positive number, not -1.0
    """
    if isinstance(value, jax.core.Tracer):
        number = None if value.shape == () else math.nan
    else:
        try:
            number = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, ValueError):
            number = math.nan
    if number is not None and not 0 < number < math.inf:
        raise UserError(f"{name} must be a positive number, not {value!r}")


def checked_loss(
    loss_fn: LossFn, logits: Any, labels: jax.Array, loss_args: tuple[PyTree, ...], *, gathered: bool
) -> LossFn:
    """Returns the loss with checked results.

    Args:
        loss_fn: `(logits, labels, *loss_args) -> losses [B]`.
        logits: `[B, K]`, or a `jax.ShapeDtypeStruct` of them.
        labels: int32 `[B]`.
        loss_args: Pytrees of arrays `[B, ...]`, its further arguments.
        gathered: Whether the attack computes losses of some of the images. Then the loss is traced on a single image:
            the shape of the result shows whether it closes over an array of all images, which would be paired wrongly.

    Raises:
        UserError: Some of `loss_args` is not `[B, ...]`, the losses are not floats `[B]`, or the loss closes over an
            array of all images.

    >>> weights = jnp.ones(4)
    >>> closes_over = lambda logits, labels: weights * logits[:, 0]
    >>> checked_loss(closes_over, jnp.zeros((4, 2)), jnp.zeros(4, int), (), gathered=True)
    Traceback (most recent call last):
    robust_gan.errors.UserError: loss_fn gives (4,) for 1 of 4 images: arrays of all images, as targets are, must be \
given by loss_args=(...,) and taken as loss_fn(logits, labels, ...), so that they are gathered
    """
    count = logits.shape[0]
    if not isinstance(loss_args, tuple):
        raise UserError(f"loss_args must be a tuple of arrays [B, ...], not {type(loss_args).__name__}")
    for leaf in jax.tree.leaves(loss_args):
        if jnp.shape(leaf)[:1] != (count,):
            raise UserError(f"loss_args must be arrays [{count}, ...], one row for each image, not {jnp.shape(leaf)}")

    def checked_fn(logits, labels, *loss_args):
        losses = loss_fn(logits, labels, *loss_args)
        if not hasattr(losses, "dtype") or not jnp.issubdtype(losses.dtype, jnp.floating):
            raise UserError(f"loss_fn must return floats [B], not {getattr(losses, 'dtype', type(losses).__name__)}")
        if losses.shape != logits.shape[:1]:
            raise UserError(f"loss_fn must return one loss for each of {logits.shape[0]} images, not {losses.shape}")
        return losses

    if gathered and count > 1:
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), (logits, labels, loss_args))
        try:
            found = str(getattr(jax.eval_shape(lambda x: loss_fn(x[0], x[1], *x[2]), one), "shape", None))
        except (TypeError, ValueError, IndexError) as error:
            found = type(error).__name__
        if found != "(1,)":
            # A loss that is wrong on all images too has an error of its own.
            jax.eval_shape(lambda x: checked_fn(x[0], x[1], *x[2]), (logits, labels, loss_args))
            raise UserError(
                f"loss_fn gives {found} for 1 of {count} images: arrays of all images, as targets are, must be "
                "given by loss_args=(...,) and taken as loss_fn(logits, labels, ...), so that they are gathered"
            )
    return checked_fn


def check_signature(name: str, attack: Any) -> None:
    """Refuses an object that cannot be called as an attack.

    Args:
        name: Of the attack, for the sentence.
        attack: Any object.

    Raises:
        UserError: It is not a function, or takes other arguments.

    >>> check_signature("mine", lambda images, epsilon: images)
    Traceback (most recent call last):
    robust_gan.errors.UserError: mine cannot be called as attack(logits_fn, key, images, labels, threat): too many \
positional arguments
    """
    if not callable(attack):
        raise UserError(f"the attack {name} must be a function, not {type(attack).__name__}")
    try:
        signature = inspect.signature(attack)
    except (TypeError, ValueError):
        return  # Some functions written in C have none.
    try:
        signature.bind(None, None, None, None, None)
    except TypeError as error:
        raise UserError(
            f"{name} cannot be called as attack(logits_fn, key, images, labels, threat): {error}"
            + (": bind it with functools.partial" if "missing" in str(error) else "")
        ) from error


def find_violation(adversarial: Any, images: Any, threat: Any) -> str:
    """Returns why images are not adversarial images of a threat model, in a phrase; empty where they are.

    Args:
        adversarial: The result of an attack; any object.
        images: `[B, ...]`, the clean images.
        threat: The threat model.

    >>> from robust_gan import LinfThreat
    >>> find_violation(np.full((1, 2, 2, 1), 0.7), np.full((1, 2, 2, 1), 0.5), LinfThreat(0.1))
    'leaves the ball: a perturbation has size 0.2, and epsilon is 0.1'
    """
    if not (hasattr(adversarial, "shape") and hasattr(adversarial, "dtype")):
        return f"returns a {type(adversarial).__name__} in place of images"
    if adversarial.shape != images.shape:
        return f"returns an array of shape {adversarial.shape} for images of shape {images.shape}"
    if not jnp.issubdtype(adversarial.dtype, jnp.floating):
        return f"returns {adversarial.dtype} pixels in place of floats"
    found = np.asarray(adversarial).astype(np.float64)
    if not np.isfinite(found).all():
        return "returns pixels that are NaN or infinite"
    low, high = getattr(threat, "bounds", (0.0, 1.0))
    rounding = (high - low) * max(2.0**-22, float(jnp.finfo(adversarial.dtype).eps) / 2)
    if found.min(initial=low) < low - rounding or found.max(initial=high) > high + rounding:
        return f"leaves the range of pixels [{low:g}, {high:g}]: they lie in [{found.min():.4g}, {found.max():.4g}]"
    delta = (found - np.asarray(images).astype(np.float64)).reshape(len(found), -1)
    if threat.norm == "linf":
        size = np.abs(delta).max(initial=0.0)
    else:
        size, rounding = np.linalg.norm(delta, axis=1).max(initial=0.0), rounding * math.sqrt(max(delta.shape[1], 1))
    epsilon = float(threat.epsilon)
    if size > epsilon * (1 + 1e-5) + rounding:
        return f"leaves the ball: a perturbation has size {size:.4g}, and epsilon is {epsilon:.4g}"
    return ""

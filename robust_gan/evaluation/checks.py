"""Checks models and attacks on a few images before an evaluation, so that errors are found before the first attack."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import attacks as attacks_lib
from robust_gan import prng
from robust_gan.attacks import input_gradient
from robust_gan.attacks._checks import check_signature, find_violation
from robust_gan.config.imports import describe
from robust_gan.data.array_files import to_unit
from robust_gan.errors import UserError, one_line
from robust_gan.evaluation.batching import in_batches
from robust_gan.evaluation.models import GENERATOR, RETRAINED, EvaluationData, Model, check_deterministic
from robust_gan.types import Attack, LogitsFn, ThreatModel

_FEW = 8
"""Number of images on which an attack of the user's own is run."""
_QUERIES = ("square", "spsa", "uniform_noise")
"""Attacks that need no gradient of the classifier."""
_IGNORED_BYTE = 255
"""The label that often stands for no class in other libraries."""


def needs_gradient(attack: str) -> bool:
    """Returns whether an attack uses the gradient of the classifier.

    >>> needs_gradient("pgd10"), needs_gradient("square300"), needs_gradient("retrained_generator")
    (True, False, True)
    """
    return attack not in ("clean", GENERATOR) and not attack.startswith(_QUERIES)


def find_missing_derivative(logits_fn: LogitsFn, images: np.ndarray) -> str:
    """Returns the reason why a classifier has no derivative; empty if it has one.

    Args:
        logits_fn: The classifier.
        images: float32 `[B, H, W, C]` in [0, 1]; the gradient is computed at the first one.

    >>> images = np.zeros((1, 2, 2, 3), np.float32)
    >>> find_missing_derivative(lambda x: x.sum((1, 2)), images)
    ''
    >>> find_missing_derivative(lambda x: jnp.floor(x.sum((1, 2))).astype(int), images)
    'its logits are int32'
    """
    one, label = jnp.asarray(images[:1]), jnp.zeros(1, jnp.int32)
    try:
        dtype = jax.eval_shape(logits_fn, one).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            return f"its logits are {dtype}"
        jax.block_until_ready(jax.jit(lambda x, y: input_gradient(logits_fn, x, y))(one, label))
    except Exception as error:  # It is the user's own program, and may raise anything.
        cause = error.__cause__ if isinstance(error, UserError) and error.__cause__ else error  # See `in_batches`.
        return f"{type(cause).__name__}: {one_line(cause)}".rstrip(".")
    return ""


def prepare_model(model: Model, images: np.ndarray, most: int, num_classes: int) -> Model:
    """Checks a classifier on one image, two images and a whole batch, and returns it for any number of images.

    Args:
        model: The model.
        images: uint8 or float `[N, H, W, C]`.
        most: Size of a whole batch on one device. Smaller batches are padded for a classifier that accepts no others.
        num_classes: Least number of classes.

    Returns:
        The model, whose `logits_fn` accepts any number of images and does not change them.

    Raises:
        UserError: The classifier is randomised, fails, or returns invalid logits.

    >>> tried = prepare_model(Model("mine", lambda x: x.sum((1, 2))), np.zeros((5, 4, 4, 3), np.uint8), 4, 3)
    >>> tried.logits_fn(np.zeros((9, 4, 4, 3), np.float32)).shape
    (9, 3)
    >>> prepare_model(Model("mine", lambda x: x[:3].sum((1, 2))), np.zeros((5, 4, 4, 3), np.uint8), 4, 3)
    Traceback (most recent call last):
    robust_gan.errors.UserError: mine must return logits of shape [4, K] for 4 images, not [3, 3]
    """
    check_deterministic(model.name, model.logits_fn)
    whole = to_unit(images[np.arange(most) % len(images)])
    exactly = most > 1 and not _answers(model.logits_fn, whole[:1]) and _answers(model.logits_fn, whole)
    sizes = [most] if exactly else sorted({min(2, most), 1, most})
    first = whole[: most if exactly else min(2, most, len(images))]
    check_outputs(model.name, model.logits_fn, first, num_classes)
    logits_fn = in_batches(model.logits_fn, most, exactly=exactly, name=model.name)
    found = {}
    for size in sizes:
        try:
            # Compiled: uncompiled code may need more memory.
            logits = (jax.jit(logits_fn) if size == most else logits_fn)(jnp.asarray(whole[:size]))
            jax.block_until_ready(logits)
        except jax.errors.JaxRuntimeError as error:
            raise UserError(
                f"{model.name} fails on a batch of {size} images: {one_line(error)}: give a smaller --batch_size"
            ) from error
        except UserError as error:
            raise UserError(f"{error}: give a smaller --batch_size" if size == most > 2 else str(error)) from error
        if logits.ndim != 2 or len(logits) != size:
            raise UserError(
                f"{model.name} must return logits of shape [{size}, K] for {size} images, not {list(logits.shape)}"
            )
        found[size] = f"{logits.shape[1]} logits of {logits.dtype}"
    if len(set(found.values())) > 1:
        outputs = ", ".join(f"{what} for a batch of {size}" for size, what in found.items())
        raise UserError(f"{model.name} returns {outputs}: return the same number and type for every batch")
    return dataclasses.replace(model, logits_fn=logits_fn)


def check_outputs(name: str, logits_fn: LogitsFn, images: np.ndarray, num_classes: int) -> None:
    """Checks that the outputs of a classifier are logits.

    Args:
        name: Name of the model, for the error.
        logits_fn: The classifier.
        images: float32 `[N, H, W, C]` in [0, 1], a few.
        num_classes: Least number of classes.

    Raises:
        UserError: The classifier fails, or its outputs have another shape or are NaN or infinite; -inf masks a class.

    >>> check_outputs("mine", lambda x: x.sum((1, 2)), np.zeros((2, 4, 4, 3), np.float32), 3)
    """
    shape = (len(images), *images.shape[1:])

    def batch():  # A copy each time: the model may donate its argument.
        return jnp.array(images, jnp.float32)

    try:
        found = logits_fn(batch())
    except Exception as error:  # It is the user's own program, and may raise anything.
        raise UserError(
            f"{name} fails on float32 images of shape {shape}: {describe(error)}{_in_training(error)}"
        ) from error
    if not hasattr(found, "dtype") or not hasattr(found, "shape"):
        hint = ", model(images).logits" if hasattr(found, "logits") else ""
        if isinstance(found, dict) and "logits" in found:
            hint = ", model(images)['logits']"
        raise UserError(f"{name} returns a {type(found).__name__} for images: return the logits alone{hint}")
    try:
        jax.eval_shape(lambda x: logits_fn(x), jax.ShapeDtypeStruct(shape, jnp.float32))
    except Exception as error:
        if hint := _in_training(error):
            raise UserError(f"{name} changes its own state when it is called ({describe(error)}){hint}") from error
        raise UserError(
            f"{name} cannot be traced by JAX, so that nothing can attack it ({describe(error)}): write it in JAX, see "
            "the question on PyTorch in docs/faq.md"
        ) from error
    logits = np.asarray(found)
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < max(2, num_classes):
        hint = ""
        if logits.ndim == 2 and logits.shape[1] == num_classes - 1:
            hint = f": the largest label is {num_classes - 1}; are the classes numbered from 0?"
        elif logits.ndim == 2 and num_classes == _IGNORED_BYTE + 1:
            hint = (f": the largest label is {_IGNORED_BYTE}, which often stands for 'ignore'; "
                    f"leave these images out, images[labels != {_IGNORED_BYTE}]")  # fmt: skip
        elif logits.ndim == 1 and len(images) > 1:
            hint = ": one number per class and image; jax.vmap a function of one image"
        raise UserError(
            f"{name} must return logits of shape [{len(images)}, K], K at least {max(2, num_classes)}, not "
            f"{list(logits.shape)}{hint}"
        )
    # Of some images only, NaN and infinity have an alarm that counts them.
    if np.isnan(np.asarray(logits, np.float64)).any(-1).all():
        raise UserError(f"{name} returns logits that are NaN on the first images")
    if not np.isfinite(np.asarray(logits, np.float64).max(-1)).any():
        raise UserError(f"{name} returns logits that are infinite on the first images (a class at -inf is masked out)")


def check_named_attacks(
    model: Model, images: np.ndarray, threat: ThreatModel, attacks: Sequence[str], most: int, missing: str
) -> None:
    """Checks that attacks can be made on a model, by tracing them.

    Args:
        model: The result of `prepare_model`.
        images: uint8 or float `[N, H, W, C]`.
        threat: The threat model.
        attacks: Names of attacks.
        most: Size of a batch on one device.
        missing: The result of `find_missing_derivative`.

    Raises:
        UserError: An attack cannot be made.

    >>> from robust_gan import LinfThreat
    >>> model = Model("mine", lambda x: jnp.floor(x.sum((1, 2))))
    >>> check_named_attacks(model, np.zeros((1, 4, 4, 3), np.uint8), LinfThreat(0.1), ["fgsm"], 4, "it is a table")
    Traceback (most recent call last):
    robust_gan.errors.UserError: fgsm follows the gradient of mine, which has no derivative (it is a table): attack it \
by queries alone, with --attacks=square
    """
    if missing and (following := [attack for attack in attacks if needs_gradient(attack)]):
        verb = "follow" if len(following) > 1 else "follows"
        raise UserError(
            f"{', '.join(following)} {verb} the gradient of {model.name}, which has no derivative ({missing}): attack "
            "it by queries alone, with --attacks=square"
        )
    batch = jax.ShapeDtypeStruct((most, *images.shape[1:]), jnp.float32)
    labels = jax.ShapeDtypeStruct((most,), jnp.int32)
    for name in attacks:
        if name == GENERATOR or name in RETRAINED:
            continue

        def attack(images, labels, name=name):
            keys = prng.per_image_keys(prng.make_key(0), most)
            return attacks_lib.by_name(name)(model.logits_fn, keys, images, labels, threat)

        try:
            jax.eval_shape(attack, batch, labels)
        except Exception as error:  # It is the user's own program, and may raise anything.
            raise UserError(
                f"{name} cannot be made on {model.name} ({type(error).__name__}: {one_line(error)}): leave it out with "
                "--attacks or --sequential"
            ) from error


def check_attack_function(
    name: str, attack: Attack, model: Model, data: EvaluationData, threat: ThreatModel, most: int
) -> None:
    """Runs an attack of the user's own on a few images and checks that the results are in the ball and the range.

    Args:
        name: Name of the attack.
        attack: The function.
        model: The model under attack.
        data: The images.
        threat: The threat model.
        most: Size of a batch on one device.

    Raises:
        UserError: The attack fails, returns no images, or leaves the ball or the range.

    >>> from robust_gan import LinfThreat
    >>> data = EvaluationData.from_arrays(np.full((1, 2, 2, 1), 0.5, np.float32), np.zeros(1, int))
    >>> model = Model("m", lambda x: x.sum((1, 2)))
    >>> check_attack_function("mine", lambda logits_fn, key, images, *rest: images + 1, model, data, LinfThreat(0.1), 4)
    Traceback (most recent call last):
    robust_gan.errors.UserError: the attack mine on m leaves the range of pixels [0, 1]: they lie in [1.5, 1.5]
    """
    check_signature(name, attack)

    def run(images, labels):
        return attack(model.logits_fn, prng.per_image_keys(prng.make_key(0), len(images)), images, labels, threat)

    shapes = [jax.ShapeDtypeStruct((most, *data.images.shape[1:]), np.float32), jax.ShapeDtypeStruct((most,), np.int32)]
    images, labels = to_unit(data.images[: min(most, _FEW)]), data.labels[: min(most, _FEW)].astype(np.int32)
    try:
        found = jax.eval_shape(run, *shapes)
        # An attack of the wrong shape is not run: the error names the shape.
        right = getattr(found, "shape", None) == shapes[0].shape
        adversarial = jax.jit(run)(images, labels) if right else found
    except Exception as error:  # It is the user's own program, and may raise anything.
        raise UserError(
            f"the attack {name} fails on {model.name} ({type(error).__name__}: {one_line(error)})"
        ) from error
    if why := find_violation(adversarial, images if right else shapes[0], threat):
        raise UserError(f"the attack {name} on {model.name} {why}")


def _answers(logits_fn, images):
    try:
        logits_fn(jnp.array(images, copy=True))
    except Exception:  # It is the user's own program, and may raise anything.
        return False
    return True


def _in_training(error: Exception) -> str:
    """Returns what to do about a model that is in training mode, where the exception shows that it is."""
    if type(error).__name__ == "TraceContextError":  # Flax NNX: BatchNorm or Dropout writes to the module.
        return " (in training mode? call model.eval() on it first)"
    if "immutable" in str(error) or "ModifyScopeVariableError" in type(error).__name__:
        return " (in training mode? evaluate with use_running_average=True)"
    return ""

"""What people bring themselves: a classifier by the name of a function, images and labels as an `.npz` file."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from robust_gan.attacks._checks import check_signature
from robust_gan.config import imports
from robust_gan.config.imports import describe
from robust_gan.errors import DataError, UserError, one_line
from robust_gan.evaluation.models import pixel_range
from robust_gan.storage import files
from robust_gan.types import Attack, LogitsFn

_MAX_UNPACKED = 32_000_000_000
"""Bytes that the arrays of a file may have."""
_IGNORED = (-1, -100)
_IGNORED_BYTE = 255
"""What stands for no class in the labels of other libraries."""


class Arrays(NamedTuple):
    """Images and labels of a file.

    Attributes:
        images: uint8, or float in [0, 1], `[N, H, W, C]`.
        labels: int32 `[N]`.
    """

    images: np.ndarray
    labels: np.ndarray


def load_model(name: str) -> LogitsFn:
    """Imports a function and calls it once; it must return a classifier.

    Args:
        name: `package.module:function`, see `config.imports.load_function`.

    Returns:
        What the function returns: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.

    Raises:
        UserError: There is no such module or function, or it returns no function.

    >>> load_model("os.path:join")
    Traceback (most recent call last):
    robust_gan.errors.UserError: os.path:join cannot be called without arguments (missing a required argument: 'a'): \
give a function that returns a classifier
    """
    logits_fn = imports.call_function(name, "model", "a classifier")
    if not callable(logits_fn):
        raise UserError(
            f"{name} must return a function of images, not {type(logits_fn).__name__}: it is called once, and what it "
            "returns is called with images"
        )
    return logits_fn


def load_attack(name: str) -> Attack:
    """Imports an attack of the user's own, which is not called yet.

    Args:
        name: `package.module:function`, see `config.imports.import_function`.

    Raises:
        UserError: There is no such module or function, or it cannot be called as an `Attack`.

    >>> load_attack("os.path:exists")
    Traceback (most recent call last):
    robust_gan.errors.UserError: os.path:exists cannot be called as attack(logits_fn, key, images, labels, threat): \
too many positional arguments
    """
    function = imports.import_function(name, "attack")
    check_signature(name, function)
    return function


def check_model(name: str, logits_fn: LogitsFn, images: np.ndarray, num_classes: int) -> None:
    """Refuses a classifier whose outputs cannot be logits of the classes.

    Args:
        name: Of the model, for the sentence.
        logits_fn: The classifier.
        images: float32 `[N, H, W, C]` in [0, 1], a few.
        num_classes: At least so many classes.

    Raises:
        UserError: It fails on them, or its outputs have another shape, are NaN, or are infinite; a class at -inf is
            masked out.

    >>> check_model("mine", lambda x: x.sum((1, 2)), np.zeros((2, 4, 4, 3), np.float32), 3)
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


def load_arrays(path: epath.PathLike, *, channels: str = "") -> Arrays:
    """Reads the arrays `images` and `labels` of an `.npz` file; nothing in it is unpickled.

    Args:
        path: The file.
        channels: `last` to take images of a shape that looks like channels first as they are.

    Raises:
        DataError: It is no such file, lacks an array, its labels are not class numbers, or its images look like
            channels first.

    >>> path = getfixture("tmp_path") / "a.npz"
    >>> np.savez(path, images=np.zeros((2, 4, 4, 1), np.uint8), labels=np.array([0, 1]))
    >>> load_arrays(path).labels.tolist()
    [0, 1]
    """
    try:
        arrays = files.read_arrays(path, largest=_MAX_UNPACKED)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}: give an .npz of images and labels") from error
    except files.UnreadableError as error:
        raise DataError(f"{path} is no .npz of plain arrays ({error})") from error
    missing = [name for name in ("images", "labels") if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks the array {missing[0]}: it has {', '.join(arrays) or 'none'}")
    return _check_arrays(path, arrays["images"], arrays["labels"], channels)


def map_arrays(images: str, labels: str, *, channels: str = "") -> Arrays:
    """Opens images and labels that lie in two `.npy` files; images are read from the file when they are used.

    Args:
        images: File of the images, `[N, H, W, C]`, on this machine.
        labels: File of the labels, `[N]`.
        channels: As in `load_arrays`.

    Raises:
        DataError: As for `load_arrays`.

    >>> folder = getfixture("tmp_path")
    >>> np.save(folder / "x.npy", np.zeros((2, 4, 4, 1), np.uint8)), np.save(folder / "y.npy", np.array([0, 1]))
    (None, None)
    >>> map_arrays(str(folder / "x.npy"), str(folder / "y.npy")).images.shape
    (2, 4, 4, 1)
    """
    opened = []
    for path in (images, labels):
        try:
            opened.append(np.lib.format.open_memmap(path, mode="r"))
        except FileNotFoundError as error:
            raise DataError(f"there is no file {path}: give IMAGES.npy,LABELS.npy") from error
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise DataError(f"{path} is no .npy of a plain array ({one_line(error)})") from error
    return _check_arrays(images, opened[0], np.array(opened[1]), channels)


def _check_arrays(path: epath.PathLike, images: np.ndarray, labels: np.ndarray, channels: str) -> Arrays:
    _check_labels(path, labels)
    if np.issubdtype(images.dtype, np.integer) and images.dtype != np.uint8:
        raise DataError(f"the images of {path} are {images.dtype}: give uint8 in 0..255, or floats in [0, 1]")
    largest = pixel_range(images)[1] if images.size and images.dtype.kind in "uf" else 0.0
    if images.dtype == np.uint8 and 0 < largest <= 1:
        raise DataError(
            f"the images of {path} are uint8 in 0..1, all but black: give 0..255, 255 * images, or floats in [0, 1]"
        )
    if np.issubdtype(images.dtype, np.floating) and 0 < largest <= 1.001 / 255:
        raise DataError(
            f"the images of {path} are all but black, at most {largest:.3g}: they were divided by 255 twice"
        )
    if channels != "last" and _looks_channels_first(images.shape):
        raise DataError(
            f"the images of {path} have shape {images.shape}, channels first: give [N, H, W, C], "
            "images.transpose(0, 2, 3, 1); or --channels=last where the channels are last already"
        )
    native = images.dtype.newbyteorder("=")  # JAX takes no other byte order.
    return Arrays(images.astype(native, copy=False), labels.astype(labels.dtype.newbyteorder("="), copy=False))


def _looks_channels_first(shape: tuple[int, ...]) -> bool:
    """Tells pictures of colour, or of grey, that are stored as PyTorch has them.

    Signals of one row, `[N, 1, T, C]`, and other narrow images are none.
    """
    if len(shape) != 4:
        return False
    _, channels, height, width = shape
    square = height == width and height > 4
    return channels in (1, 3) and width not in (1, 2, 3, 4) and (square or (channels == 3 and min(height, width) >= 16))


def _check_labels(path: epath.PathLike, labels: np.ndarray) -> None:
    """Refuses labels that are no class numbers, and says how to make such of them."""
    if labels.dtype.kind not in "iufb":
        raise DataError(f"the labels of {path} are {labels.dtype}: give class numbers from 0")
    if labels.ndim == 2 and labels.shape[1] == 1:
        raise DataError(f"the labels of {path} have shape {labels.shape}: give one number per image, labels[:, 0]")
    if labels.ndim == 2 and len(labels) and np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all():
        raise DataError(f"the labels of {path} are one-hot: give class numbers, labels.argmax(-1)")
    if labels.ndim == 2 and labels.dtype.kind == "f" and np.allclose(labels.sum(-1), 1, atol=1e-3):
        raise DataError(f"the labels of {path} are probabilities: give class numbers, labels.argmax(-1)")
    if labels.ndim == 2 and np.isin(labels, (0, 1)).all():
        raise DataError(f"the labels of {path} name several classes of an image, or none: give one class number each")
    if labels.ndim == 1 and labels.dtype.kind == "f" and len(labels):
        whole = bool(np.isfinite(labels).all() and (labels == np.rint(labels)).all())
        remedy = "labels.astype(int)" if whole else "class numbers from 0"
        raise DataError(f"labels must be integers, but those of {path} are {labels.dtype}: give {remedy}")
    if labels.ndim == 1 and len(labels) and labels.min() in _IGNORED and (labels[labels != labels.min()] >= 0).all():
        raise DataError(
            f"{(labels == labels.min()).sum()} labels of {path} are {labels.min()}, which often stands for 'ignore': "
            f"leave these images out, images[labels != {labels.min()}]; class numbers start from 0"
        )


def _in_training(error: Exception) -> str:
    """Returns what to do about a model that is in training mode, where the exception shows that it is."""
    if type(error).__name__ == "TraceContextError":  # Flax NNX: BatchNorm or Dropout writes to the module.
        return " (in training mode? call model.eval() on it first)"
    if "immutable" in str(error) or "ModifyScopeVariableError" in type(error).__name__:
        return " (in training mode? evaluate with use_running_average=True)"
    return ""

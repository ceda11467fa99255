"""What people bring themselves: a classifier by the name of a function, images and labels as an `.npz` file."""

import difflib
import importlib
import io
import os
import sys
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from robust_gan import places
from robust_gan.errors import DataError, UserError, one_line
from robust_gan.types import LogitsFn

_MAX_UNPACKED = 32_000_000_000
"""Bytes that the arrays of a file may have."""


class Arrays(NamedTuple):
    """Images and labels of a file.

    Attributes:
        images: uint8, or float in [0, 1], `[N, H, W, C]`.
        labels: int32 `[N]`.
    """

    images: np.ndarray
    labels: np.ndarray


def load_model(name: str) -> LogitsFn:
    """Imports a function and calls it for a classifier.

    Args:
        name: `package.module:function`; the module is looked for in the working directory too. It is the user's own
            program, and is run.

    Returns:
        What the function returns: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.

    Raises:
        UserError: There is no such module or function, or it returns no function.

    >>> load_model("os.path:join")
    Traceback (most recent call last):
    robust_gan.errors.UserError: os.path:join cannot be called without arguments (join() missing 1 required positional \
argument: 'a'): give a function that returns a classifier
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise UserError(f"a model is given as package.module:function, not {name!r}")
    if module_name.endswith(".py"):
        raise UserError(f"a model is given as package.module:function, without .py, not {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"the module {module_name} of the model cannot be imported: {one_line(error)} (looked for in {os.getcwd()} "
            "and where Python looks)"
        ) from error
    except Exception as error:  # It is the user's own program, and may raise anything.
        raise UserError(f"the module {module_name} of the model fails: {_told(error)}") from error
    try:
        function = getattr(module, function_name)
    except AttributeError as error:
        close = difflib.get_close_matches(function_name, dir(module), 1)
        raise UserError(
            f"the module {module_name} has no function {function_name!r}" + (f"; is it {close[0]}?" if close else "")
        ) from error
    try:
        logits_fn = function()
    except TypeError as error:
        raise UserError(
            f"{name} cannot be called without arguments ({error}): give a function that returns a classifier"
        ) from error
    except Exception as error:  # It is the user's own program, and may raise anything.
        raise UserError(f"{name} fails: {_told(error)}") from error
    if not callable(logits_fn):
        raise UserError(
            f"{name} must return a function of images, not {type(logits_fn).__name__}: it is called once, and what it "
            "returns is called with images"
        )
    return logits_fn


def check_model(name: str, logits_fn: LogitsFn, images: np.ndarray, num_classes: int) -> None:
    """Refuses a classifier whose outputs cannot be logits of the classes.

    Args:
        name: Of the model, for the sentence.
        logits_fn: The classifier.
        images: float32 `[N, H, W, C]` in [0, 1], two or more.
        num_classes: At least so many classes.

    Raises:
        UserError: It fails on them, or its outputs have another shape or are not finite.

    >>> check_model("mine", lambda x: x.sum((1, 2)), np.zeros((2, 4, 4, 3), np.float32), 3)
    """
    batch = jnp.asarray(images[:2])
    try:
        found = logits_fn(batch)
    except Exception as error:  # It is the user's own program, and may raise anything.
        hint = " (in training mode? evaluate with use_running_average=True)" if "immutable" in str(error) else ""
        raise UserError(f"{name} fails on float32 images of shape {batch.shape}: {_told(error)}{hint}") from error
    if isinstance(found, tuple | list | dict):
        raise UserError(f"{name} returns a {type(found).__name__} for images: return the logits alone")
    try:
        jax.eval_shape(logits_fn, batch)
    except Exception as error:
        raise UserError(
            f"{name} cannot be traced by JAX, so that nothing can attack it ({_told(error)}): write it in JAX, see "
            "the question on PyTorch in docs/faq.md"
        ) from error
    logits = np.asarray(found)
    if logits.ndim != 2 or len(logits) != len(images[:2]) or logits.shape[1] < max(2, num_classes):
        numbered = logits.ndim == 2 and logits.shape[1] == num_classes - 1
        raise UserError(
            f"{name} must return logits of shape [{len(images[:2])}, K], K at least {max(2, num_classes)}, not "
            f"{list(logits.shape)}"
            + (f": the largest label is {num_classes - 1}; are the classes numbered from 0?" if numbered else "")
        )
    if not np.isfinite(logits).all():
        raise UserError(f"{name} returns logits that are NaN or infinite on the first images")


def load_arrays(path: epath.PathLike) -> Arrays:
    """Reads the arrays `images` and `labels` of an `.npz` file; nothing in it is unpickled.

    Raises:
        DataError: It is no such file, lacks an array, or its labels are not class numbers.

    >>> path = getfixture("tmp_path") / "a.npz"
    >>> np.savez(path, images=np.zeros((2, 4, 4, 1), np.uint8), labels=np.array([0, 1]))
    >>> load_arrays(path).labels.tolist()
    [0, 1]
    """
    try:
        images, labels = _unpacked(path, places.locate(path).read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}: give an .npz of images and labels") from error
    except UserError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} is no .npz of plain arrays ({error})") from error
    if labels.dtype.kind not in "iufb":
        raise DataError(f"the labels of {path} are {labels.dtype}: give class numbers from 0")
    if labels.ndim == 2 and np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all():
        raise DataError(f"the labels of {path} are one-hot: give class numbers, labels.argmax(-1)")
    if np.issubdtype(images.dtype, np.integer) and images.dtype != np.uint8:
        raise DataError(f"the images of {path} are {images.dtype}: give uint8 in 0..255, or floats in [0, 1]")
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3, 4):
        raise DataError(
            f"the images of {path} have shape {images.shape}, channels first: give [N, H, W, C], "
            "images.transpose(0, 2, 3, 1)"
        )
    return Arrays(images, labels)


def _unpacked(path: epath.PathLike, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _MAX_UNPACKED:  # A few bytes of a file can stand for any number.
        raise DataError(
            f"{path} unpacks to {size / 1e9:.0f} GB: give at most {_MAX_UNPACKED / 1e9:.0f} GB of images at a time"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        missing = [name for name in ("images", "labels") if name not in file.files]
        if missing:
            raise DataError(f"{path} lacks the array {missing[0]}: it has {', '.join(file.files) or 'none'}")
        return file["images"], file["labels"]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"

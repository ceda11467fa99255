"""The classifier of a checkpoint as a compiled program, which runs where this package is not installed."""

import importlib.util
import os
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax import export

from robust_gan.checkpoint.metadata import read_record
from robust_gan.checkpoint.models import get_classifier
from robust_gan.errors import UserError, writing
from robust_gan.storage import paths, workdir

PROGRAM_SUFFIX = ".jaxexport"


def export_program(
    directory: epath.PathLike,
    file: epath.PathLike,
    step: str | int = "best",
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> epath.Path:
    """Exports the classifier of a checkpoint as StableHLO, with its weights and its gradient in the pixels.

    `jax.export.deserialize(file.read_bytes()).call(images)` runs it with JAX and flatbuffers alone, for any batch size:
    float32 images `[B, H, W, C]` in [0, 1] to logits `[B, K]`, equal to those of `load_classifier` to rounding.

    Args:
        directory: As for `load_classifier`.
        file: The file to write; it ends in `.jaxexport`.
        step: A number, `best` (by validation) or `last`.
        platforms: On which it can run.

    Returns:
        The absolute path of the file.

    Raises:
        CheckpointError: As for `load_classifier`.
        UserError: The file has another ending or cannot be written, or flatbuffers is not installed.

    >>> export_program("zoo:digits/pgd", "pgd.onnx")
    Traceback (most recent call last):
    robust_gan.errors.UserError: a program is exported to a file that ends in .jaxexport, not to pgd.onnx
    """
    if not os.fspath(file).endswith(PROGRAM_SUFFIX):
        raise UserError(f"a program is exported to a file that ends in {PROGRAM_SUFFIX}, not to {file}")
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("a program needs flatbuffers: pip install 'robust_gan[jax-export]'")
    record = read_record(directory, step)
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *record.data.image_shape), np.float32)
    logits_fn = get_classifier(record)
    # A function without arguments bound, so that the weights become constants of the program.
    exported = export.export(jax.jit(lambda images: logits_fn(images)), platforms=platforms)(images)
    path = paths.locate(file)
    with writing(path, "give another"):
        path.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_bytes(path, bytes(exported.serialize(vjp_order=1)))
    return path

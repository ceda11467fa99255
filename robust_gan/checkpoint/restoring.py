"""Restores the arrays of a record, and compares them with what was saved."""

import jax
import numpy as np

from robust_gan.checkpoint import exported
from robust_gan.checkpoint.metadata import DamagedError, Record
from robust_gan.errors import CheckpointError
from robust_gan.storage import leaves as leaves_lib
from robust_gan.types import PyTree


def fill(like: PyTree, record: Record) -> PyTree:
    """Restores a pytree from a step and compares names, shapes, dtypes and digests.

    Args:
        like: Structure, shapes and dtypes; the step may hold further arrays.
        record: The record of the step.

    Returns:
        NumPy arrays and typed keys, in the structure of `like`.

    Raises:
        DamagedError: An array differs from the saved one.
        CheckpointError: An array is missing, or has another shape or dtype.

    Guarantees:
        `test_a_flipped_byte_is_found_or_changes_nothing`.
    """
    where = f"the checkpoint {record.path}"
    wanted = leaves_lib.named(like)
    for name, leaf in wanted.items():
        saved = record.leaves.get(name)
        expected = leaves_lib.layout(leaf)
        if saved is None:
            raise CheckpointError(f"{where} is of another architecture: it has no array {name}")
        if {"shape": saved["shape"], "dtype": saved["dtype"]} != expected:
            raise CheckpointError(
                f"{where} is of another architecture: {name} is {saved['dtype']}{saved['shape']} there and "
                f"{expected['dtype']}{expected['shape']} here"
            )
    try:
        found = _read_arrays(record)
    except Exception as error:
        raise DamagedError(record.directory, record.step, f"its arrays cannot be read: {error}") from error
    for name in wanted:
        whole = name in found and leaves_lib.layout(found[name]) | {"sha256": leaves_lib.digest(found[name])}
        if whole != record.leaves[name]:
            raise DamagedError(record.directory, record.step, f"the array {name} is not what was saved")
    leaves = [leaves_lib.from_host(leaf, found[name]) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _read_arrays(record: Record) -> dict[str, np.ndarray]:
    if exported.is_exported(record.directory):
        return exported.read(record.directory)[0]
    from robust_gan.checkpoint import manager  # Here, so that exported models load without Orbax.

    return manager.read_arrays(record.path / "state", record.leaves)

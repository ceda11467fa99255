"""The arrays of a step, restored into a structure that is known, and compared with what was saved."""

import jax

from robust_gan.checkpoint import orbax_io
from robust_gan.checkpoint.metadata import DamagedError, Record
from robust_gan.errors import CheckpointError
from robust_gan.storage import leaves as leaves_lib
from robust_gan.types import PyTree


def fill(like: PyTree, record: Record) -> PyTree:
    """Restores the leaves of a pytree from a step, comparing names, shapes, dtypes and digests.

    Args:
        like: The structure, shapes and dtypes; the step may hold more.
        record: What the step says of itself.

    Returns:
        NumPy arrays and typed keys, in the structure of `like`.

    Raises:
        DamagedError: An array is not what was saved.
        CheckpointError: The step lacks an array, or has it in another shape or dtype.

    Guarantees:
        `test_a_flipped_byte_is_found_or_changes_nothing`.
    """
    where = f"the checkpoint {record.directory / str(record.step)}"
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
        found = orbax_io.read_arrays(record.directory / str(record.step) / "state", record.leaves)
    except Exception as error:
        raise DamagedError(record.directory, record.step, f"its arrays cannot be read: {error}") from error
    for name in wanted:
        if name not in found or leaves_lib.digest(found[name]) != record.leaves[name]["sha256"]:
            raise DamagedError(record.directory, record.step, f"the array {name} is not what was saved")
    leaves = [leaves_lib.from_host(leaf, found[name]) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)

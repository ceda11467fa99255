"""Communication between the processes of a run.

Every process runs the same steps on its own devices. Only the primary process writes the workdir; the others receive
its results and its errors, so that no process waits for one that has failed.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from robust_gan.config import flatten
from robust_gan.errors import UserError
from robust_gan.parallel.devices import AXIS
from robust_gan.storage import leaves as leaves_lib
from robust_gan.types import PyTree

T = TypeVar("T")

_LOST = re.compile(
    r"gloo|nccl|coordination|heartbeat|unavailable|connection (reset|closed|refused)|socket closed", re.I
)
_MAX_EXACT_BYTES = 1 << 20


def process_index_and_count() -> tuple[int, int]:
    """Returns the index of this process and the number of processes: `(0, 1)` for a single one.

    >>> process_index_and_count()
    (0, 1)
    """
    return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)


def is_primary() -> bool:
    """Returns whether this process is the one that writes files.

    >>> is_primary()
    True
    """
    return process_index_and_count()[0] == 0


def run_on_all_processes(fn: Callable[[], T]) -> T:
    """Runs a function in every process, and raises in all if it raises in one.

    Args:
        fn: The function; each process returns its own result.

    Raises:
        UserError: It was raised in one process; the others add the index of that process.
        RuntimeError: Another exception was raised in another process.

    >>> run_on_all_processes(lambda: 3)
    3
    """
    count = process_index_and_count()[1]
    if count == 1:
        return fn()
    result, failure = None, None
    try:
        result = fn()
    except Exception as error:
        failure = error
    sentence = "" if failure is None else f"{failure}" or type(failure).__name__
    failures = _gather(json.dumps([isinstance(failure, UserError), sentence]).encode())
    if failure is not None:
        raise failure
    for process, (is_users, sentence) in enumerate(map(json.loads, failures)):
        if sentence:
            raise (UserError if is_users else RuntimeError)(f"process {process} of {count}: {sentence}")
    return result  # type: ignore[return-value]


def broadcast_from_primary(fn: Callable[[], Any]) -> Any:
    """Runs a function in the primary process and returns its result in all.

    Args:
        fn: Returns a JSON-able value.

    Raises:
        UserError: It was raised in the primary process.

    >>> broadcast_from_primary(lambda: [1, None])
    [1, None]
    """
    if process_index_and_count()[1] == 1:
        return fn()
    return json.loads(broadcast_bytes_from_primary(lambda: json.dumps(fn()).encode()))


def broadcast_state_from_primary(fn: Callable[[], tuple[PyTree, int]], like: PyTree) -> tuple[PyTree, int]:
    """Runs a function that returns a train state in the primary process, and returns its result in all, bit for bit.

    Args:
        fn: Returns the state and a step.
        like: A state of the same structure, shapes and dtypes.

    >>> broadcast_state_from_primary(lambda: ({"x": np.ones(2)}, 3), {"x": np.zeros(2)})[1]
    3
    """
    if process_index_and_count()[1] == 1:
        return fn()

    state, step = run_on_all_processes(lambda: fn() if is_primary() else (like, 0))
    leaves = [leaves_lib.to_host(leaf) for leaf in jax.tree.leaves(state)]
    # As bytes, since the broadcast is a sum, which loses the sign of zero.
    sent = [leaf.reshape(-1).view(np.uint8) for leaf in (*leaves, np.int64(step).reshape(1))]
    *arrived, at = (np.asarray(leaf) for leaf in multihost_utils.broadcast_one_to_all(sent))
    received = [
        leaves_lib.from_host(old, new.view(leaf.dtype).reshape(leaf.shape))
        for old, leaf, new in zip(jax.tree.leaves(like), leaves, arrived, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), received), int(at.view(np.int64)[0])


def assert_equal_across_processes(values: dict[str, Any]) -> None:
    """Checks that values are equal in all processes.

    Args:
        values: JSON-able; nested dictionaries are compared field by field.

    Raises:
        UserError: Two processes differ; the error names the field and both values.

    >>> assert_equal_across_processes({"seed": 3})
    """
    count = process_index_and_count()[1]
    if count == 1:
        return
    everywhere = [flatten(json.loads(text)) for text in _gather(json.dumps(values).encode())]
    for process, there in enumerate(everywhere):
        for name in sorted(everywhere[0].keys() | there.keys()):
            if everywhere[0].get(name) != there.get(name):
                raise UserError(
                    f"processes 0 and {process} of {count} disagree on {name} ({everywhere[0].get(name)!r} != "
                    f"{there.get(name)!r}): start all processes with the same command, code and data"
                )


class StopConsensus:
    """Lets all processes stop at the same step, as soon as one of them requests it.

    With several processes the answer is one call late, so that no device waits for it.

    Args:
        devices: The devices of the run.

    >>> StopConsensus([]).reached(True)
    True
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self._previous: jax.Array | None = None
        self._any = None
        if process_index_and_count()[1] > 1:
            self._count = sum(device.process_index == jax.process_index() for device in devices)
            self._any = jax.pmap(
                lambda requested: jax.lax.pmax(requested, AXIS), axis_name=AXIS, out_axes=None, devices=devices
            )

    def reached(self, requested: bool) -> bool:
        """Returns whether to stop; every process calls this between the same steps."""
        if self._any is None:
            return requested
        before, self._previous = self._previous, self._any(np.full(self._count, requested, np.int32))
        return before is not None and bool(leaves_lib.to_host(before))


def is_lost(error: BaseException) -> bool:
    """Returns whether an exception is caused by the loss of another process, judged by the words of each transport.

    >>> is_lost(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
    False
    """
    return process_index_and_count()[1] > 1 and bool(_LOST.search(str(error)))


def broadcast_bytes_from_primary(fn: Callable[[], bytes]) -> bytes:
    """Runs a function that returns bytes in the primary process, and returns them in all.

    >>> broadcast_bytes_from_primary(lambda: b"abc")
    b'abc'
    """
    if process_index_and_count()[1] == 1:
        return fn()
    content = run_on_all_processes(lambda: fn() if is_primary() else b"")
    length = max(int(text) for text in _gather(str(len(content)).encode()))
    return np.asarray(multihost_utils.broadcast_one_to_all(_padded(content, length))).tobytes()[:length]


def _gather(content: bytes) -> list[bytes]:
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(content)))).reshape(-1)
    rows = np.asarray(multihost_utils.process_allgather(_padded(content, int(lengths.max()))))
    return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]


def _padded(content: bytes, length: int) -> np.ndarray:
    """Pads small contents to a power of two bytes, so that few shapes are compiled."""
    padded = np.zeros(length if length > _MAX_EXACT_BYTES else 1 << max(length - 1, 0).bit_length(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    return padded

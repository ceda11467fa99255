"""How the processes of one run find each other, agree, and leave; JAX's own coordination service does the work.

Every process plays the same steps on its own devices. What only one may do (write the workdir) the first does, and what
it read or found out it tells the others, failures included: nobody waits for one that has given up.
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
_EXACT = 1 << 20


def process_index_and_count() -> tuple[int, int]:
    """Returns which process this is, and of how many: `(0, 1)` for one alone.

    >>> process_index_and_count()
    (0, 1)
    """
    return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)


def is_primary() -> bool:
    """Tells whether this process is the one that writes; one alone is.

    >>> is_primary()
    True
    """
    return process_index_and_count()[0] == 0


def run_on_all_processes(make: Callable[[], T]) -> T:
    """Runs a function in every process, and fails in all where it fails in one.

    Args:
        make: What to run; each process has its own result.

    Raises:
        UserError: It was raised in a process; in the others with the number of that one.
        RuntimeError: It failed otherwise in another process.

    >>> run_on_all_processes(lambda: 3)
    3
    """
    count = process_index_and_count()[1]
    if count == 1:
        return make()
    result, failure = None, None
    try:
        result = make()
    except Exception as error:
        failure = error
    sentence = "" if failure is None else f"{failure}" or type(failure).__name__
    told = _gather(json.dumps([isinstance(failure, UserError), sentence]).encode())
    if failure is not None:
        raise failure
    for process, (is_users, sentence) in enumerate(map(json.loads, told)):
        if sentence:
            raise (UserError if is_users else RuntimeError)(f"process {process} of {count}: {sentence}")
    return result  # type: ignore[return-value]


def broadcast_from_primary(make: Callable[[], Any]) -> Any:
    """Runs a function in the first process and returns its result in all.

    Args:
        make: Returns what JSON can hold.

    Raises:
        UserError: It was raised in the first process.

    >>> broadcast_from_primary(lambda: [1, None])
    [1, None]
    """
    if process_index_and_count()[1] == 1:
        return make()
    return json.loads(broadcast_bytes_from_primary(lambda: json.dumps(make()).encode()))


def broadcast_state_from_primary(make: Callable[[], tuple[PyTree, int]], like: PyTree) -> tuple[PyTree, int]:
    """Runs a function that makes a train state in the first process and returns its result in all, bit for bit.

    Args:
        make: Returns the state and a number.
        like: A state of the same structure, shapes and dtypes.

    >>> broadcast_state_from_primary(lambda: ({"x": np.ones(2)}, 3), {"x": np.zeros(2)})[1]
    3
    """
    if process_index_and_count()[1] == 1:
        return make()

    state, step = run_on_all_processes(lambda: make() if is_primary() else (like, 0))
    leaves = [leaves_lib.to_host(leaf) for leaf in jax.tree.leaves(state)]
    # As bytes: what adds arrays up, as the broadcast does, loses the sign of a zero.
    sent = [leaf.reshape(-1).view(np.uint8) for leaf in (*leaves, np.int64(step).reshape(1))]
    *arrived, at = (np.asarray(leaf) for leaf in multihost_utils.broadcast_one_to_all(sent))
    received = [
        leaves_lib.from_host(old, new.view(leaf.dtype).reshape(leaf.shape))
        for old, leaf, new in zip(jax.tree.leaves(like), leaves, arrived, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), received), int(at.view(np.int64)[0])


def assert_equal_across_processes(values: dict[str, Any]) -> None:
    """Refuses processes that were told different things.

    Args:
        values: What JSON can hold; nested dictionaries are compared field by field.

    Raises:
        UserError: Two differ; the sentence names the field and both values.

    >>> assert_equal_across_processes({"seed": 3})
    """
    count = process_index_and_count()[1]
    if count == 1:
        return
    told = [flatten(json.loads(text)) for text in _gather(json.dumps(values).encode())]
    for process, there in enumerate(told):
        for name in sorted(told[0].keys() | there.keys()):
            if told[0].get(name) != there.get(name):
                raise UserError(
                    f"processes 0 and {process} of {count} disagree on {name} ({told[0].get(name)!r} != "
                    f"{there.get(name)!r}): start all processes with the same command, code and data"
                )


class StopConsensus:
    """Whether any process wants to end: all of them end at the same step.

    Where there are several, an answer comes one question late, so that no device waits for it.

    Args:
        devices: Of the run.

    >>> StopConsensus([]).reached(True)
    True
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        """Compiles nothing where there is one process."""
        self._asked: jax.Array | None = None
        self._any = None
        if process_index_and_count()[1] > 1:
            self._count = sum(device.process_index == jax.process_index() for device in devices)
            self._any = jax.pmap(
                lambda wants: jax.lax.pmax(wants, AXIS), axis_name=AXIS, out_axes=None, devices=devices
            )

    def reached(self, wants: bool) -> bool:
        """Asks all processes, each of which must call this between the same steps, and returns what is agreed."""
        if self._any is None:
            return wants
        before, self._asked = self._asked, self._any(np.full(self._count, wants, np.int32))
        return before is not None and bool(leaves_lib.to_host(before))


def is_lost(error: BaseException) -> bool:
    """Tells whether an exception says that another process is gone: each transport has its own words for it.

    >>> is_lost(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
    False
    """
    return process_index_and_count()[1] > 1 and bool(_LOST.search(str(error)))


def broadcast_bytes_from_primary(make: Callable[[], bytes]) -> bytes:
    """Runs a function in the first process and returns the bytes that it makes in all; see `broadcast_from_primary`.

    >>> broadcast_bytes_from_primary(lambda: b"abc")
    b'abc'
    """
    if process_index_and_count()[1] == 1:
        return make()
    content = run_on_all_processes(lambda: make() if is_primary() else b"")
    length = max(int(text) for text in _gather(str(len(content)).encode()))
    return np.asarray(multihost_utils.broadcast_one_to_all(_padded(content, length))).tobytes()[:length]


def _gather(content: bytes) -> list[bytes]:
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(content)))).reshape(-1)
    rows = np.asarray(multihost_utils.process_allgather(_padded(content, int(lengths.max()))))
    return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]


def _padded(content: bytes, length: int) -> np.ndarray:
    """Below `_EXACT` bytes to a power of two, so that few shapes are compiled."""
    padded = np.zeros(length if length > _EXACT else 1 << max(length - 1, 0).bit_length(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    return padded

"""The only package that names devices and processes: which ones, what lies where, and how they agree.

One process alone is the ordinary case: then nothing of `processes` communicates, and all that it asks is answered here.
"""

from robust_gan.parallel.connection import connect, disconnect, leave
from robust_gan.parallel.devices import (
    AXIS,
    check_batch_size,
    compile_step,
    find_devices,
    join,
    map_batch,
    map_step,
    replicate,
    split,
    split_tree,
)
from robust_gan.parallel.multihost import (
    Agreement,
    bytes_from_first,
    check_same,
    from_first,
    is_first,
    is_lost,
    number,
    state_from_first,
    together,
)

__all__ = [
    "AXIS", "Agreement", "bytes_from_first", "check_batch_size", "check_same", "compile_step", "connect",
    "disconnect", "find_devices", "from_first", "is_first", "is_lost", "join", "leave", "map_batch", "map_step",
    "number", "replicate", "split", "split_tree", "state_from_first", "together",
]  # fmt: skip

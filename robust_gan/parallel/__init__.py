"""Devices and processes; a single process, the usual case, communicates nothing."""

from robust_gan.parallel.connection import connect, disconnect, leave
from robust_gan.parallel.devices import (
    AXIS,
    aligned,
    check_batch_size,
    compile_step,
    find_devices,
    gather,
    map_batch,
    map_step,
    replicate,
    shard,
    shard_tree,
)
from robust_gan.parallel.multihost import (
    StopConsensus,
    assert_equal_across_processes,
    broadcast_bytes_from_primary,
    broadcast_from_primary,
    broadcast_state_from_primary,
    is_lost,
    is_primary,
    process_index_and_count,
    run_on_all_processes,
)

__all__ = [
    "AXIS", "StopConsensus", "aligned", "assert_equal_across_processes", "broadcast_bytes_from_primary",
    "broadcast_from_primary", "broadcast_state_from_primary", "check_batch_size", "compile_step", "connect",
    "disconnect", "find_devices", "gather", "is_lost", "is_primary", "leave", "map_batch", "map_step",
    "process_index_and_count", "replicate", "run_on_all_processes", "shard", "shard_tree",
]  # fmt: skip

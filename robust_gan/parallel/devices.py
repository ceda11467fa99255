"""Devices, placement of arrays, and functions mapped over devices.

Steps are written per device over the axis `AXIS` and mapped with `jax.pmap`: the train state is replicated, the batch
is sharded over its leading axis.

With several processes, `devices` are those of all processes, in the order of the processes. Every process calls the
same functions in the same order, on the shards of its own devices: N processes of M devices compute what one process
of N x M devices computes.
"""

import collections
import functools
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from robust_gan.errors import UserError
from robust_gan.types import PyTree

AXIS = "batch"

_ALIGNMENT = 64
"""Bytes, of the arrays of XLA on a CPU."""
_RUN_AHEAD = 8
_OPTIMIZATION = "xla_backend_optimization_level"


def find_devices(platform: str = "", num_devices: int = 0) -> list[jax.Device]:
    """Returns the devices of all processes, in the order of the processes.

    Args:
        platform: `cpu`, `gpu` or `tpu`; empty for the best available.
        num_devices: Number of devices of each process; 0 for all.

    Raises:
        UserError: The platform is not available, or has fewer devices.

    >>> len(find_devices(num_devices=1))
    1
    """
    try:
        devices = jax.local_devices(backend=platform or None)
    except (RuntimeError, AssertionError) as error:  # jax asserts that there is a device.
        if not platform:
            named = os.environ.get("JAX_PLATFORMS", "")
            raise UserError(
                f"jax finds no device (JAX_PLATFORMS is {named!r}): leave it unset for the best there is, or say cpu"
            ) from error
        present = ", ".join(sorted({device.platform for device in find_devices()}))
        raise UserError(
            f"no {platform} was found here, only {present}: leave --platform out, or install the extra "
            f"robust_gan[{platform}]"
        ) from error
    if num_devices < 0 or num_devices > len(devices):
        raise UserError(
            f"{num_devices} devices were asked for, but there are {len(devices)} of platform {devices[0].platform}: "
            f"ask for {'1' if len(devices) == 1 else f'1 to {len(devices)}'}, or 0 for all"
        )
    if jax.process_count() > 1:
        everyone = jax.devices(backend=platform or None)
        ours = [sorted((d for d in everyone if d.process_index == process), key=lambda d: d.id)
                for process in range(jax.process_count())]  # fmt: skip
        return [device for part in ours for device in part[: num_devices or None]]
    return devices[: num_devices or None]


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Returns the devices of this process.

    >>> local(find_devices()) == find_devices()
    True
    """
    if jax.process_count() == 1:
        return list(devices)
    return [device for device in devices if device.process_index == jax.process_index()]


def check_batch_size(batch_size: int, devices: Sequence[jax.Device]) -> None:
    """Checks that the devices can share a batch evenly.

    Raises:
        UserError: The batch size is not divisible by the number of devices.

    >>> check_batch_size(64, find_devices(num_devices=1))
    """
    if batch_size % len(devices):
        lower = batch_size // len(devices) * len(devices)
        raise UserError(
            f"batch_size {batch_size} is not divisible by the {len(devices)} devices: "
            f"take {f'{lower} or ' if lower else ''}{lower + len(devices)}"
        )


def replicate(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Copies every array to each device of this process; the shapes stay the same.

    >>> replicate(np.zeros(3), find_devices(num_devices=1)).shape
    (3,)
    """
    sharding = NamedSharding(Mesh(np.asarray(local(devices)), (AXIS,)), PartitionSpec())
    return jax.device_put(tree, sharding)


def aligned(array: np.ndarray) -> np.ndarray:
    """Returns a read-only copy `[N, ...]` where devices of a CPU read it: `replicate` makes no copy for any of them.

    >>> array = aligned(np.arange(6).reshape(2, 3))
    >>> array.tolist(), array.ctypes.data % 64
    ([[0, 1, 2], [3, 4, 5]], 0)
    """
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    copy = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = False
    return copy


def shard(array: np.ndarray, devices: Sequence[jax.Device], axis: int = 0) -> np.ndarray:
    """Splits a batch into equal contiguous shards, one per device, on a new leading axis.

    Args:
        array: The whole batch `[B, ...]`, the same in every process.
        devices: The D devices of all processes.
        axis: The axis to split.

    Returns:
        The shards of the d devices of this process, `[d, B / D, ...]`.

    >>> shard(np.arange(4), find_devices(num_devices=1)).shape
    (1, 4)
    """
    shards, ours = np.split(array, len(devices), axis=axis), set(local(devices))
    return np.stack([part for part, device in zip(shards, devices, strict=True) if device in ours])


def shard_tree(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Splits every array of a pytree with `shard`.

    >>> shard_tree((np.zeros(4), np.zeros((4, 2))), find_devices(num_devices=1))[1].shape
    (1, 4, 2)
    """
    return jax.tree.map(lambda array: shard(array, devices), tree)


def map_step(step: Callable[..., PyTree], devices: Sequence[jax.Device]) -> Callable[..., PyTree]:
    """Compiles `step(state, data, batch) -> (state, metrics)` over the devices.

    State and data are replicated, each device has its own shard of the batch, and the outputs are equal on all devices.
    The state is donated: only the returned one may be used. On several CPU devices at most a few steps run ahead of the
    host, since XLA aborts the process if too many do.

    >>> devices = find_devices(num_devices=1)
    >>> mapped = map_step(lambda state, data, batch: (state + data, batch[0]), devices)
    >>> mapped(*replicate((np.zeros(3), np.ones(3)), devices), np.ones((1, 2)))[0].tolist()
    [1.0, 1.0, 1.0]
    """
    mapped = _mapped_step(step, devices)
    if len(devices) == 1 or devices[0].platform != "cpu":
        return mapped
    ahead: collections.deque[PyTree] = collections.deque()

    @functools.wraps(step)
    def bounded(state, data, batch):
        state, metrics = mapped(state, data, batch)
        ahead.append(metrics)
        if len(ahead) == _RUN_AHEAD:
            jax.block_until_ready(ahead.popleft())
        return state, metrics

    return bounded


def compile_step(step: Callable[..., PyTree], devices: Sequence[jax.Device], *arguments: PyTree) -> jax.stages.Compiled:
    """Compiles as `map_step` does, ahead of time.

    Args:
        step: `(state, data, batch) -> (state, metrics)`.
        devices: The devices.
        *arguments: State, data and batch, placed as for the call.

    >>> devices = find_devices(num_devices=1)
    >>> state, data = replicate((np.zeros(3), np.ones(3)), devices)
    >>> batch = np.ones((1, 2))
    >>> compiled = compile_step(lambda state, data, batch: (state + data, batch[0]), devices, state, data, batch)
    >>> compiled(state, data, batch)[0].tolist()
    [1.0, 1.0, 1.0]
    """
    return _mapped_step(step, devices).lower(*arguments).compile()


def _mapped_step(step, devices):
    return jax.pmap(
        step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=(None, None), devices=devices, donate_argnums=(0,)
    )


def map_batch(function: Callable[..., PyTree], devices: Sequence[jax.Device]) -> Callable[..., PyTree]:
    """Compiles `function(replicated, batch) -> rows` over the devices; the rows stay on them (see `gather`).

    The compiled code belongs to the returned function: each call of `map_batch` traces anew, and the code and its
    constants are freed with the returned function.

    Args:
        function: Each row of its result depends on the same row of the batch alone.
        devices: The devices of all processes; each process maps over its own.

    >>> devices = find_devices(num_devices=1)
    >>> gather(map_batch(lambda scale, batch: scale * batch, devices)(2.0, shard(np.arange(2.0), devices))).tolist()
    [0.0, 2.0]
    """
    mesh = Mesh(np.asarray(local(devices)), (AXIS,))
    replicated_sharding, batch_sharding = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    mapped = jit_batch(function, mesh)

    def call(replicated, batch):
        return mapped(jax.device_put(replicated, replicated_sharding), jax.device_put(batch, batch_sharding))

    return call


def jit_batch(function: Callable[..., PyTree], mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the jitted function of `map_batch`, whose arguments must be placed; it can be compiled ahead of time.

    >>> mesh = Mesh(np.asarray(find_devices(num_devices=1)), (AXIS,))
    >>> jit_batch(lambda scale, batch: scale * batch, mesh)(2.0, np.ones((1, 3))).tolist()
    [[2.0, 2.0, 2.0]]
    """

    def one_device(replicated, batch):
        rows = function(replicated, jax.tree.map(lambda array: array[0], batch))
        return jax.tree.map(lambda array: array[None], rows)

    # Not jax.pmap, whose caches keep the arrays of closures alive (jax 0.10 and 0.11).
    in_specs, out_specs = (PartitionSpec(), PartitionSpec(AXIS)), PartitionSpec(AXIS)
    mapped = jax.shard_map(one_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, compiler_options=_compiler_options(mesh.devices.flat[0].platform))


def _compiler_options(platform: str) -> dict[str, int]:
    """Returns options with which a CPU compiles attacks in 0.7 to 0.8 of the time (docs/performance.md).

    Attacks run as fast and to the same bits with them. Steps of training are rounded otherwise, so `map_step` has none.
    """
    given = _OPTIMIZATION in os.environ.get("XLA_FLAGS", "")
    return {_OPTIMIZATION: 2} if platform == "cpu" and not given else {}


def gather(rows: jax.Array | np.ndarray) -> np.ndarray:
    """Returns the rows of all devices on the host, in all processes: `[D, B / D, ...]` to `[B, ...]`.

    >>> gather(np.zeros((2, 3, 4))).shape
    (6, 4)
    """
    joined = np.asarray(rows).reshape(-1, *rows.shape[2:])
    return joined if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(joined, tiled=True))

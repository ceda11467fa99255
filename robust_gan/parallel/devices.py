"""Which devices there are, what lies where, and the mapped functions.

Steps are written per device over the axis `AXIS` and mapped with `jax.pmap` in its present form: the train state is
unstacked and replicated, the batch is sharded over its leading axis.

Where there are several processes, `devices` are those of all of them, the first process's first. Every process calls
the same functions in the same order, holds what lies on its own devices, and gives its own shares: so N processes of M
devices are one process of N x M.
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

_RUN_AHEAD = 8


def find_devices(platform: str = "", num_devices: int = 0) -> list[jax.Device]:
    """Returns the devices to compute on.

    Args:
        platform: `cpu`, `gpu` or `tpu`; empty for the best there is.
        num_devices: How many of each process; 0 for all.

    Returns:
        Those of all processes, in the order of the processes.

    Raises:
        UserError: The platform is absent, or has fewer devices than asked for.

    >>> len(find_devices(num_devices=1))
    1
    """
    try:
        devices = jax.local_devices(backend=platform or None)
    except (RuntimeError, AssertionError) as error:  # jax asserts that it found something.
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
    """Returns those of the devices that are this process's own.

    >>> local(find_devices()) == find_devices()
    True
    """
    if jax.process_count() == 1:
        return list(devices)
    return [device for device in devices if device.process_index == jax.process_index()]


def check_batch_size(batch_size: int, devices: Sequence[jax.Device]) -> None:
    """Refuses a batch that the devices cannot share evenly.

    Raises:
        UserError: It is not divisible by their number.

    >>> check_batch_size(64, find_devices(num_devices=1))
    """
    if batch_size % len(devices):
        lower = batch_size // len(devices) * len(devices)
        raise UserError(
            f"batch_size {batch_size} is not divisible by the {len(devices)} devices: "
            f"take {f'{lower} or ' if lower else ''}{lower + len(devices)}"
        )


def replicate(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Places a whole copy of every array on each device of this process; the arrays keep their shapes.

    >>> replicate(np.zeros(3), find_devices(num_devices=1)).shape
    (3,)
    """
    sharding = NamedSharding(Mesh(np.asarray(local(devices)), (AXIS,)), PartitionSpec())
    return jax.device_put(tree, sharding)


def shard(array: np.ndarray, devices: Sequence[jax.Device], axis: int = 0) -> np.ndarray:
    """Cuts a batch into equal contiguous shares, one per device, on a new leading axis.

    Args:
        array: The whole batch `[B, ...]`; every process gives the same.
        devices: D, of all processes.
        axis: Which to cut.

    Returns:
        The shares of this process's d devices, `[d, B / D, ...]`.

    >>> split(np.arange(4), find_devices(num_devices=1)).shape
    (1, 4)
    """
    shares = np.split(array, len(devices), axis=axis)
    ours = set(local(devices))
    return np.stack([share for share, device in zip(shares, devices, strict=True) if device in ours])


def shard_tree(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Cuts every array of a tree with `split`.

    >>> shard_tree((np.zeros(4), np.zeros((4, 2))), find_devices(num_devices=1))[1].shape
    (1, 4, 2)
    """
    return jax.tree.map(lambda array: shard(array, devices), tree)


def map_step(step: Callable[..., PyTree], devices: Sequence[jax.Device]) -> Callable[..., PyTree]:
    """Compiles `step(state, data, share) -> (state, metrics)` over the devices.

    State and data are replicated, the share is each device's own (`split`), and what comes out is the same on all. The
    state is donated: use only the returned one. At most a few steps run ahead of the host on several CPU devices,
    where an unlimited lead aborts the process.

    >>> devices = find_devices(num_devices=1)
    >>> mapped = map_step(lambda state, data, share: (state + data, share[0]), devices)
    >>> mapped(*replicate((np.zeros(3), np.ones(3)), devices), np.ones((1, 2)))[0].tolist()
    [1.0, 1.0, 1.0]
    """
    mapped = _mapped_step(step, devices)
    if len(devices) == 1 or devices[0].platform != "cpu":
        return mapped
    ahead: collections.deque[PyTree] = collections.deque()

    @functools.wraps(step)
    def bounded(state, data, share):
        state, metrics = mapped(state, data, share)
        ahead.append(metrics)
        if len(ahead) == _RUN_AHEAD:
            jax.block_until_ready(ahead.popleft())
        return state, metrics

    return bounded


def compile_step(step: Callable[..., PyTree], devices: Sequence[jax.Device], *arguments: PyTree) -> jax.stages.Compiled:
    """Compiles what `map_step` compiles, at once: to ask what it needs, and to call it with nothing left to compile.

    Args:
        step: `(state, data, share) -> (state, metrics)`.
        devices: Where.
        *arguments: State, data and share, placed as for the call.

    >>> devices = find_devices(num_devices=1)
    >>> state, data = replicate((np.zeros(3), np.ones(3)), devices)
    >>> share = np.ones((1, 2))
    >>> compiled = compile_step(lambda state, data, share: (state + data, share[0]), devices, state, data, share)
    >>> compiled(state, data, share)[0].tolist()
    [1.0, 1.0, 1.0]
    """
    return _mapped_step(step, devices).lower(*arguments).compile()


def _mapped_step(step, devices):
    return jax.pmap(
        step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=(None, None), devices=devices, donate_argnums=(0,)
    )


def map_batch(function: Callable[..., PyTree], devices: Sequence[jax.Device]) -> Callable[..., PyTree]:
    """Compiles `function(replicated, share) -> rows` over the devices; the rows stay where they are (see `join`).

    What is compiled belongs to the returned function: it is traced anew at each call of `map_batch`, and let go with
    what it holds when the returned function is.

    Args:
        function: Each row of its result depends on the same row of the share alone.
        devices: Of all processes; each maps its own.

    >>> devices = find_devices(num_devices=1)
    >>> join(map_batch(lambda scale, share: scale * share, devices)(2.0, split(np.arange(2.0), devices))).tolist()
    [0.0, 2.0]
    """
    mesh = Mesh(np.asarray(local(devices)), (AXIS,))
    everywhere, along = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))

    def one_device(replicated, share):
        rows = function(replicated, jax.tree.map(lambda array: array[0], share))
        return jax.tree.map(lambda array: array[None], rows)

    # Not jax.pmap, whose caches keep the arrays that a function closes over (jax 0.10 and 0.11).
    mapped = jax.jit(
        jax.shard_map(
            one_device, mesh=mesh, in_specs=(everywhere.spec, along.spec), out_specs=along.spec, check_vma=False
        )
    )

    def call(replicated, share):
        return mapped(jax.device_put(replicated, everywhere), jax.device_put(share, along))

    return call


def gather(rows: jax.Array | np.ndarray) -> np.ndarray:
    """Joins the devices' rows again on the host: `[D, B / D, ...]` to `[B, ...]`, those of all processes in all.

    >>> join(np.zeros((2, 3, 4))).shape
    (6, 4)
    """
    joined = np.asarray(rows).reshape(-1, *rows.shape[2:])
    return joined if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(joined, tiled=True))

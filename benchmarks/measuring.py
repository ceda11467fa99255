"""What the benchmarks share: timing, what they ran on, and a report on the screen and in JSON."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "torchattacks", "foolbox", "pyautoattack")


def environment() -> dict[str, Any]:
    """Returns the versions of the libraries that are here, and where and when this ran."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": versions,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "command": sys.argv,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def timed(run: Callable[[], Any], count: int = 1) -> dict[str, float]:
    """Times `run`, which must wait for its result: seconds of the clock and of this process, both by `count`."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {
        "seconds": (time.perf_counter() - wall) / count,
        "cpu_seconds": (time.process_time() - cpu) / count,
        "load": os.getloadavg()[0],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, least and greatest.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0, 'count': 3}
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "count": len(values)}


def peak_host_bytes() -> int:
    """Returns the most memory that this process has held since `forget_peak`, or ever."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Lets `peak_host_bytes` start from what is held now: what a compiler took is not what a step takes."""
    with contextlib.suppress(OSError):  # Where the kernel does not let us, the peak is that of the whole process.
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def jax_matmul_rate(seconds: float = 1.0, dtype: str = "float32", size: int = 0) -> float:
    """Returns the FLOP/s of square matrix products in JAX on random data, one after the other: the best of many."""
    import jax
    import jax.numpy as jnp

    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (size, size), jnp.float32).astype(dtype) for key in keys)
    # The factor keeps the numbers from growing; the chain keeps the products from overlapping.
    product = jax.jit(lambda a, b: (a @ b) * (size**-0.5))
    return _rate(lambda: product(left, right).block_until_ready(), size, seconds)


def torch_matmul_rate(seconds: float = 1.0, dtype: str = "float32", size: int = 0) -> float:
    """Returns the same in PyTorch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = size or (8192 if device == "cuda" else 2048)
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))

    def run():
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()

    return _rate(run, size, seconds)


def _rate(run: Callable[[], Any], size: int, seconds: float) -> float:
    run(), run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, timed(run)["seconds"])
    return 2 * size**3 / best


class Report:
    """Rows that are printed and written as soon as they are there.

    Args:
        path: A JSON file, written whole after each row; None for the screen alone.
        title: What is measured.
    """

    def __init__(self, path: str | os.PathLike | None, title: str) -> None:
        """Prints the title."""
        self._path = pathlib.Path(path) if path else None
        self.document: dict[str, Any] = {"title": title, "environment": environment(), "rows": []}
        print(f"# {title}", flush=True)

    def add(self, name: str, **values: Any) -> None:
        """Prints a row, and writes all that there are."""
        self.document["rows"].append({"name": name} | values)
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.document, indent=1) + "\n")
        shown = ", ".join(f"{key} {_short(value)}" for key, value in values.items() if _is_short(value))
        print(f"{name}: {shown}", flush=True)


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float | str) or (isinstance(value, dict) and "median" in value)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.4g} ({value['min']:.4g} to {value['max']:.4g})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Flags of XLA and the compilation cache, set before jax is loaded where the user has not set them."""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys

FAST_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
"""On a CPU, convolutions by Eigen and oneDNN: up to 1.9 times as fast as by the default library on these networks."""
SPREAD = "--xla_force_host_platform_device_count"

_CACHE_SIZE = 4 * 2**30
"""Bytes, after which the least used are removed: a game's step takes some MB."""


def set_flags(*, spread: bool = False) -> None:
    """Extends `XLA_FLAGS`; changes nothing in it, and does nothing once jax is loaded.

    Args:
        spread: Make a device of every core of a CPU, for work that splits without communication, such as evaluation:
            one device uses only part of the cores with small networks.
    """
    if "jax" in sys.modules:
        return
    given = os.environ.get("XLA_FLAGS", "")
    added = []
    if "ynn_fusion_type" not in given and _is_known(FAST_CONVOLUTIONS):
        added.append(FAST_CONVOLUTIONS)
    if spread and SPREAD not in given:
        added.append(f"{SPREAD}={_cores()}")
    if added:
        os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()


def set_cache() -> None:
    """Sets a cache of compiled functions, so that the second start of a run compiles nothing.

    It is in `~/.cache/robust_gan` (or `$XDG_CACHE_HOME/robust_gan`). JAX's own variables take
    precedence: `JAX_COMPILATION_CACHE_DIR` for another folder, `JAX_ENABLE_COMPILATION_CACHE=false` for none.
    """
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = _home() / cache_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # The home cannot be written: slower, but no error.
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_CACHE_SIZE))


def cache_name() -> str:
    """Returns a name for the cache of this jaxlib on this kind of processor.

    Code compiled for a CPU may use all its instructions, and different machines can share a home.

    >>> cache_name().startswith("jaxlib-0.")
    True
    """
    kind = hashlib.sha256(_processor().encode()).hexdigest()[:12]
    return f"jaxlib-{importlib.metadata.version('jaxlib')}-{kind}"


def _home() -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(home, "robust_gan")


def _is_known(flag: str) -> bool:
    """Returns whether this jaxlib accepts a flag; an unknown flag or value would end the process.

    Another process tries it, in a third of a second, and the answer is stored for this version.
    """
    name = hashlib.sha256(f"{importlib.metadata.version('jaxlib')} {flag}".encode()).hexdigest()[:12]
    answer = _home() / "flags" / name
    try:
        return answer.read_text() == "known"
    except OSError:
        pass
    program = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "XLA_FLAGS": flag}, capture_output=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return False
    known = ended.returncode == 0
    if not known and b"parse_flags_from_env" not in ended.stderr:
        return False  # It failed for another reason, such as a lack of memory: the next start tries again.
    with contextlib.suppress(OSError):  # The home cannot be written: the next start tries again.
        answer.parent.mkdir(parents=True, exist_ok=True)
        part = answer.with_name(f"{name}.{os.getpid()}")
        part.write_text("known" if known else "unknown")
        part.replace(answer)
    return known


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _cores() -> int:
    """Returns the number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

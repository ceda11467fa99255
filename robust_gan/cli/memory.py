"""Memory of the process on Linux: large pages, requested before a program starts, and what the compiler freed."""

import ctypes
import functools
import os
import pathlib
import platform
import sys

_TUNABLE = "glibc.malloc.hugetlb"
_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_COMPILED = "/jax/core/compile/backend_compile_duration"
_LONG = 2.0
"""Seconds of a compilation after which memory is returned: it takes up to half a second."""


def use_large_pages() -> None:
    """Restarts this program, as the same process, with memory pages of 2 MB where Linux gives them on request.

    A training step on a CPU writes some hundred MB and reads them in another order. With pages of 4 kB the address
    lookups take time: a step of ResNet-20 took a quarter less processor time with large pages. glibc requests them
    only if `GLIBC_TUNABLES` says so when the program starts. Nothing happens where that is set already, where jax is
    loaded, and on other systems.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "jax" in sys.modules or _TUNABLE in tunables or not _on_request():
        return
    environment = {**os.environ, "GLIBC_TUNABLES": ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


@functools.cache  # One listener, however often it is called.
def return_after_compiling() -> None:
    """Has freed memory returned to the system after each long compilation; loads jax.

    XLA frees some hundred MB of small pieces when it has compiled a training step. glibc keeps them, and they would
    count beside the arrays of every step.
    """
    import jax

    def return_if_long(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED and duration_secs >= _LONG:
            return_freed()

    jax.monitoring.register_event_duration_secs_listener(return_if_long)


def return_freed() -> None:
    """Returns freed memory to the system; where the allocator is not glibc's, nothing happens."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _on_request() -> bool:
    try:
        mode = _MODE.read_text()
    except OSError:
        return False
    return "[madvise]" in mode and bool(sys.executable) and _is_glibc()


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"

"""Memory in large pages, which has to be asked for before a program starts."""

import os
import pathlib
import platform
import sys

_TUNABLE = "glibc.malloc.hugetlb"
_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_large_pages() -> None:
    """Starts this program again, as the same process, with memory in pages of 2 MB where Linux gives them on request.

    A training step on a CPU writes some hundred MB and reads them in another order. In pages of 4 kB it waits for
    their addresses: a step of ResNet-20 took a quarter less of the processor in large ones. glibc asks for them only
    if `GLIBC_TUNABLES` says so when the program starts. Nothing happens where that is set already, where jax is
    loaded, and on other systems.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "jax" in sys.modules or _TUNABLE in tunables or not _on_request():
        return
    environment = {**os.environ, "GLIBC_TUNABLES": ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _on_request() -> bool:
    try:
        mode = _MODE.read_text()
    except OSError:
        return False
    return "[madvise]" in mode and bool(sys.executable) and platform.libc_ver()[0] == "glibc"

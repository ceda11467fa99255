"""Large memory pages, which are requested before a program starts."""

import os
import pathlib
import platform
import sys

_TUNABLE = "glibc.malloc.hugetlb"
_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


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


def _on_request() -> bool:
    try:
        mode = _MODE.read_text()
    except OSError:
        return False
    return "[madvise]" in mode and bool(sys.executable) and platform.libc_ver()[0] == "glibc"

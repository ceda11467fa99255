"""What XLA is told before jax is loaded, where the user has not told it already."""

import importlib.metadata
import os
import sys

FAST_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
"""On a CPU, convolutions by Eigen and oneDNN: up to 1.9 times as fast as by the default library on these networks."""
SPREAD = "--xla_force_host_platform_device_count"

# An unknown flag ends the process; these versions know it.
_KNOWN = ("0.10.", "0.11.")


def set_flags(*, spread: bool = False) -> None:
    """Adds to `XLA_FLAGS`; nothing that is there is changed, and nothing where jax is loaded already.

    Args:
        spread: Make a device of every core of a CPU. For work that splits without talking, as evaluation does: one
            device keeps only part of the cores busy with small networks.
    """
    if "jax" in sys.modules:
        return
    given = os.environ.get("XLA_FLAGS", "")
    added = []
    if importlib.metadata.version("jaxlib").startswith(_KNOWN) and "ynn_fusion_type" not in given:
        added.append(FAST_CONVOLUTIONS)
    if spread and SPREAD not in given:
        added.append(f"{SPREAD}={_cores()}")
    if added:
        os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()


def _cores() -> int:
    """Counts the cores that this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

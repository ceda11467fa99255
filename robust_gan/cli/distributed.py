"""Commands that run as one of several processes, on one machine or many: their flags, and how they exit."""

import sys
import traceback
from collections.abc import Callable, Sequence

from absl import flags

from robust_gan.cli.errors import complain, guard

LOST = 1
"""The exit code after another process was lost."""


GROUP = {
    "Several processes": [
        "distributed", "coordinator=HOST:PORT", "num_processes=N", "process_id=I", "join_timeout=SECONDS"
    ]
}  # fmt: skip
"""The flags of `define_flags`, as `--help` shows them."""


def define_flags() -> None:
    """Defines the flags of a command that can be one of several processes."""
    flags.DEFINE_bool("distributed", False, "One of several; detected on Cloud TPU, SLURM, Kubernetes, Open MPI.")
    flags.DEFINE_string("coordinator", "", "Elsewhere: the address on which process 0 listens,")
    flags.DEFINE_integer("num_processes", None, "the number of processes,")
    flags.DEFINE_integer("process_id", None, "and the number of this one, from 0.")
    flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for all processes.")


def is_distributed() -> bool:
    """Returns whether the flags name several processes."""
    return any(flags.FLAGS[name].value for name in ("distributed", "coordinator")) or any(
        flags.FLAGS[name].value is not None for name in ("num_processes", "process_id")
    )


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int | None:
    """Joins the other processes, calls `main` as `errors.guard` does, and leaves them.

    A process that fails exits at once with an error message; the others notice within seconds.
    """
    from robust_gan import parallel

    def joined(argv: Sequence[str]) -> int | None:
        given = flags.FLAGS
        parallel.connect(given.coordinator, given.num_processes, given.process_id, timeout=given.join_timeout)
        return main(argv)

    try:
        code = guard(joined, argv)
    except Exception as error:
        if not parallel.is_lost(error):
            traceback.print_exc()
            parallel.leave(1)
        number, count = parallel.process_index_and_count()
        complain(
            f"process {number} of {count} lost another process of the run, which died or cannot be reached (its own "
            "last words say why): start all of them again, and the run goes on from its last checkpoint"
        )
        parallel.leave(LOST, lost=True)
    if code:
        parallel.leave(code)
    parallel.disconnect()
    sys.stdout.flush()
    return code

"""A launcher as one of several processes, on one machine or many: how it is told so, and how it ends."""

import sys
import traceback
from collections.abc import Callable, Sequence

from absl import flags

from robust_gan.cli.errors import complain, guard

LOST = 1
"""The exit code where another process was lost."""


GROUP = {
    "Several processes": [
        "distributed", "coordinator=HOST:PORT", "num_processes=N", "process_id=I", "join_timeout=SECONDS"
    ]
}  # fmt: skip
"""The flags of `define_flags`, as `--help` shows them."""


def define_flags() -> None:
    """Defines the flags of a launcher that can be one of several processes."""
    flags.DEFINE_bool("distributed", False, "One of several: found out on Cloud TPU, SLURM, Kubernetes and Open MPI.")
    flags.DEFINE_string("coordinator", "", "Where there is nothing to find out: where process 0 listens,")
    flags.DEFINE_integer("num_processes", None, "how many processes there are,")
    flags.DEFINE_integer("process_id", None, "and which of them this is, from 0.")
    flags.DEFINE_integer("join_timeout", 300, "How long to wait until all have come.")


def is_distributed() -> bool:
    """Tells whether the command line says that there are several processes."""
    return any(flags.FLAGS[name].value for name in ("distributed", "coordinator")) or any(
        flags.FLAGS[name].value is not None for name in ("num_processes", "process_id")
    )


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int | None:
    """Joins the other processes, calls `main`, and leaves them, as `mistakes.guard` does for one alone.

    A process that fails leaves at once and says why; the others learn of it within seconds.
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

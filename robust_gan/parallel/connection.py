"""How a process joins the others of its run, and how it leaves them: in time, and with a sentence."""

import os
import re
import socket
import subprocess
import sys
import threading
from typing import NoReturn

import jax

from robust_gan.errors import UserError, one_line

HEARTBEAT = 30
"""Seconds after which a process that is silent counts as lost; one whose connections close is lost at once."""

_ADDRESS = re.compile(r"\[?[\w.:-]+\]?:(\d{1,5})", re.ASCII)
_LEAVING = 5.0  # Seconds that a process which failed waits for the others to fail alike.
_FINISHING = 600  # And one that is done for the first, which may still be saving.

# Where another process is lost while this one is not in the middle of talking to it, JAX aborts the process from a
# thread of its own, with a stack trace for its last words. The herald outlives that, and says a sentence.
_HERALD = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr, flush=True)"

_herald: subprocess.Popen | None = None


def connect(
    coordinator: str = "", num_processes: int | None = None, process_id: int | None = None, *, timeout: int = 300
) -> None:
    """Joins the processes of a run; called before anything asks for a device.

    Args:
        coordinator: HOST:PORT where the first process listens; empty to be detected, with the two numbers (Cloud TPU,
            SLURM, Kubernetes, Open MPI).
        num_processes: How many there are.
        process_id: Which this is, from 0.
        timeout: Seconds to wait for all to come. After that the process ends, with code 2 and a sentence.

    Raises:
        UserError: Only some of the three are given, one of them is wrong, or there is nothing to detect.
    """
    global _herald
    _check(coordinator, num_processes, process_id, timeout)
    # It would take SIGTERM for itself, and never act on it before the first step.
    jax.config.update("jax_enable_preemption_service", False)
    watchdog = threading.Timer(timeout, _give_up, (coordinator, num_processes, process_id, timeout))
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes,
            process_id,
            # JAX ends the process at its own timeout without a word that a user understands.
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=_FINISHING,
        )
        jax.devices()  # All wait here for each other's devices.
    except (ValueError, RuntimeError) as error:
        if not coordinator:
            raise UserError(
                "no cluster was found (Cloud TPU, SLURM, Kubernetes, Open MPI): give --coordinator=HOST:PORT, "
                f"--num_processes and --process_id ({one_line(error)})"
            ) from error
        raise UserError(
            f"process {process_id} of {num_processes} cannot use the coordinator {coordinator} "
            f"({one_line(error)}): give an address of the machine of process 0, and a port that is free "
            "there"
        ) from error
    finally:
        watchdog.cancel()
    _herald = subprocess.Popen(
        [
            sys.executable, "-I", "-S", "-c", _HERALD,
            f"error: process {jax.process_index()} of {jax.process_count()} ended before its run did: it was killed, "
            "or another process of the run was lost; start all of them again, and the run goes on from its last "
            "checkpoint",
        ],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def disconnect() -> None:
    """Leaves the others when all is done; returns when all of them are done.

    >>> disconnect()  # Nothing to leave.
    """
    if jax.distributed.is_initialized():
        _dismiss()
        jax.distributed.shutdown()


def leave(code: int, *, lost: bool = False) -> NoReturn:
    """Ends the process after a failure that has been told, without waiting for others who wait for this one.

    Args:
        code: The exit code.
        lost: Whether another process is known to be gone; else all may be failing alike, and get a moment for it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    _dismiss()
    if not lost:
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(_LEAVING)
    os._exit(code)


def _dismiss() -> None:
    global _herald
    if _herald is not None and _herald.stdin is not None:
        _herald.stdin.write(b"done")
        _herald.stdin.close()
        _herald.wait()
    _herald = None


def _check(coordinator: str, num_processes: int | None, process_id: int | None, timeout: int) -> None:
    given = {"coordinator": coordinator or None, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"--{missing[0]} is missing: give all of --{', --'.join(given)}, or none where a cluster is")
    port = _ADDRESS.fullmatch(coordinator)
    if coordinator and not (port and 0 < int(port[1]) < 2**16):
        raise UserError(f"the coordinator must be HOST:PORT, such as 10.0.0.1:1234, not {coordinator!r}")
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id must be in 0..num_processes - 1, and num_processes at least 1, not {process_id} of "
            f"{num_processes}"
        )
    if timeout < 1:
        raise UserError(f"the time to wait for the other processes must be at least 1 s, not {timeout}")


def _give_up(coordinator: str, num_processes: int | None, process_id: int | None, timeout: int) -> None:
    """Ends the process where not all have come in time; JAX, which is in C++ then, aborts it with a stack trace."""
    who = f"process {process_id} of {num_processes}" if coordinator else "this process"
    where = coordinator or "that the cluster names"
    if process_id and not _answers(coordinator):
        what = (
            f"waited {timeout} s for the coordinator {where}, and nobody answers there: start process 0 on that machine"
        )
    else:
        what = (
            f"waited {timeout} s at the coordinator {where}, and not all of the processes came: start them all within "
            "that time, with the same --coordinator and --num_processes"
        )
    print(f"error: {who} {what}", file=sys.stderr, flush=True)
    os._exit(2)


def _answers(coordinator: str) -> bool:
    host, _, port = coordinator.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False

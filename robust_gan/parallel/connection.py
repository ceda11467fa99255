"""Connects a process to the others of its run, and disconnects it with a sentence and within seconds."""

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
"""Seconds of silence after which a process counts as lost; one whose connections close is lost at once."""

_ADDRESS = re.compile(r"\[?[\w.:-]+\]?:(\d{1,5})", re.ASCII)
_LEAVE_SECONDS = 5.0  # A failed process waits for the others to fail likewise.
_FINISH_SECONDS = 600  # A finished process waits for the primary one, which may still be saving.

# If another process is lost between two collectives, a thread of JAX aborts this process with a stack trace. This
# program outlives it and prints one sentence.
_REPORTER = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr, flush=True)"

_reporter: subprocess.Popen | None = None


def connect(
    coordinator: str = "", num_processes: int | None = None, process_id: int | None = None, *, timeout: int = 300
) -> None:
    """Connects the processes of a run, before the first use of a device.

    Args:
        coordinator: HOST:PORT of process 0; empty to detect it and the two numbers (Cloud TPU, SLURM, Kubernetes, Open
            MPI).
        num_processes: Number of processes.
        process_id: Index of this process, from 0.
        timeout: Seconds to wait for all processes; then this one exits with code 2 and a sentence.

    Raises:
        UserError: Some of the three are missing, one is invalid, or no cluster is detected.
    """
    global _reporter
    _check(coordinator, num_processes, process_id, timeout)
    # It would intercept SIGTERM and not act on it before the first step.
    jax.config.update("jax_enable_preemption_service", False)
    watchdog = threading.Timer(timeout, _give_up, (coordinator, num_processes, process_id, timeout))
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes,
            process_id,
            # At its own timeout JAX aborts the process with a stack trace.
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=_FINISH_SECONDS,
        )
        jax.devices()  # Waits for the devices of all processes.
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
    _reporter = subprocess.Popen(
        [
            sys.executable, "-I", "-S", "-c", _REPORTER,
            f"error: process {jax.process_index()} of {jax.process_count()} ended before its run did: it was killed, "
            "or another process of the run was lost; start all of them again, and the run resumes from its last "
            "checkpoint",
        ],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def disconnect() -> None:
    """Disconnects at the end of a run, after all processes have finished.

    >>> disconnect()  # Without effect: nothing is connected.
    """
    if jax.distributed.is_initialized():
        _stop_reporter()
        jax.distributed.shutdown()


def leave(code: int, *, lost: bool = False) -> NoReturn:
    """Exits after a failure, without waiting for processes that wait for this one.

    Args:
        code: The exit code.
        lost: Whether another process is lost; otherwise all may be failing likewise, and get a few seconds for it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    _stop_reporter()
    if not lost:
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(_LEAVE_SECONDS)
    os._exit(code)


def _stop_reporter() -> None:
    global _reporter
    if _reporter is not None and _reporter.stdin is not None:
        _reporter.stdin.write(b"done")
        _reporter.stdin.close()
        _reporter.wait()
    _reporter = None


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
    """Exits at the timeout, before JAX aborts the process with a stack trace."""
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

"""How a run ends early: at a signal, or at an exception while files are open."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator

_TOGETHER = 0.5
"""Seconds within which two signals are one."""


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects the first SIGTERM or SIGINT, so that the loop can end its step; a second one acts as ever.

    Two that come run_on_all_processes, as some supervisors send them, are one.
    """
    received: list[int] = []
    arrived = 0.0
    try:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def handle(number, frame):
            nonlocal arrived
            if not received:
                arrived = time.monotonic()
                received.append(number)
            elif time.monotonic() - arrived > _TOGETHER:
                # Not before: Python complains of a signal that was on its way when its handler was taken away.
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for number in before:
            signal.signal(number, handle)
    except ValueError:  # Only the main thread may set handlers; elsewhere the caller handles signals.
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def closed(close: Callable[[], None]) -> Iterator[None]:
    """Closes at the end; where that fails after a failure, the first one goes on, with the second as a note."""
    try:
        yield
    except BaseException as first:
        try:
            close()
        except Exception as second:
            first.add_note(f"and then, in closing: {second}")
        raise
    close()


@contextlib.contextmanager
def exit_at_sigterm() -> Iterator[None]:
    """Ends the program at the first SIGTERM as an exception does, so that what is open is written; a second one kills.

    Inside other handlers than the system's, and outside the main thread, whoever set them knows better.
    """

    def handle(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.exit(128 + number)

    try:
        usual = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        if usual:
            signal.signal(signal.SIGTERM, handle)
    except ValueError:  # Only the main thread may set handlers.
        usual = False
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

"""Signals, and exceptions while files are open."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator

_TOGETHER = 0.5
"""Seconds within which two signals count as one, as some supervisors send two."""


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects the first SIGTERM or SIGINT, so that the loop can finish its step; a second one ends the process."""
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
                # Not earlier: Python reports a pending signal whose handler was removed.
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for number in before:
            signal.signal(number, handle)
    except ValueError:  # Only the main thread may set handlers.
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def closed(close: Callable[[], None]) -> Iterator[None]:
    """Closes at the end; an exception in closing becomes a note of an earlier exception, if there is one."""
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
    """Raises SystemExit at the first SIGTERM, so that open files are written; a second one kills the process.

    Without effect outside the main thread, or if another handler is set.
    """

    def handle(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.exit(128 + number)

    try:
        is_default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        if is_default:
            signal.signal(signal.SIGTERM, handle)
    except ValueError:  # Only the main thread may set handlers.
        is_default = False
    try:
        yield
    finally:
        if is_default:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

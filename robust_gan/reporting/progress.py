"""Progress of a run: a bar where stderr is a terminal, and lines on stdout where that is none."""

import sys
import time
from typing import Any

import tqdm

from robust_gan import parallel

SECONDS = 30.0
"""Between two lines."""


class Progress:
    """Shows how far a run is; used as a context.

    Args:
        total: Units to do.
        done: Units done before.
        unit: Their name.
        show: Whether to show a bar; None for a bar where stderr is a terminal, and for a line on stdout, at most every
            `SECONDS`, where stdout is none. Only the primary process shows anything.

    >>> with Progress(10, unit="image", show=False) as progress:
    ...     progress.update(3)
    """

    def __init__(self, total: int, *, unit: str, done: int = 0, show: bool | None = None) -> None:
        primary = parallel.is_primary()
        has_bar = primary and (sys.stderr.isatty() if show is None else show)
        self._prints = primary and show is None and not sys.stdout.isatty()
        self._bar: Any = tqdm.tqdm(total=total, initial=min(done, total), unit=unit, disable=not has_bar)
        self._total, self._unit, self._first, self._done = total, unit, done, done
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> "Progress":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the bar."""
        self._bar.close()

    def update(self, count: int) -> None:
        """Counts units that are done, and prints a line if one is due."""
        self._done += count
        self._bar.update(count)
        if self._unit != "step":  # Those have more to say.
            self.describe("")

    def is_due(self) -> bool:
        """Returns whether the next line is due."""
        return self._prints and time.monotonic() - self._printed >= SECONDS

    def describe(self, text: str, *, at_once: bool = False) -> None:
        """Shows text beside the bar; prints a line with it, if one is due.

        Args:
            text: Such as losses.
            at_once: Whether to print a line that is not due yet.
        """
        self._bar.set_postfix_str(text)
        if not (self.is_due() or (self._prints and at_once)):
            return
        self._printed = now = time.monotonic()
        rate = (self._done - self._first) / max(now - self._started, 1e-9)
        parts = [f"{self._unit} {self._done:,} of {self._total:,}", text, f"{rate:.3g} {self._unit}s/s"]
        if rate > 0 and self._done < self._total:
            parts.append(f"{format_duration((self._total - self._done) / rate)} left")
        print(", ".join(part for part in parts if part), flush=True)


def format_duration(seconds: float) -> str:
    """Returns a duration in a readable unit.

    >>> format_duration(42.3), format_duration(600), format_duration(30_000), format_duration(400_000)
    ('42 s', '10 min', '8.3 h', '4.6 days')
    """
    for size, unit in ((86400, "days"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"

"""Two programs that are timed alternately: each is a process that says when it is ready and then measures when asked.

A process of its own for each keeps their memory, their threads and their processor time apart.
"""

import argparse
import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import measuring

TOLERANCE = 1e-4
"""How far a twin may be from ours, see `check_or_serve`."""


class LateError(Exception):
    """A peer did not answer in time, or ended."""


def serve(prepare: Callable[[], tuple[dict[str, Any], Callable[..., dict[str, Any]]]]) -> None:
    """Answers questions on stdin with JSON on stdout until stdin ends; what else is printed goes to stderr.

    Args:
        prepare: Returns facts, which are the first answer, and a function that takes a question's fields.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    facts, measure = prepare()
    answer(facts | {"environment": measuring.environment()})
    for line in sys.stdin:
        answer(measure(**json.loads(line)))


def check_or_serve(given: argparse.Namespace, check: Callable, prepare: Callable, what: str) -> None:
    """Ends a twin's `main`: by `--check` it says how far it is from ours, and exits with 1 if too far; else it serves.

    Args:
        given: The command line.
        check: Takes the command line and returns the largest difference.
        prepare: Takes the command line; see `serve`.
        what: What the difference is of.
    """
    if given.check:
        largest = check(given)
        print(f"largest difference of {what}: {largest:.2e}")
        raise SystemExit(0 if largest <= TOLERANCE else 1)
    serve(lambda: prepare(given))


class Peer:
    """A process that serves.

    Args:
        name: What it is called in the report.
        command: How it is started.
        log: A file for what it prints, of which an error shows the end; by default it prints where we do.
    """

    def __init__(self, name: str, command: Sequence[str], log: pathlib.Path | None = None) -> None:
        """Starts it; it prepares itself meanwhile."""
        self.name, self.facts, self.started = name, {}, time.perf_counter()
        self._log, self._arrived = log, 0.0
        with log.open("w") if log else contextlib.nullcontext() as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self._process.stdout:
            self._arrived = time.perf_counter()
            self._answers.put(line)
        self._answers.put(None)

    def wait(self, seconds: float) -> dict[str, Any]:
        """Waits for the next answer.

        Raises:
            LateError: There is none in that time, or the process has ended.
        """
        try:
            line = self._answers.get(timeout=max(seconds, 0.01))
        except queue.Empty:
            raise LateError(f"{self.name} did not answer within {seconds:.0f} seconds{self._end()}") from None
        if line is None:
            raise LateError(f"{self.name} ended with code {self._process.wait()}{self._end()}")
        return json.loads(line)

    def ready(self, seconds: float) -> dict[str, Any]:
        """Waits until it is prepared; returns its facts."""
        if not self.facts:
            facts = self.wait(seconds)
            self.facts = facts | {"seconds_to_ready": self._arrived - self.started}
        return self.facts

    def ask(self, seconds: float, **question: Any) -> dict[str, Any]:
        """Asks, and waits for the answer."""
        self.tell(**question)
        return self.wait(seconds)

    def has_answered(self) -> bool:
        """Tells whether `ready`, or `wait`, would return at once."""
        return bool(self.facts) or not self._answers.empty()

    def runs(self) -> bool:
        """Tells whether the process has not ended."""
        return self._process.poll() is None

    def tell(self, **question: Any) -> None:
        """Asks without waiting.

        Raises:
            LateError: The process has ended.
        """
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LateError(f"{self.name} ended with code {self._process.wait()}{self._end()}") from None

    def _end(self) -> str:
        return ": ..." + self._log.read_text(errors="replace")[-1500:] if self._log else ""

    def close(self) -> None:
        """Ends it and what it started."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        self._listener.join()
        self._process.stdout.close()


def alternate(
    peers: Sequence[Peer], rounds: int, seconds: float, by: str = "seconds", **question: Any
) -> dict[str, Any]:
    """Asks the peers alternately, A B A B; the first round is not counted.

    Args:
        peers: All ready.
        rounds: How many that count.
        seconds: For one answer.
        by: Which of the answers' numbers the ratio is of.
        question: What they are asked.

    Returns:
        For each peer the spread of its numbers, and `ratio`: of the first to the second, round by round.
    """
    answers: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    for index in range(rounds + 1):
        for peer in peers:
            answer = peer.ask(seconds, **question)
            if index:
                answers[peer.name].append(answer)
    result: dict[str, Any] = {
        name: {key: measuring.spread([answer[key] for answer in given]) for key in given[0]}
        for name, given in answers.items()
    }
    if len(peers) == 2:
        first, second = (answers[peer.name] for peer in peers)
        result["ratio"] = measuring.spread([a[by] / b[by] for a, b in zip(first, second, strict=True)])
    return result

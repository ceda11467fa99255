"""Kills a run with SIGKILL at random moments and resumes it: each must end like the undisturbed one, bit for bit.

    python tests/faults/kills.py [--kills=50] [--seed=0]

The moments are drawn: one of the run's events (a line of metrics, the start or end of a validation, the start of a
save, a save that is under way in the background), and a delay of up to 30 ms after it. Compared are the SHA-256 digests
of every array of the last checkpoint and of the best, the metrics byte for byte, and what lies in the folder.
"""

import argparse
import collections
import os
import pathlib
import random
import select
import shutil
import signal
import sys
import tempfile
import time

import smallest

from robust_gan import checkpoint, data, parallel, recording, training, validation, workdir  # noqa: F401

EVENTS = {b"t": "training", b"v": "validating", b"s": "saving", b"c": "saving, in the background"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    drawn, began = random.Random(arguments.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        events = collections.Counter(run(folder / "undisturbed"))
        wanted = look(folder / "undisturbed")
        killed, wrong, resumed_from = collections.Counter(), [], collections.Counter()
        while killed.total() < arguments.kills:
            where = folder / "killed"
            kind = drawn.choice(sorted(events))
            at = run(where, (kind, drawn.randrange(events[kind]), drawn.uniform(0, 0.03)))
            if at is None:
                shutil.rmtree(where)
                continue  # It ended before.
            killed[EVENTS[kind]] += 1
            steps = [int(path.name) for path in (where / "checkpoints").glob("*") if path.name.isdigit()]
            resumed_from[max(steps, default=0)] += 1
            run(where)
            if (found := look(where)) != wanted:
                wrong.append((kind, at, {name for name in wanted if found[name] != wanted[name]}))
            shutil.rmtree(where)
    smallest.report("kills", {
        "killed while": dict(killed),
        "newest whole step at the kill": dict(sorted(resumed_from.items())),
        "ended bit-equal, nothing left behind": f"{killed.total() - len(wrong)} of {killed.total()}",
        "seconds": round(time.monotonic() - began),
    })  # fmt: skip
    for case in wrong:
        print("WRONG", case)
    return bool(wrong)


def run(where, kill=None):
    """Runs to the end, or to a kill; a fork of this process, which has loaded the libraries but started no backend.

    Returns:
        The events; or where it was to be killed, the delay, and None if it ended before.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        train(where, lambda event: os.write(writing, event))
    os.close(writing)
    seen = []
    while event := os.read(reading, 1):
        seen.append(event)
        if kill and seen.count(kill[0]) == kill[1] + 1:
            # Events that come while we wait are not waited for.
            select.select([], [], [], kill[2])
            os.kill(child, signal.SIGKILL)
            kill = (b"", 0, kill[2])
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return kill[2]
    assert status == 0, f"the run failed with {status}"
    return None if kill else seen


def train(where, tell):
    """The child: the run, with its events told."""
    code = 1
    try:
        wrap(recording.Recorder, "record", before=lambda: tell(b"t"))
        wrap(validation, "validate", before=lambda: tell(b"v"), after=lambda: tell(b"v"))
        wrap(checkpoint.Writer, "save", before=lambda: tell(b"s"), after=lambda: tell(b"c"))
        devices = parallel.find_devices(num_devices=1)
        training.train(smallest.config(), where, devices=devices, progress=False, say=lambda _: None)
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def wrap(owner, name, before=lambda: None, after=lambda: None):
    """Tells before and after a function."""
    function = getattr(owner, name)

    def told(*arguments, **settings):
        before()
        result = function(*arguments, **settings)
        after()
        return result

    setattr(owner, name, told)


def look(where):
    """What must be the same."""
    records = {step: checkpoint.read_record(where, step) for step in ("last", "best")}
    return {
        "arrays": {step: (record.step, record.leaves, record.metrics) for step, record in records.items()},
        "metrics": (where / workdir.METRICS).read_text(),
        "files": sorted(str(path.relative_to(where)) for path in where.rglob("*")
                        if path.parts[len(where.parts)] != "checkpoints" or len(path.parts) == len(where.parts) + 2),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

"""Kills a run with SIGKILL at random moments and resumes it: each must end like the undisturbed one, bit for bit.

    python tests/faults/kills.py [--kills=50] [--each=4] [--seed=0]

The moments are drawn: one of the run's events (a line of metrics, the start or end of a validation, the start of a
save, a save that is under way in the background), and a delay of up to 30 ms after it. A run is killed, resumed, killed
again ... and at last let go. Compared are the SHA-256 digests of every array of the last checkpoint and of the best,
the metrics byte for byte, and what lies in the folder.
"""

import argparse
import collections
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import smallest  # Before the libraries.

# isort: split
from robust_gan import checkpoint, parallel, training
from robust_gan.storage import workdir
from robust_gan.training import evaluator, writers

PER_RUN = {b"t": 8, b"v": 6, b"s": 3, b"c": 3}
"""Events from which a kill is drawn, counted from where the run went on."""

EVENTS = {b"t": "training", b"v": "validating", b"s": "saving", b"c": "saving, in the background"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--each", type=int, default=4, help="of one run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    drawn, began = random.Random(arguments.seed), time.monotonic()
    killed, runs, wrong, resumed_from = collections.Counter(), 0, [], collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run(folder / "undisturbed")
        wanted, where = look(folder / "undisturbed"), folder / "killed"
        while killed.total() < arguments.kills:
            moments = []
            for _ in range(min(arguments.each, arguments.kills - killed.total())):
                kind = drawn.choice(sorted(EVENTS))
                moment = (kind, drawn.randrange(PER_RUN[kind]), drawn.uniform(0, 0.03))
                if run(where, moment):
                    moments.append(moment)
                    killed[EVENTS[kind]] += 1
                    steps = [int(path.name) for path in (where / "checkpoints").glob("*") if path.name.isdigit()]
                    resumed_from[max(steps, default=0)] += 1
            run(where)
            runs += 1
            if (found := look(where)) != wanted:
                wrong.append((moments, {name for name in wanted if found[name] != wanted[name]}))
            shutil.rmtree(where)
            print(f"{killed.total()} kills, {runs} runs, {len(wrong)} wrong", file=sys.stderr, flush=True)
    smallest.report("kills", {
        "killed while": dict(killed),
        "newest whole step at the kill": dict(sorted(resumed_from.items())),
        "ended bit-equal, nothing left behind": f"{runs - len(wrong)} of {runs} runs with {killed.total()} kills",
        "seconds": round(time.monotonic() - began),
    })  # fmt: skip
    for case in wrong:
        print("WRONG", case)
    return bool(wrong)


def run(where, kill=None):
    """Runs to the end, or to a kill: an event, how many of it come before, and a delay.

    Returns:
        Whether it was killed; it may have ended before.
    """
    reading, writing = os.pipe()
    command = [sys.executable, "-W", "ignore", __file__, f"--child={where}", f"--tell={writing}"]
    child = subprocess.Popen(command, pass_fds=[writing])
    os.close(writing)
    seen = collections.Counter()
    while event := os.read(reading, 1):
        seen[event] += 1
        if kill and event == kill[0] and seen[event] == kill[1] + 1:
            time.sleep(kill[2])
            child.send_signal(signal.SIGKILL)
    os.close(reading)
    code = child.wait()
    assert code in (0, -signal.SIGKILL), f"the run failed with {code}"
    return code != 0


def train(where, tell):
    """The child: the run, with its events told."""
    wrap(writers.RunWriter, "write_metrics", before=lambda: tell(b"t"))
    wrap(evaluator.Evaluator, "evaluate", before=lambda: tell(b"v"), after=lambda: tell(b"v"))
    wrap(checkpoint.Writer, "save", before=lambda: tell(b"s"), after=lambda: tell(b"c"))
    devices = parallel.find_devices(num_devices=1)
    training.train(smallest.config(), where, devices=devices, progress=False, log_fn=lambda _: None)


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
    if sys.argv[1:] and sys.argv[1].startswith("--child="):
        pipe = int(sys.argv[2].removeprefix("--tell="))
        train(pathlib.Path(sys.argv[1].removeprefix("--child=")), lambda event: os.write(pipe, event))
    else:
        sys.exit(main())

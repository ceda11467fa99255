"""Kills one of two processes again and again: the other must end within a minute, and the pair go on bit for bit.

python tests/faults/pair_kills.py [--kills=20] [--steps=500] [--seed=0] [--folder=DIR]

One run of digits, with the small networks of `tests/tiny_networks.py`, two processes of one device. At a random moment
after a new checkpoint one of them, in turn the first and the second, gets SIGKILL; then both are started again. At the
end the last checkpoint is compared, array by array, with that of a pair that nobody disturbed.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LONGEST = 60.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.folder or tempfile.mkdtemp(prefix="robust_gan-kills-"))
    draw, waited, sentences = random.Random(arguments.seed), [], 0
    for kill in range(arguments.kills):
        pair, before = start(folder / "killed", arguments.steps), newest(folder / "killed")
        while newest(folder / "killed") == before and all(process.poll() is None for process in pair):
            time.sleep(0.1)
        time.sleep(draw.uniform(0, 4))
        if any(process.poll() is not None for process in pair):
            sys.exit(f"the run ended by itself before kill {kill + 1}: take more --steps\n{said(pair)}")
        victim = kill % 2
        pair[victim].kill()
        began = time.monotonic()
        try:
            other = pair[1 - victim]
            output = other.communicate(timeout=LONGEST)[0]
        except subprocess.TimeoutExpired:
            sys.exit(f"kill {kill + 1}: process {1 - victim} did not end within {LONGEST:.0f} s")
        waited.append(time.monotonic() - began)
        told = [line for line in output.splitlines() if line.startswith("error: process")]
        sentences += bool(told)
        print(f"kill {kill + 1}, of process {victim}, after step {newest(folder / 'killed')}: the other ended after "
              f"{waited[-1]:.1f} s with code {other.returncode}: {told[:1]}", flush=True)  # fmt: skip
        pair[victim].communicate()
    for name in ("killed", "whole"):
        pair = start(folder / name, arguments.steps)
        for process in pair:
            process.wait()
        if any(process.returncode for process in pair):
            sys.exit(said(pair))
    same = digests(folder / "killed") == digests(folder / "whole")
    lines = [(folder / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    print(f"{arguments.kills} kills: the other ended within {max(waited, default=0.0):.1f} s, in {sentences} of "
          f"{arguments.kills} with a sentence; arrays {'bit-equal' if same else 'DIFFERENT'}, metrics "
          f"{'equal' if lines[0] == lines[1] else 'DIFFERENT'} after {arguments.steps} steps")  # fmt: skip
    return 0 if same and lines[0] == lines[1] and sentences == arguments.kills else 1


def start(directory, steps):
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    command = [
        sys.executable, "launch/train.py", "--config=tests/tiny_config.py", f"--workdir={directory}",
        f"--config.num_steps={steps}", "--config.validation.every=20", "--config.log_every=5",
        f"--coordinator=127.0.0.1:{port}", "--num_processes=2",
    ]  # fmt: skip
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [*command, f"--process_id={number}"], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip


def newest(directory):
    found = [int(path.name) for path in (directory / "checkpoints").glob("*") if path.name.isdigit()]
    return max(found, default=0)


def said(pair):
    for process in pair:
        process.send_signal(signal.SIGKILL)
    return "\n".join(process.communicate()[0] for process in pair)


def digests(directory):
    from robust_gan import checkpoint

    record = checkpoint.read_record(directory, "last")
    return json.dumps(record.leaves, sort_keys=True)


if __name__ == "__main__":
    sys.exit(main())

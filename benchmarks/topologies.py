"""Compiles the training step of every config for TPU topologies, without a TPU, and prints a table.

    pip install -e ".[tpu-aot]"
    python benchmarks/topologies.py --output topologies.jsonl
    python benchmarks/topologies.py --configs digits,cifar10:pgd --topologies v5e:2x2 --limit 600

Each program is compiled in a process of its own, and its row is written at once. The same command continues where it
was stopped: what is in the file is not compiled again, except what ran into the limit.
"""

import argparse
import contextlib
import json
import pathlib
import resource
import subprocess
import sys

from robust_gan.config import datasets

TOPOLOGIES = ("v5e:2x2", "v5e:16x16", "v6e:4x4")
COLUMNS = (
    "config, topology, images on a chip", "networks, training images, temporaries, MB", "GFLOP",
    "all-reduces (loops once), MB", "roofline, ms", "compiled in CPU s",
)  # fmt: skip


def compile_one(name: str, topology: str, precision: str) -> dict:
    """Returns the row of a config: its batch, or 4 images on each chip where that is larger."""
    from robust_gan.parallel.topology import find_topology
    from robust_gan.training.topology import compile_step

    config = datasets.get_config(*name.split(":", 1))
    config.precision = precision
    config.batch_size = max(config.batch_size, 4 * len(find_topology(topology)))
    found = compile_step(config, topology)
    return found._asdict() | {"seconds": found.seconds, "fits": found.fits}


def run_one(name: str, topology: str, precision: str, limit: int) -> dict:
    """Compiles in another process, which may take `limit` seconds of CPU time."""
    command = [sys.executable, __file__, "--one", "--configs", name, "--topologies", topology, "--precision", precision]
    limits = (limit, limit + 5)
    ended = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, limits)
    )
    if ended.returncode == 0:
        return json.loads(ended.stdout.splitlines()[-1])
    if ended.returncode < 0:
        return {"limit": limit}
    return {"error": (ended.stderr.strip().splitlines() or ["no message"])[-1]}


def format_row(row: dict) -> str:
    """Returns a row of the table.

    >>> format_row({"config": "digits", "topology": "v5e:2x2", "limit": 60})
    '| `digits`, v5e:2x2 | not finished in 60 CPU s | | | | |'
    """
    title = f"`{row['config']}`, {row['topology']}"
    if "limit" in row:
        return f"| {title} | not finished in {row['limit']} CPU s | | | | |"
    if reason := row.get("error") or row["refusal"]:
        return f"| {title} | {reason} | | | | |"
    memory = ", ".join(f"{row[part] / 1e6:.1f}" for part in ("arguments", "training_images", "temporaries"))
    counts = {kind: f"{count}, {size / 1e6:.2f}" for kind, count, size in row["collectives"]}
    reduced = "; ".join([counts.pop("all-reduce", "0"), *(f"{kind} {count}" for kind, count in counts.items())])
    return (
        f"| {title}, {row['batch_size'] // row['num_devices']} | {memory}{'' if row['fits'] else ' (does not fit)'} "
        f"| {row['flops'] / 1e9:.1f} | {reduced} | {1000 * row['seconds']:.3g} "
        f"| {row['compile_seconds']:.0f} |"
    )


def main() -> None:
    """Compiles what is not in the file, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--configs", default=",".join(datasets.NAMES))
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--limit", type=int, default=3600, help="CPU seconds for one program")
    parser.add_argument("--output", default="topologies.jsonl", help="a row for each program")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(compile_one(given.configs, given.topologies, given.precision)))
        return
    file, rows = pathlib.Path(given.output), {}
    with contextlib.suppress(FileNotFoundError):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            rows[row["config"], row["topology"], row["precision"]] = row
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for topology in given.topologies.split(","):
        for name in given.configs.split(","):
            row = rows.get((name, topology, given.precision))
            if row is None or row.get("limit", given.limit) < given.limit:
                key = {"config": name, "topology": topology, "precision": given.precision}
                row = run_one(name, topology, given.precision, given.limit) | key
                with file.open("a") as out:
                    out.write(json.dumps(row) + "\n")
            print(format_row(row), flush=True)


if __name__ == "__main__":
    main()

"""Damages files of a checkpoint: each damage must be detected, or change nothing that comes out.

    python tests/faults/corruption.py [--damages=200] [--seed=0]

A damage is a flipped bit, a truncation or a deletion of a file drawn at random of a step that holds
both players, their optimisers' states and averages. Then the whole state is restored, as a resume does, and the
classifier and the generator, as an evaluation does; what comes out must be bit-equal to the undamaged, or a
`CheckpointError` that names the step.
"""

import argparse
import collections
import contextlib
import io
import pathlib
import random
import shutil
import sys
import tempfile
import time

import smallest  # Before the libraries.

# isort: split
import jax
import numpy as np

from robust_gan import checkpoint, parallel, training
from robust_gan.checkpoint import manager, metadata
from robust_gan.errors import CheckpointError
from robust_gan.storage import leaves


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    drawn, began = random.Random(arguments.seed), time.monotonic()
    outcomes, wrong = collections.defaultdict(collections.Counter), []
    with tempfile.TemporaryDirectory() as folder:
        run, copy = pathlib.Path(folder, "run"), pathlib.Path(folder, "copy")
        result = training.train(smallest.config(num_steps=10), run, devices=parallel.find_devices(num_devices=1),
                                progress=False, log_fn=lambda _: None)  # fmt: skip
        step = run / checkpoint.FOLDER / "10"
        state = result.state._replace(key=jax.random.key(0))
        wanted = come_out(run, state)
        files = sorted(path.relative_to(run) for path in step.rglob("*") if path.is_file())
        for _ in range(arguments.damages):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run, copy)
            kind, file = drawn.choice(sorted(DAMAGES)), drawn.choice(files)
            DAMAGES[kind](copy / file, drawn)
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    found = come_out(copy, state)
                outcome = "harmless" if same(found, wanted) else "WRONG"
            except CheckpointError as error:
                outcome = "detected" if str(copy / checkpoint.FOLDER / "10") in str(error) else "NOT NAMED"
            outcomes[kind][outcome] += 1
            if outcome.isupper():
                wrong.append((kind, file, outcome))
    smallest.report("corruption", {
        "files of a step": len(files),
        **{kind: dict(counted) for kind, counted in sorted(outcomes.items())},
        "silently wrong": len(wrong),
        "seconds": round(time.monotonic() - began),
    })  # fmt: skip
    for case in wrong:
        print(*case)
    return bool(wrong)


def flip(path, drawn):
    whole = bytearray(path.read_bytes())
    if whole:
        whole[drawn.randrange(len(whole))] ^= 1 << drawn.randrange(8)
    path.write_bytes(whole)


def truncate(path, drawn):
    path.write_bytes(path.read_bytes()[: drawn.randrange(max(path.stat().st_size, 1))])


DAMAGES = {
    "a flipped bit": flip,
    "a truncation": truncate,
    "a deletion": lambda path, drawn: path.unlink(),
}


def come_out(run, like):
    """What a resume and an evaluation get."""
    record = metadata.read_step(run / checkpoint.FOLDER, 10)
    classifier, generator = checkpoint.get_classifier(record), checkpoint.get_generator(record)
    return manager.fill(like, record), classifier.args, generator.args, record.config, record.metrics


def same(left, right):
    if left[3:] != right[3:]:
        return False
    pairs = zip(jax.tree.leaves(left[:3]), jax.tree.leaves(right[:3]), strict=True)
    return all(np.array_equal(leaves.to_host(a), leaves.to_host(b)) for a, b in pairs)


if __name__ == "__main__":
    sys.exit(main())

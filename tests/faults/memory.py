"""Whether memory grows or anything compiles anew over a long run: 20,000 steps of the smallest run, 200 evaluations.

    python tests/faults/memory.py [--steps=20000] [--evaluations=200]

Resident size and live arrays are taken at each tenth; what is compiled is counted by JAX's own log of compilations.
Validations are part of the run. An evaluation is that of a checkpoint by FGSM and PGD.
"""

import argparse
import gc
import logging
import os
import pathlib
import sys
import tempfile
import time

import smallest  # Before the libraries.

# isort: split
import jax

from robust_gan import parallel, training
from robust_gan.config import ValidationConfig
from robust_gan.evaluation import EvaluationConfig
from robust_gan.reporting import run as run_lib
from robust_gan.training import writers


class Compilations(logging.Handler):
    """Counts what is compiled, by what JAX logs of it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def emit(self, record):
        self.count += "Finished XLA compilation" in record.getMessage()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--evaluations", type=int, default=200)
    arguments = parser.parse_args()
    jax.config.update("jax_log_compiles", True)
    compilations = Compilations()
    logger = logging.getLogger("jax")
    logger.addHandler(compilations)
    logger.propagate = False
    began, wrong = time.monotonic(), False
    devices = parallel.find_devices(num_devices=1)
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder, "run")
        taken, record = [], writers.RunWriter.write_metrics
        every = arguments.steps // 10

        def watch(recorder, step, values):
            record(recorder, step, values)
            if step % every == 0 and "validation/clean_accuracy" in values:
                taken.append(take(compilations))

        writers.RunWriter.write_metrics = watch
        settings = {"num_steps": arguments.steps, "log_every": 100}
        config = smallest.config("none", **settings, validation=ValidationConfig(every=every, pgd_steps=1))
        training.train(config, run, devices=devices, progress=False, log_fn=lambda _: None)
        wrong |= told(f"{arguments.steps} steps", taken)
        taken = []
        for index in range(arguments.evaluations):
            run_lib.run(
                EvaluationConfig([str(run)], attacks="fgsm,pgd2", num_examples=32, progress=False, seed=index),
                devices=devices,
            )
            compilations.count -= 2  # An alarm compares the classifier with itself, compiled anew.
            if (index + 1) % max(arguments.evaluations // 10, 1) == 0:
                taken.append(take(compilations))
        wrong |= told(f"{arguments.evaluations} evaluations", taken)
    print(f"seconds: {time.monotonic() - began:.0f}")
    return wrong


def take(compilations):
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    arrays = jax.live_arrays()
    return resident / 1e6, len(arrays), sum(array.nbytes for array in arrays) / 1e6, compilations.count


def told(what, taken):
    """Prints, and tells whether something grows after the first fifth."""
    resident, arrays, size, compiled = zip(*taken, strict=True)
    early = resident[1]
    smallest.report(what, {
        "resident MB": " ".join(f"{value:.0f}" for value in resident),
        "live arrays": " ".join(map(str, arrays)),
        "MB in them": " ".join(f"{value:.2f}" for value in size),
        "compiled so far": " ".join(map(str, compiled)),
    })  # fmt: skip
    grows = arrays[-1] > arrays[1] or compiled[-1] > compiled[1] or resident[-1] > 1.05 * early
    if grows:
        print("GROWS")
    return grows


if __name__ == "__main__":
    sys.exit(main())

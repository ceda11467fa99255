"""Whether the number of devices matters: to what is trained, and to who can evaluate it. Eight fake CPU devices.

    python tests/faults/devices.py

A run of 20 steps on 1, 2 and 4 devices: the largest difference of any parameter from that of one. And a checkpoint
saved on N devices evaluated on M, for N and M in 1, 2, 4, 8: every figure must be the same for all M.
"""

import os

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"

import pathlib
import sys
import tempfile
import time

import smallest  # Before the libraries.

# isort: split
import jax
import numpy as np

from robust_gan import checkpoint, evaluation, parallel, threat_model, training
from robust_gan.config import OptimizerConfig, ValidationConfig
from robust_gan.training import setup

TOLERANCE = 1e-5


def main():
    began, counts = time.monotonic(), (1, 2, 4, 8)
    results, reports = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            config = smallest.config(num_steps=20, validation=ValidationConfig(every=20, pgd_steps=1))
            config.classifier.network = "digits_cnn"  # The small one would take all images for one class.
            # Adam makes a full step of a gradient that is rounding alone.
            config.adversary.generator.optimizer = OptimizerConfig(name="sgd", learning_rate=0.05)
            run, devices = pathlib.Path(folder, str(count)), parallel.find_devices(num_devices=count)
            results[count] = training.train(config, run, devices=devices, progress=False, log_fn=lambda _: None)
        test, apart = setup.load_data(config).test, {}
        for count in counts[1:]:
            pairs = zip(*(jax.tree.leaves((results[n].state.classifier.params, results[n].state.adversary.params))
                          for n in (1, count)), strict=True)  # fmt: skip
            apart[count] = max(float(np.abs(a - b).max()) for a, b in pairs)
        for saved in counts:
            for count in counts:
                record = checkpoint.read_record(pathlib.Path(folder, str(saved)), "last")
                model = evaluation.Model("it", checkpoint.get_classifier(record), checkpoint.get_attack(record))
                scores = evaluation.evaluate_transfer(
                    [model], test.images, test.labels, threat_model.from_config(config.threat), batch_size=96,
                    attacks=("fgsm", "pgd2", evaluation.GENERATOR), devices=parallel.find_devices(num_devices=count),
                )  # fmt: skip
                held = [np.packbits(stood).tobytes() for _, stood in sorted(scores.robust.items())]
                reports[saved, count] = (np.packbits(scores.clean).tobytes(), *held)
    differ = [pair for pair in reports if reports[pair] != reports[pair[0], 1]]
    fgsm = scores.robust["it", "it", "fgsm"]
    smallest.report("devices", {
        **{f"largest difference of a parameter after 20 steps, {count} devices to 1": f"{value:.1e}"
           for count, value in apart.items()},
        "saved on N, evaluated on M, every image the same": f"{len(reports) - len(differ)} of {len(reports)}",
        "images that are right, clean and under FGSM": f"{scores.clean.sum()} and {fgsm.sum()} of {fgsm.size}",
        "seconds": round(time.monotonic() - began),
    })  # fmt: skip
    return bool(differ) or max(apart.values()) > TOLERANCE


if __name__ == "__main__":
    sys.exit(main())

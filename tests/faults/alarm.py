"""Logits times 100: gradients vanish and PGD finds nothing, so the evaluation must sound its alarm; and only then.

    python tests/faults/alarm.py [--models=20]

Honest models: digits, trained by turns without an adversary, with n_fgsm and with PGD, each from a seed of its own; and
each is examined as it is and with its logits multiplied.
"""

import argparse
import collections
import pathlib
import runpy
import sys
import tempfile
import time

import smallest  # Before the libraries.

# isort: split
import jax

from robust_gan import checkpoint, evaluation, parallel, threat_model, training
from robust_gan.attacks import pgd
from robust_gan.config import ValidationConfig
from robust_gan.evaluation import alarms
from robust_gan.training import setup

ALARM = "zero_gradients"
METHODS = ("none", "n_fgsm", "pgd")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    config_file = runpy.run_path(str(smallest.ROOT / "configs" / "digits.py"))["get_config"]
    devices, began = parallel.find_devices(num_devices=1), time.monotonic()
    fired = {scale: collections.Counter() for scale in (1, 100)}
    accuracies = {scale: [] for scale in fired}
    for index in range(arguments.models):
        config = config_file(METHODS[index % len(METHODS)])
        config.seed, config.num_steps = index, arguments.steps
        config.validation = ValidationConfig(every=arguments.steps, pgd_steps=10, size=60)
        with tempfile.TemporaryDirectory() as folder:
            training.train(config, pathlib.Path(folder, "run"), devices=devices, progress=False, log_fn=lambda _: None)
            logits_fn = checkpoint.load_classifier(pathlib.Path(folder, "run"), "last")
        test, threat = setup.load_data(config).test, threat_model.from_config(config.threat)
        for scale in fired:
            model = jax.tree_util.Partial(scaled, float(scale), logits_fn)
            found = alarms.check_model(model, test.images, test.labels, threat)
            fired[scale].update(alarm.name for alarm in found if alarm.fired)
            images, labels = evaluation.to_unit(test.images[:128]), test.labels[:128]
            stood = attacked(model, jax.random.key(0), images, labels, threat)
            accuracies[scale].append(float(stood))
    smallest.report("alarm", {
        f"{ALARM} fired on honest models": f"{fired[1][ALARM]} of {arguments.models}",
        f"{ALARM} fired with logits x 100": f"{fired[100][ALARM]} of {arguments.models}",
        "all alarms, honest": dict(fired[1]),
        "all alarms, x 100": dict(fired[100]),
        "mean PGD-10 accuracy, honest and x 100": " ".join(
            f"{sum(values) / len(values):.3f}" for values in accuracies.values()),
        "seconds": round(time.monotonic() - began),
    })  # fmt: skip
    return fired[1][ALARM] > 0 or fired[100][ALARM] < arguments.models


def scaled(scale, logits_fn, images):
    return scale * logits_fn(images)


@jax.jit
def attacked(model, key, images, labels, threat):
    adversarial = pgd(model, key, images, labels, threat, num_steps=10)
    return (model(adversarial).argmax(-1) == labels).mean()


if __name__ == "__main__":
    sys.exit(main())

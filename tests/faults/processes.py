"""1 and 2 processes of 1, 2 and 4 devices: the same parameters after 20 steps, and the same evaluation.

python tests/faults/processes.py [--steps=20] [--folder=DIR]

Trains the same run of digits, with the small generator of `tests/tiny_networks.py`, in each of the six; then each
evaluates the checkpoint of the first on all test images. Prints how far the parameters are apart, and ends with 1 where
that is more than 1e-5, or where the fate of any image differs.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import numpy as np

SIZES = [(processes, devices) for processes in (1, 2) for devices in (1, 2, 4)]
TOLERANCE = 1e-5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", default="")
    parser.add_argument("--member", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.member:
        return member(**json.loads(arguments.member))
    folder = pathlib.Path(arguments.folder or tempfile.mkdtemp(prefix="robust_gan-processes-"))
    for processes, devices in SIZES:
        start(folder, arguments.steps, processes, devices)
    reference, worst = load(folder, *SIZES[0]), True
    for size in SIZES:
        found = load(folder, *size)
        apart = max(float(np.abs(found[name].astype(np.float64) - reference[name]).max())
                    for name in reference if name.startswith("state/"))  # fmt: skip
        fates = all(np.array_equal(found[name], reference[name]) for name in reference if name.startswith("fate/"))
        worst &= apart <= TOLERANCE and fates
        print(f"{size[0]} processes of {size[1]} devices: parameters within {apart:.1e}, evaluation "
              f"{'the same' if fates else 'DIFFERENT'} on {found['fate/clean'].size} images, of which "
              f"{found['fate/clean'].sum()} are right and {found['fate/fgsm'].sum()} under FGSM")  # fmt: skip
    return 0 if worst else 1


def start(folder, steps, processes, devices):
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    started = []
    for number in range(processes):
        told = {"folder": str(folder), "steps": steps, "processes": processes, "devices": devices, "number": number,
                "port": port}  # fmt: skip
        started.append(subprocess.Popen([sys.executable, __file__, f"--member={json.dumps(told)}"], env=environment))
    if any([process.wait() for process in started]):
        sys.exit(f"{processes} processes of {devices} devices failed")


def load(folder, processes, devices):
    with np.load(folder / f"{processes}x{devices}.npz") as file:
        return {name: file[name] for name in file.files}


def member(folder, steps, processes, devices, number, port):
    """One of the processes."""
    import smallest  # Before the libraries.

    from robust_gan import checkpoint, evaluation, parallel, threat_model, training
    from robust_gan.config import OptimizerConfig, ValidationConfig
    from robust_gan.storage import leaves
    from robust_gan.training import setup

    if processes > 1:
        parallel.connect(f"127.0.0.1:{port}", processes, number)
    folder, config = (
        pathlib.Path(folder),
        smallest.config(num_steps=steps, validation=ValidationConfig(every=steps, pgd_steps=1)),
    )
    config.classifier.network = "digits_cnn"  # The small one would take all images for one class.
    # Adam makes a full step of a gradient that is rounding alone.
    config.adversary.generator.optimizer = OptimizerConfig(name="sgd", learning_rate=0.05)
    result = training.train(config, folder / f"run_{processes}x{devices}", progress=False)
    arrays = {f"state/{name}": np.asarray(leaf) for name, leaf in leaves.named(result.state).items()}

    record = checkpoint.read_record(folder / f"run_{SIZES[0][0]}x{SIZES[0][1]}", "last")
    model = evaluation.Model("model", checkpoint.get_classifier(record), checkpoint.get_attack(record))
    test = setup.load_data(config).test
    scores = evaluation.evaluate_transfer(
        [model], test.images, test.labels, threat_model.from_config(config.threat),
        attacks=("fgsm", "pgd10", evaluation.GENERATOR), batch_size=96,
    )  # fmt: skip
    arrays["fate/clean"] = scores.clean
    arrays |= {f"fate/{attack}": held for (_, _, attack), held in scores.robust.items()}
    if parallel.is_primary():
        np.savez(folder / f"{processes}x{devices}.npz", **arrays)
    parallel.disconnect()


if __name__ == "__main__":
    sys.exit(main())

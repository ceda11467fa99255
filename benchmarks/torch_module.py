"""AutoAttack on one PyTorch module, part by part: `pyautoattack`, and this package by torchax or by the callback.

    taskset -c 1 python benchmarks/torch_module.py --by=torchax --checkpoint=zoo:digits/pgd --epsilon=0.15
    taskset -c 1 python benchmarks/torch_module.py --by=pyautoattack --checkpoint=zoo:digits/pgd --epsilon=0.15

The module is the twin of a checkpoint's classifier, with its weights. CPU seconds of the process, compilation included.
"""

import argparse
import json
import time

from robust_gan.cli import memory, xla_flags

if __name__ == "__main__":
    memory.use_large_pages()
xla_flags.set_flags()  # As `robust-gan-evaluate` does.

import numpy as np
import torch

import torch_networks
from robust_gan import checkpoint, data, evaluation, interop
from robust_gan.attacks import autoattack
from robust_gan.config import DataConfig
from robust_gan.data.array_files import to_unit
from robust_gan.evaluation import Model
from robust_gan.evaluation.subject import get_threat

PARTS = {"apgd_ce": "apgd-ce", "apgd_t": "apgd-t", "fab_t": "fab-t", "square": "square"}
"""Our names and theirs."""


def twin(record: checkpoint.Record) -> torch.nn.Module:
    """Returns the classifier of a checkpoint in PyTorch, in evaluation mode."""
    module = torch_networks.classifier(record.config.classifier.network, aligned=True)
    variables = checkpoint.get_variables(record)["classifier"]
    torch_networks.load(module, variables["params"], variables.get("batch_stats", {}))
    return module.eval().requires_grad_(False)


def theirs(module: torch.nn.Module, images, labels, threat, batch_size: int):
    """Yields the images that are robust after each part of `pyautoattack`."""
    import pyautoattack

    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    suite = pyautoattack.AutoAttack(module, norm=norm, eps=float(threat.epsilon), seed=0)
    images, labels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.astype(np.int64))
    robust = module(images).argmax(1) == labels
    for part, name in PARTS.items():
        suite.attacks_to_run, left = [name], robust.nonzero().squeeze(1)
        made = suite.run_standard_evaluation(images[left], labels[left], batch_size=batch_size)
        made = made[0] if isinstance(made, tuple) else made
        robust[left] &= module(made).argmax(1) == labels[left]
        yield part, robust.numpy()


def ours(module: torch.nn.Module, images, labels, threat, batch_size: int, backend: str):
    """Yields the images that are robust after each part of this package's AutoAttack."""
    model, robust = Model("net", interop.from_torch(module, backend=backend)), np.ones(len(labels), bool)
    for part in autoattack("standard"):  # Images that are not robust are not attacked again.
        robust &= evaluation.evaluate_sequential(
            model, images, labels, threat, attacks=[part], batch_size=batch_size, certified=~robust
        )[0]
        yield part[0], robust


def main() -> None:
    """Attacks, and prints a line of JSON for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", default="torchax", choices=("pyautoattack", *interop.BACKENDS))
    parser.add_argument("--checkpoint", default="zoo:digits/pgd")
    parser.add_argument("--norm", default="linf", choices=("linf", "l2"))
    parser.add_argument("--epsilon", type=float, default=0.15)
    parser.add_argument("--num_examples", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=500)
    parser.add_argument("--data_dir", help="folder of the data; the cache if not given")
    given = parser.parse_args()
    torch.set_num_threads(1)
    record = checkpoint.read_record(given.checkpoint, "best")
    split = data.load_split(
        DataConfig(record.config.data.name, given.data_dir), "test", count=given.num_examples, was_trained_on=False
    )
    images, labels = to_unit(split.images), np.asarray(split.labels)
    threat, module = get_threat(given.norm, given.epsilon, images.shape[1:]), twin(record)
    parts = (
        theirs(module, images, labels, threat, given.batch_size)
        if given.by == "pyautoattack"
        else ours(module, images, labels, threat, given.batch_size, given.by)
    )
    began = time.process_time()
    for name, robust in parts:
        now = time.process_time()
        print(json.dumps({"part": name, "robust": int(robust.sum()), "cpu_seconds": now - began}), flush=True)
        began = now


if __name__ == "__main__":
    main()

"""Other libraries' attacks on the twin of a classifier, in PyTorch, channels last: for `attack.py`.

    python benchmarks/torch_attacks.py --check      # same weights and images in, same logits and gradient out?

`torch` is PGD written out, eager, as short as it can be.
"""

import argparse
import os
import re
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

import attack
import measuring
import serving
import torch_networks


def twin(name: str, *, aligned: bool) -> torch.nn.Module:
    """Returns the classifier as it evaluates, with the weights of ours."""
    import jax_attack

    module = torch_networks.classifier(name, aligned=aligned)
    torch_networks.load(module, *jax_attack.get_classifier(name))
    return module.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def images_of(name: str, count: int) -> torch.Tensor:
    """Returns the images of ours, `[B, C, H, W]`."""
    import jax_attack

    images = torch.from_numpy(jax_attack.images_of(name, count).transpose(0, 3, 1, 2))
    return images.contiguous(memory_format=torch.channels_last)


def pgd(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int) -> torch.Tensor:
    """Projected gradient descent from a random start; the last iterate."""
    radius, size = attack.RADIUS, 2.5 * attack.RADIUS / steps
    points = (images + radius * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    for _ in range(steps):
        points.requires_grad_(True)
        loss = F.cross_entropy(model(points), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        points = points.detach() + size * gradient.sign()
        points = torch.minimum(torch.maximum(points, images - radius), images + radius).clamp(0, 1)
    return points


def get_attack(library: str, name: str, model: torch.nn.Module) -> Callable[[torch.Tensor, torch.Tensor], object]:
    """Returns a library's attack, under our name of it."""
    kind, count = re.fullmatch(r"([a-z_]+?)([0-9]+)?", name).groups()
    if library == "pyautoattack":
        return _autoattack(kind, int(count or 0), model)
    if kind != "pgd":
        raise SystemExit(f"{library} is asked for PGD only here")
    steps = int(count)
    if library == "torch":
        return lambda images, labels: pgd(model, images, labels, steps)
    radius, size = attack.RADIUS, 2.5 * attack.RADIUS / steps
    if library == "torchattacks":
        import torchattacks

        return torchattacks.PGD(model, eps=radius, alpha=size, steps=steps)
    import foolbox

    made = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=steps)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return lambda images, labels: made(wrapped, images, labels, epsilons=radius)


def _autoattack(kind: str, count: int, model: torch.nn.Module):
    import pyautoattack

    class ChannelsFirst(torch.nn.Module):
        """Its targeted attack views gradients as rows, which those of images laid out channels last cannot be."""

        def forward(self, images):
            return model(images.contiguous(memory_format=torch.channels_last))

    suite = pyautoattack.AutoAttack(ChannelsFirst(), eps=attack.RADIUS, seed=0)
    if kind == "square":
        part, setting = suite.square, "n_queries"
    elif kind == "fab_t":
        part, setting = suite.fab, "n_iter"
        part.targeted, part.n_restarts, part.n_target_classes = True, 1, 9
    elif kind == "apgd_t":
        part, setting = suite.apgd_targeted, "n_iter"
    else:
        part, setting = suite.apgd, "n_iter"
        part.loss, part.n_restarts = kind.removeprefix("apgd_"), 1
    if count:
        setattr(part, setting, count)
    return lambda images, labels: part.perturb(images.contiguous(), labels)


def prepare(given: argparse.Namespace):
    """Runs the attack once; returns the facts and the function that times."""
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, images = twin(given.classifier, aligned=False), images_of(given.classifier, given.images)
    labels = model(images).argmax(-1)
    run = get_attack(given.library, given.attack, model)
    run(images, labels)
    facts = {"device": "cpu", "matmul_flops_per_second": measuring.torch_matmul_rate()}
    return facts, lambda: measuring.timed(lambda: run(images, labels))


def check(given: argparse.Namespace) -> float:
    """Compares logits and input gradient with ours; returns the largest difference beside the largest element."""
    import jax
    import jax.numpy as jnp

    import jax_attack
    from robust_gan.attacks.pgd import input_gradient
    from robust_gan.networks import inference

    images, weights = jax_attack.images_of(given.classifier, given.images), jax_attack.get_classifier(given.classifier)
    labels = np.arange(given.images) % 10

    def both(images):
        logits_fn = lambda images: inference.classify(given.classifier, 10)(*weights, images)  # noqa: E731
        return logits_fn(images), input_gradient(logits_fn, images, jnp.asarray(labels))

    ours = jax.device_get(jax.jit(both)(images))
    model, points = twin(given.classifier, aligned=True), images_of(given.classifier, given.images).requires_grad_(True)
    logits = model(points)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.from_numpy(labels), reduction="sum"), points)
    theirs = logits.detach().numpy(), gradient.numpy().transpose(0, 2, 3, 1)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    """Checks, or serves."""
    parser = attack.arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--library", default="torch", choices=attack.LIBRARIES)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    serving.check_or_serve(given, check, prepare, "logits or gradient beside their largest element")


if __name__ == "__main__":
    main()

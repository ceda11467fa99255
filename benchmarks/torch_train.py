"""The twin of a training step in PyTorch, as its users write it: checked against ours, and served to `train.py`.

    python benchmarks/torch_train.py --check --method pgd --batch 8      # same weights in, same loss and gradients out?

Each method is that of its authors' code: N-FGSM (de Jorge et al. 2022), PGD (Madry et al. 2018), TRADES (Zhang et al.
2019), and the learned attacker L2L (Jiang et al. 2021) with a last signed step.
"""

import argparse
import dataclasses
import os
import time

import numpy as np
import torch
import torch.nn.functional as F

import measuring
import serving
import torch_game
import torch_networks
import train

STEPS, BETA, FINAL_STEP = 10, 6.0, 0.5


class Trainer:
    """A classifier, its optimiser and the adversary of a method.

    Args:
        given: The command line.
        aligned: See `torch_networks`.
    """

    def __init__(self, given: argparse.Namespace, *, aligned: bool):
        self.method, self.running = given.method, given.statistics == "running"
        self.classifier = torch_networks.classifier(given.classifier, aligned=aligned)
        self.classifier.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(torch_game.decayed(self.classifier, 5e-4), lr=0.1, momentum=0.9)
        if self.method == "cond_generator_refined":
            self.generator = torch_networks.Generator((32, 64), 2, inputs=9, project_first=False, aligned=aligned)
            self.generator.to(memory_format=torch.channels_last)
            decayed = torch_game.decayed(self.generator)
            self.generator_optimizer = torch.optim.Adam(decayed, lr=0.0005, betas=(0.5, 0.999))

    def _gradient(self, points, loss_fn):
        points = points.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss_fn(self.classifier(points)), points)
        return gradient

    def attack(self, images, labels):
        """Returns adversarial images."""
        self.classifier.train(not self.running)
        try:
            return self._attack(images, labels)
        finally:
            self.classifier.train()

    def _attack(self, images, labels):
        def cross_entropy(logits):
            return F.cross_entropy(logits, labels)

        if self.method == "n_fgsm":
            points = (images + 2 * train.RADIUS * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
            return (points + train.RADIUS * self._gradient(points, cross_entropy).sign()).clamp(0, 1)
        if self.method == "cond_generator_refined":
            with torch.no_grad():
                return self.refined(images, labels)
        loss_fn = cross_entropy
        if self.method == "trades":
            with torch.no_grad():
                reference = F.softmax(self.classifier(images), dim=1)
            loss_fn = lambda logits: F.kl_div(F.log_softmax(logits, dim=1), reference, reduction="sum")  # noqa: E731
        points = (images + train.RADIUS * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
        for _ in range(STEPS):
            points = points + 2.5 * train.RADIUS / STEPS * self._gradient(points, loss_fn).sign()
            points = torch.minimum(torch.maximum(points, images - train.RADIUS), images + train.RADIUS).clamp(0, 1)
        return points

    def refined(self, images, labels):
        """Asks the generator twice, and takes the last step; differentiable in the generator's weights."""

        def gradient_at(points):
            with torch.enable_grad():
                return self._gradient(points, lambda logits: F.cross_entropy(logits, labels, reduction="sum"))

        points = images
        for _ in range(2):
            gradient = gradient_at(points)
            gradient = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
            size = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            seen = [images, 0.5 + 0.5 * torch.tanh(gradient / size), 0.5 + 0.5 * (points - images) / train.RADIUS]
            points = (images + train.RADIUS * self.generator(torch.cat(seen, dim=1))).clamp(0, 1)
        points = points + FINAL_STEP * train.RADIUS * gradient_at(points).sign()
        return torch.minimum(torch.maximum(points, images - train.RADIUS), images + train.RADIUS).clamp(0, 1)

    def improve(self, images, labels):
        """Leaves the gradient of the generator in its parameters; returns its loss."""
        self.generator_optimizer.zero_grad(set_to_none=True)
        self.classifier.requires_grad_(False)
        loss = -F.cross_entropy(self.classifier(self.refined(images, labels)), labels)
        loss.backward()
        self.classifier.requires_grad_(True)
        return loss.detach()

    def loss(self, images, adversarial, labels):
        """Returns what the classifier minimises."""
        if self.method == "none":
            return F.cross_entropy(self.classifier(images), labels)
        if self.method in ("n_fgsm", "pgd"):
            return F.cross_entropy(self.classifier(adversarial), labels)
        clean = self.classifier(images)
        attacked = self.classifier(adversarial)
        if self.method == "trades":
            divergence = F.kl_div(F.log_softmax(attacked, 1), F.softmax(clean, 1), reduction="batchmean")
            return F.cross_entropy(clean, labels) + BETA * divergence
        return F.cross_entropy(clean, labels) + F.cross_entropy(attacked, labels)

    def step(self, images, labels):
        """Plays one step; returns the loss."""
        adversarial = None
        if self.method == "cond_generator_refined":
            self.improve(images, labels)
            self.generator_optimizer.step()
        if self.method != "none":
            adversarial = self.attack(images, labels).detach()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(images, adversarial, labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def prepare(given: argparse.Namespace):
    """Runs the step until it is warm; returns the facts and the function that times."""
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    trainer = Trainer(given, aligned=False)
    images = torch.rand(given.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (given.batch,))
    began = time.perf_counter()
    trainer.step(images, labels)
    facts = {
        "first_step_seconds": time.perf_counter() - began,
        "matmul_flops_per_second": measuring.torch_matmul_rate(),
    }
    measuring.forget_peak()

    def measure() -> dict[str, float]:
        times = measuring.timed(lambda: [trainer.step(images, labels) for _ in range(given.steps)], given.steps)
        return times | {"peak_bytes": measuring.peak_host_bytes()}

    return facts, measure


def check(given: argparse.Namespace) -> float:
    """Compares losses and gradients with ours on the same adversarial images; returns the largest difference.

    Of a generator the loss is compared too, and a hundredth of its difference counts: it sees gradients, and takes a
    step along their signs, through ReLUs of which some lie at their kink to rounding. The others start at random.
    """
    import jax

    import jax_step
    import jax_train
    from robust_gan import game, losses
    from robust_gan.game import objective
    from robust_gan.types import Batch

    own_game = game.from_config(jax_train.read_config(given), num_classes=10, channels=3)
    state = jax_step.initial_state(own_game)
    trainer = Trainer(given, aligned=True)
    torch_networks.load(trainer.classifier, *jax.device_get((state.classifier.params, state.classifier.batch_stats)))
    rng = np.random.default_rng(0)
    images = rng.random((given.batch, 32, 32, 3), np.float32)
    adversarial = np.clip(images + train.RADIUS * rng.uniform(-1, 1, images.shape).astype(np.float32), 0, 1)
    batch = Batch(images, rng.integers(0, 10, given.batch).astype(np.int32))
    theirs, theirs_adversarial = (
        torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
        for x in (images, adversarial)
    )
    labels = torch.from_numpy(batch.labels.astype(np.int64))
    differences = []
    if given.method == "cond_generator_refined":
        player = state.adversary
        torch_networks.load(trainer.generator, *jax.device_get((player.params, player.batch_stats)))
        keys = game.image_keys(jax.random.key(0), given.batch)
        attacked = objective.attacked_classifier(own_game, state.classifier, None)

        moved = jax.jit(lambda player: attacked(own_game.adversary.perturb(player, attacked, batch, keys)))(player)
        loss = float(jax.numpy.mean(losses.generator_loss(moved, batch.labels)))
        differences.append(abs(loss - trainer.improve(theirs, labels).item()) / abs(loss) / 100)
    given_images = own_game.adversary._replace(perturb=lambda *given, **named: adversarial)
    own_game = dataclasses.replace(own_game, adversary=given_images)
    gradient, _, measured, _ = jax.jit(
        lambda classifier: objective.classifier_gradient(own_game, classifier, state.adversary, batch, None)
    )(state.classifier)
    trainer.optimizer.zero_grad(set_to_none=True)
    loss = trainer.loss(theirs, theirs_adversarial, labels)
    loss.backward()
    differences.append(abs(float(measured["classifier_loss"]) - loss.item()))
    return max(differences + torch_networks.differences(trainer.classifier, gradient))


def main() -> None:
    """Checks, or serves."""
    parser = train.arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    serving.check_or_serve(given, check, prepare, "the loss, or of a gradient beside its largest element")


if __name__ == "__main__":
    main()

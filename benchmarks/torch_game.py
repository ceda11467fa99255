"""The game's step in PyTorch: k generator steps and a classifier step, as `robust_gan.game.train_step` plays it.

What is shared there is shared here: the classifier's weights get no gradient while the generator moves, one backward
pass gives the gradients of both players where the penalty needs both, and what is not used is not computed.
"""

import copy
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import torch_networks


class Rules(NamedTuple):
    """What the step does.

    Attributes:
        generator_steps: k.
        epsilon: Radius, L-infinity.
        penalty: Coefficient of the gradient penalty, by finite difference; 0 for none.
        penalty_step: h.
    """

    generator_steps: int = 5
    epsilon: float = 8 / 256
    penalty: float = 0.0
    penalty_step: float = 0.01


class Game:
    """Both players, their optimisers and the compiled or eager passes.

    Args:
        classifier: Name of the classifier.
        rules: What the step does.
        device: Where.
        aligned: See `torch_networks`.
        compiled: By `torch.compile`; None for eager execution.
        autocast: bfloat16 where PyTorch's autocast has it.
    """

    def __init__(
        self,
        classifier: str,
        rules: Rules,
        *,
        device: str = "cpu",
        aligned: bool = False,
        compiled: Callable | None = None,
        autocast: bool = False,
    ):
        place = functools.partial(nn.Module.to, device=device, memory_format=torch.channels_last)
        self.rules, self.device = rules, device
        self.generator = place(torch_networks.Generator(aligned=aligned))
        self.classifier = place(torch_networks.classifier(classifier, aligned=aligned))
        self.attacked = copy.deepcopy(self.classifier)
        for module in self.attacked.modules():
            if isinstance(module, torch_networks.BatchNorm):
                module.moves = False
        self.tie()
        fused = {"fused": True} if device == "cuda" else {}
        self.generator_optimizer = torch.optim.Adam(decayed(self.generator), lr=0.002, betas=(0.5, 0.999), **fused)
        self.classifier_optimizer = torch.optim.SGD(decayed(self.classifier), lr=0.1, momentum=0.9, **fused)
        self._autocast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=autocast)
        wrap = compiled or (lambda function: function)
        self.generator_loss = wrap(self._generator_loss)
        self.classifier_loss = wrap(self._classifier_loss)
        self.perturb = wrap(self._perturb)

    def tie(self) -> None:
        """Lets the attacked classifier be the classifier, without gradients for its weights."""
        for own, shared in zip(self.attacked.parameters(), self.classifier.parameters(), strict=True):
            own.data = shared.data
            own.requires_grad_(False)

    def _perturb(self, images):
        with self._autocast():
            noise = self.generator(images)
        return torch.clamp(images + self.rules.epsilon * noise.float(), 0, 1)

    def _cross_entropy(self, classifier, images, labels):
        with self._autocast():
            logits = classifier(images)
        return F.cross_entropy(logits.float(), labels)

    def _generator_loss(self, images, labels):
        return -self._cross_entropy(self.attacked, self._perturb(images), labels)

    def _classifier_loss(self, images, adversarial, labels):
        clean = self._cross_entropy(self.classifier, images, labels)
        return clean, self._cross_entropy(self.classifier, adversarial, labels)

    def cond_generator(self, images, labels):
        """Returns the generator's loss, and leaves its gradient in the parameters."""
        self.generator_optimizer.zero_grad(set_to_none=True)
        loss = self.generator_loss(images, labels)
        loss.backward()
        return loss.detach()

    def classifier_gradient(self, images, labels):
        """Returns clean and adversarial loss, and leaves the gradient, penalty included, in the parameters."""
        self.classifier_optimizer.zero_grad(set_to_none=True)
        if self.rules.penalty:
            return self._penalised(images, labels)
        with torch.no_grad():
            adversarial = self.perturb(images)
        clean, attacked = self.classifier_loss(images, adversarial, labels)
        (clean + attacked).backward()
        return clean.detach(), attacked.detach()

    def _penalised(self, images, labels):
        theta, phi = list(self.classifier.parameters()), list(self.generator.parameters())
        adversarial = self._perturb(images)
        clean, attacked = self._classifier_loss(images, adversarial, labels)
        here = torch.autograd.grad(attacked, theta + phi)
        here, v = here[: len(theta)], here[len(theta) :]
        with torch.no_grad():
            moved = [p + self.rules.penalty_step * d for p, d in zip(phi, v, strict=True)]
            names = [name for name, _ in self.generator.named_parameters()]
            noise = torch.func.functional_call(self.generator, dict(zip(names, moved, strict=True)), (images,))
            virtual = torch.clamp(images + self.rules.epsilon * noise, 0, 1)
        there = torch.autograd.grad(self._cross_entropy(self.classifier, virtual, labels), theta)
        of_clean = torch.autograd.grad(clean, theta)
        share = self.rules.penalty / self.rules.penalty_step
        for p, c, a, b in zip(theta, of_clean, here, there, strict=True):
            p.grad = c + a + share * (b - a)
        return clean.detach(), attacked.detach()

    def step(self, images, labels):
        """Plays one step; returns the three losses, on the device."""
        for _ in range(self.rules.generator_steps):
            loss = self.cond_generator(images, labels)
            self.generator_optimizer.step()
        losses = self.classifier_gradient(images, labels)
        self.classifier_optimizer.step()
        return (loss, *losses)


def decayed(module: nn.Module, weight_decay: float = 1e-5) -> list[dict]:
    """Returns an optimiser's groups: weight decay on the kernels alone."""
    kernels = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim == 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

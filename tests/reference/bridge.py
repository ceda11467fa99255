"""A JAX classifier as a torch module, differentiable: the reference implementations attack what we attack."""

import jax
import jax.numpy as jnp
import numpy as np
import torch


class Bridge(torch.nn.Module):
    """Calls a JAX classifier on torch images `[B, C, H, W]`; gradients flow through `jax.vjp`.

    Both passes are compiled. What the reverse pass needs is kept from the forward pass, as torch keeps it. Batches are
    padded to a multiple of `multiple` images: the reference attacks fewer and fewer, and every size would compile.
    """

    def __init__(self, logits_fn, multiple=32):
        super().__init__()
        self.multiple = multiple
        self.classify = jax.jit(logits_fn)
        self.remember = jax.jit(lambda images: jax.vjp(logits_fn, images))
        self.recall = jax.jit(lambda pull_back, cotangent: pull_back(cotangent)[0])

    def forward(self, images):
        return _Call.apply(images, self, torch.is_grad_enabled() and images.requires_grad)


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, bridge, differentiable):
        padding = -len(images) % bridge.multiple
        padded = np.pad(images.detach().numpy().transpose(0, 2, 3, 1), ((0, padding), (0, 0), (0, 0), (0, 0)))
        if differentiable:
            logits, ctx.pull_back = bridge.remember(padded)
            ctx.bridge, ctx.padding = bridge, padding
        else:
            logits = bridge.classify(padded)
        return torch.from_numpy(np.array(logits)[: len(images)])

    @staticmethod
    def backward(ctx, cotangent):
        padded = jnp.asarray(np.pad(cotangent.numpy(), ((0, ctx.padding), (0, 0))))
        gradient = np.array(ctx.bridge.recall(ctx.pull_back, padded))[: len(cotangent)]
        return torch.from_numpy(gradient.transpose(0, 3, 1, 2).copy()), None, None

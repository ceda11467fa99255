"""Classifiers of other libraries as functions of images: PyTorch modules."""

from robust_gan.interop.pytorch import BACKENDS, advise, describe, from_torch, is_torch_module, needs_one_device

__all__ = ["BACKENDS", "advise", "describe", "from_torch", "is_torch_module", "needs_one_device"]

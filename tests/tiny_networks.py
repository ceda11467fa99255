"""A classifier and a generator for tests of what is around them, built as the real ones are and compiled in no time.

They have what those tests are about: a convolution, a transposed one, BatchNorm over the devices, weights and biases.
"""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp

from robust_gan import networks
from robust_gan.networks.layers import Conv, TransposedConv, as_network, batch_norm


def waves(key, shape, dtype=jnp.float32):
    """Starts a kernel at values that look random: XLA takes longer to compile random numbers than these networks."""
    values = jnp.sin(17.0 * jnp.arange(1, 1 + math.prod(shape)))
    return (values * math.sqrt(4 / math.prod(shape[:-1]))).reshape(shape).astype(dtype)


class TinyClassifier(nn.Module):
    num_classes: int
    train: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x):
        norm = batch_norm(train=self.train, axis_name=self.axis_name, momentum=0.9)
        x = nn.relu(norm()(Conv(4, (3, 3), (2, 2), kernel_init=waves)(x)))
        return nn.Dense(self.num_classes, kernel_init=waves)(jnp.mean(x, axis=(1, 2))).astype(jnp.float32)


class TinyGenerator(nn.Module):
    channels: int
    train: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x):
        norm = batch_norm(train=self.train, axis_name=self.axis_name, momentum=0.9)
        x = nn.relu(norm()(Conv(4, (3, 3), (2, 2), kernel_init=waves)(x)))
        return nn.tanh(TransposedConv(self.channels, kernel_init=waves)(x))


# Cached, as the real builders are: one network is one compiled function.
@functools.cache
def build_classifier(num_classes=10):
    return as_network(functools.partial(TinyClassifier, num_classes=num_classes))


@functools.cache
def build_generator(channels=1):
    return as_network(functools.partial(TinyGenerator, channels=channels), size_multiple=2)


def named_classifier(*, num_classes, train, axis_name, dtype):
    """Stands in for a module of the package."""
    del dtype
    return TinyClassifier(num_classes, train, axis_name)


def named_generator(*, channels, train, axis_name, dtype, remat):
    """Stands in for a module of the package."""
    del dtype, remat
    return TinyGenerator(channels, train, axis_name)


def register():
    """Lets a configuration name both networks `tiny`."""
    networks.register_classifier("tiny", named_classifier)
    networks.register_generator("tiny", named_generator)

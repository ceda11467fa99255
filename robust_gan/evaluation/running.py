"""Models on devices: a batch of images to adversarial images, and to which of them held."""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import attacks as attacks_lib
from robust_gan import networks, parallel, random
from robust_gan.attacks import learned
from robust_gan.attacks.fresh import DESIGNS
from robust_gan.evaluation.models import FRESH, GENERATOR, Model, to_unit
from robust_gan.losses import has_class, is_correct
from robust_gan.networks import inference
from robust_gan.types import Attack, ThreatModel

Shares = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Indices, images and labels of a batch, split over the devices: `[D, B / D, ...]` each."""


class Placed:
    """A model on devices, ready to be attacked and scored in batches of one size.

    Args:
        model: Which.
        images: All that are scored, uint8 or float `[N, H, W, C]`: what fresh generators learn from.
        labels: `[N]`.
        devices: Where.
    """

    def __init__(self, model: Model, images: np.ndarray, labels: np.ndarray, devices: Sequence[jax.Device]) -> None:
        """Copies the model's arrays to the devices."""
        self.model, self._devices = model, devices
        self._images, self._labels = images, labels
        self._fresh: dict[tuple[str, str, float], Attack] = {}
        self._logits_fn = parallel.replicate(as_pytree(model.logits_fn), devices)
        self._score = parallel.map_batch(_score, devices)

    def can(self, attack: str) -> bool:
        """Tells whether an attack can be made on the model: its generator, only where it has one."""
        return attack != GENERATOR or self.model.generator is not None

    def craft(self, attack: str, shares: Shares, threat: ThreatModel, seed: int) -> jax.Array:
        """Makes adversarial images, left on the devices.

        Args:
            attack: A name of `attacks.by_name`, `generator`, or one of `FRESH`, which is trained first.
            shares: Of `share`.
            threat: The threat model.
            seed: Of the attack's randomness; an image's key depends on it, the attack's name and its position alone.
        """
        function = parallel.map_batch(_crafter(attack), self._devices)
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(attack.encode()))
        generator: Callable[..., Any] | None = None
        if attack == GENERATOR:
            assert self.model.generator is not None  # `can` was asked.
            generator = as_pytree(self.model.generator)
        if attack in FRESH:
            generator = self._trained(attack, jax.random.fold_in(key, 2**31 - 1), threat)
        return function((self._logits_fn, generator, key, threat), shares)

    def _trained(self, attack: str, key: jax.Array, threat: ThreatModel) -> Attack:
        """Trains a generator against the model, once for each radius, on the first of the devices."""
        found = (attack, threat.norm, float(threat.epsilon))
        if found not in self._fresh:
            name, channels = networks.generator_for(self._images.shape[1:]), self._images.shape[-1]
            logits_fn, images = as_pytree(self.model.logits_fn), to_unit(self._images)
            trained = _trainer(attack, name, channels)(logits_fn, key, images, self._labels.astype(np.int32), threat)
            num_classes = jax.eval_shape(logits_fn, images[:1]).shape[-1]
            function = learned.trained(inference.generate(name, channels), DESIGNS[attack], num_classes)
            self._fresh[found] = jax.tree_util.Partial(function, *jax.device_get(trained))
        return self._fresh[found]

    def score(self, images: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Tells which images are classified right, and as what (-1 where logits are NaN): bool and int32 `[B]`."""
        right, predicted = self._score(self._logits_fn, (images, labels))
        return parallel.join(right), parallel.join(predicted)


def share(images: np.ndarray, labels: np.ndarray, indices: np.ndarray, devices: Sequence[jax.Device]) -> Shares:
    """Splits a batch over the devices: `(indices, images, labels)`, the images as floats in [0, 1]."""
    batch = (indices, to_unit(images[indices]), labels[indices].astype(np.int32))
    return parallel.split_tree(batch, devices)


def batch_width(batch_size: int, num_images: int, devices: Sequence[jax.Device]) -> int:
    """Returns the size of the batches: no larger than there are images, and a multiple of the devices.

    >>> batch_width(500, 7, [None] * 4)
    8
    """
    return -(-min(batch_size, num_images) // len(devices)) * len(devices)


def as_pytree(function: Callable) -> Callable:
    """Makes a function an argument of compiled ones: a `jax.tree_util.Partial` as it is, another one as a constant.

    >>> as_pytree(len).func is len
    True
    """
    return function if isinstance(function, jax.tree_util.Partial) else jax.tree_util.Partial(function)


def _score(logits_fn, batch):
    images, labels = batch
    logits = logits_fn(images)
    classes = jnp.where(has_class(logits), jnp.argmax(logits, axis=-1), -1)
    return is_correct(logits, labels), classes.astype(jnp.int32)


@functools.cache
def _crafter(name: str) -> Callable[..., jax.Array]:
    """Returns the compiled function of an attack; cached, so that every model of one architecture shares it."""

    def craft(replicated, batch):
        logits_fn, generator, key, threat = replicated
        indices, images, labels = batch
        keys = random.keys_at(key, indices)
        attack = generator if name == GENERATOR or name in FRESH else attacks_lib.by_name(name)
        return attack(logits_fn, keys, images, labels, threat)

    return craft


@functools.cache
def _trainer(attack: str, network: str, channels: int) -> Callable[..., Any]:
    built = networks.build_generator(network, channels)
    return jax.jit(functools.partial(attacks_lib.train_generator, network=built, design=DESIGNS[attack]))

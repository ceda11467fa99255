"""Models on devices: makes and scores adversarial images of a batch."""

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import attacks as attacks_lib
from robust_gan import certification, networks, parallel, prng
from robust_gan.attacks._checks import find_violation
from robust_gan.attacks.generator import trained as attack_of_network
from robust_gan.attacks.retrained_generator import DESIGNS
from robust_gan.certification import smoothing
from robust_gan.data import batching
from robust_gan.data.array_files import take, to_unit
from robust_gan.errors import UserError
from robust_gan.evaluation.external import ExternalImages
from robust_gan.evaluation.models import GENERATOR, RETRAINED, Model
from robust_gan.losses import has_class, is_correct
from robust_gan.networks import inference
from robust_gan.types import Attack, PyTree, ThreatModel

Shares = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Indices, images and labels of a batch, split over the devices: `[D, B / D, ...]` each."""

_WIDTHS = 16
"""Number of sizes that `narrow_width` chooses from; attacks are compiled for each size that occurs."""


class Compiler:
    """Compiles functions of models: once for each architecture, and for a user's function once for each `Compiler`.

    Compiled code of this package's networks is kept for the whole process, since they depend on their arguments alone.
    A user's function may change in place or close over arrays: each `Compiler` traces it anew and frees it at its end.

    Args:
        devices: The devices.
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        """Stores the devices."""
        self._devices = tuple(devices)
        self._made: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._held: list[Callable] = []

    def map(self, task: Callable[..., Any], functions: Sequence[Callable]) -> Callable[..., Any]:
        """Compiles `task(functions, replicated, share) -> rows` over the devices (`parallel.map_batch`).

        Args:
            task: A function of this module, or a cached one: its identity is the key.
            functions: Functions of models; the arrays of a `jax.tree_util.Partial` are arguments.

        Returns:
            `((arguments, replicated), share) -> rows`, with the `arguments_of` each of the functions.
        """
        heads = tuple(map(_head, functions))
        if all(map(inference.architecture_of, heads)):
            return _mapped(task, heads, self._devices)
        key = (task, *map(id, heads))
        if key not in self._made:
            self._held += heads  # An identity is unique only while the function is alive.
            self._made[key] = parallel.map_batch(_bound(task, heads), self._devices)
        return self._made[key]


def compiled(task: Callable[..., Any], function: Callable, **static: Any) -> Callable[..., Any]:
    """Compiles `task(function, ...)` on one device; compiled code is kept as by `Compiler`.

    Args:
        task: A function of a module.
        function: A function of a model.
        **static: Constant keyword arguments of the task; hashable.

    >>> compiled(lambda function, x, *, times: times * function(x), lambda x: x + 1, times=2)(jnp.ones(())).item()
    4.0
    """
    head = _head(function)
    make = _jitted if is_architecture(function) else _jitted.__wrapped__
    return functools.partial(make(task, head, tuple(sorted(static.items()))), arguments_of(function))


def arguments_of(function: Callable) -> PyTree:
    """Returns the arrays that a `jax.tree_util.Partial` binds, as a pytree; nothing for another function.

    >>> arguments_of(jax.tree_util.Partial(max, 1, 2)), arguments_of(max)
    (((1, 2), {}), ((), {}))
    """
    return (function.args, function.keywords) if isinstance(function, jax.tree_util.Partial) else ((), {})


def is_architecture(function: Callable) -> bool:
    """Returns whether a function is a network of this package with its arrays bound.

    >>> is_architecture(jax.tree_util.Partial(inference.classify("digits_cnn", 10), {}, {})), is_architecture(len)
    (True, False)
    """
    return bool(inference.architecture_of(_head(function)))


def _head(function):
    return function.func if isinstance(function, jax.tree_util.Partial) else function


def _rebuilt(head, arguments):
    """Returns a function of its parts, a new one at each trace, so that no cache of JAX has an entry for it."""
    fresh = functools.wraps(head, updated=())(lambda *args, **kwargs: head(*args, **kwargs))
    return functools.partial(fresh, *arguments[0], **arguments[1])


def _bound(task, heads):
    def apply(replicated, batch):
        arguments, rest = replicated
        return task([_rebuilt(*parts) for parts in zip(heads, arguments, strict=True)], rest, batch)

    return apply


@functools.cache
def _mapped(task, heads, devices):
    return parallel.map_batch(_bound(task, heads), devices)


@functools.cache
def _jitted(task, head, static):
    return jax.jit(lambda arguments, *rest: task(_rebuilt(head, arguments), *rest, **dict(static)))


class ShardedModel:
    """A model on devices, ready to be attacked and scored in batches of one size.

    Its functions are traced once: after a change in place, make a new one.

    Attributes:
        model: The model.
        name: Its name.
        generator: Its generator.
        attacks: Attacks that are functions of the user's own, by name.
        known: Its fingerprints (`identity.check_model`), where they were computed.

    Args:
        model: The model.
        images: All images, uint8 or float `[N, H, W, C]`; retrained generators are trained on them.
        labels: `[N]`.
        devices: The devices.
        compiler: Shared by all models of an evaluation.
    """

    def __init__(
        self, model: Model, images: np.ndarray, labels: np.ndarray, devices: Sequence[jax.Device], compiler: Compiler
    ) -> None:
        """Copies the model's arrays to the devices."""
        self.model, self.name, self.generator = model, model.name, model.generator
        self._images, self._labels, self._compiler = images, labels, compiler
        self.known: dict[tuple[Any, ...], list[Any]] = {}
        self._devices, self._generators = devices, dict[int, PyTree]()
        self._fresh: dict[tuple[str, str, float], Attack] = {}
        self.attacks: dict[str, Attack] = {}
        self._arguments = parallel.replicate(arguments_of(model.logits_fn), devices)

    def can(self, attack: str) -> bool:
        """Returns whether an attack can be made on the model; `generator` needs a generator."""
        return attack != GENERATOR or attack in self.attacks or self.generator is not None

    def craft(self, attack: str, shares: Shares, threat: ThreatModel, seed: int) -> jax.Array | np.ndarray:
        """Computes adversarial images, which stay on the devices.

        Args:
            attack: A name of `attacks.by_name` or of `ShardedModel.attacks`, `generator`, or one of `RETRAINED`, which
                is trained first.
            shares: The result of `shard_batch`.
            threat: The threat model.
            seed: An image's key depends on the seed, the attack's name and the image's position alone.
        """
        external = self.attacks.get(attack)
        if isinstance(external, ExternalImages):
            return external.at(shares[0])
        key = attack_key(attack, seed)
        functions, arguments = self._with_attack(attack, key, threat)
        made_images = self._compiler.map(_crafter(attack), functions)((arguments, (key, threat)), shares)
        if attack not in self.attacks and attack != GENERATOR:
            return made_images
        if why := find_violation(parallel.gather(made_images), parallel.gather(shares[1]), threat):
            raise UserError(f"the attack {attack} on {self.name} {why}")
        return made_images

    def program(self, attack: str, threat: ThreatModel) -> tuple[Callable[..., jax.Array], PyTree]:
        """Returns what `craft` compiles for an attack, and its replicated arguments, to compile it ahead of time."""
        key = attack_key(attack, 0)
        functions, arguments = self._with_attack(attack, key, threat)
        return _bound(_crafter(attack), list(map(_head, functions))), (arguments, (key, threat))

    def _with_attack(
        self, attack: str, key: jax.Array, threat: ThreatModel
    ) -> tuple[list[Callable[..., Any]], list[PyTree]]:
        """Returns the functions of the model and of an attack that is one, and the arrays of each on the devices."""
        functions, arguments = [self.model.logits_fn], [self._arguments]
        if attack == GENERATOR or attack in RETRAINED or attack in self.attacks:
            made: Callable[..., Any] | None = self.attacks.get(attack, self.generator)
            if attack in RETRAINED and attack not in self.attacks:
                made = self._trained(attack, jax.random.fold_in(key, 2**31 - 1), threat)
            assert made is not None  # `can` is True.
            if id(made) not in self._generators:
                self._generators[id(made)] = parallel.replicate(arguments_of(made), self._devices)
            functions, arguments = [*functions, made], [*arguments, self._generators[id(made)]]
        return functions, arguments

    def _trained(self, attack: str, key: jax.Array, threat: ThreatModel) -> Attack:
        """Trains a generator against the model on the first device, once for each radius."""
        found = (attack, threat.norm, float(threat.epsilon))
        if found not in self._fresh:
            name, channels = networks.generator_for(self._images.shape[1:]), self._images.shape[-1]
            logits_fn, images = self.model.logits_fn, to_unit(self._images)
            train = compiled(_train, logits_fn, attack=attack, network=name, channels=channels)
            trained = train(key, images, self._labels.astype(np.int32), threat)
            num_classes = jax.eval_shape(_rebuilt(_head(logits_fn), arguments_of(logits_fn)), images[:1]).shape[-1]
            function = attack_of_network(inference.generate(name, channels), DESIGNS[attack], num_classes)
            self._fresh[found] = jax.tree_util.Partial(function, *jax.device_get(trained))
        return self._fresh[found]

    def certify(self, method: str, shares: Shares, threat: ThreatModel) -> np.ndarray:
        """Returns which images of a batch are certified by a method of `certification.METHODS`, bool `[B]`.

        Args:
            method: Its name.
            shares: Of `shard_batch`.
            threat: The threat model.
        """
        certify = self._compiler.map(_certifier(method), [self.model.logits_fn])
        return parallel.gather(certify(([self._arguments], threat), shares))

    def count_votes(self, shares: Shares, key: jax.Array, sigma: float, count: int) -> list[np.ndarray]:
        """Returns the two counts of `certification.smoothing.count_votes` of a batch, int32 `[B, K]` each.

        Args:
            shares: Of `shard_batch`; an image's noise depends on its position.
            key: The key.
            sigma: Standard deviation of the noise.
            count: Noisy images of each image.
        """
        votes = self._compiler.map(_voter(count), [self.model.logits_fn])
        return [parallel.gather(part) for part in votes(([self._arguments], (key, np.float32(sigma))), shares)]

    def score(self, images: np.ndarray | jax.Array, labels: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Returns which images are classified correctly, and the classes (-1 for NaN logits): bool and int32 `[B]`."""
        score = self._compiler.map(_score, [self.model.logits_fn])
        right, predicted = score(([self._arguments], ()), (images, labels))
        return parallel.gather(right), parallel.gather(predicted)


def shard_models(
    models: Sequence[Model | ShardedModel],
    images: np.ndarray,
    labels: np.ndarray,
    devices: Sequence[jax.Device],
    attacks: Mapping[str, Attack] = MappingProxyType({}),
) -> list[ShardedModel]:
    """Copies the models of an evaluation to the devices; a `ShardedModel` stays as it is.

    Args:
        models: The models.
        images: All images, uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        devices: The devices.
        attacks: Attacks that are functions, by name.

    >>> [model.name for model in shard_models([Model("a", len)], np.zeros((2, 1, 1, 1)), np.zeros(2), jax.devices())]
    ['a']
    """
    compiler = Compiler(devices)
    found = [
        model if isinstance(model, ShardedModel) else ShardedModel(model, images, labels, devices, compiler)
        for model in models
    ]
    for sharded in found:
        sharded.attacks |= attacks
    return found


def attack_key(attack: str, seed: int) -> jax.Array:
    """Returns the key of an attack, from which each image's key is derived by its position (`prng.keys_at`).

    Args:
        attack: Name of the attack.
        seed: Seed of the evaluation.

    >>> bool(attack_key("fgsm", 0) == attack_key("pgd10", 0))
    False
    """
    return jax.random.fold_in(prng.make_key(seed), zlib.crc32(attack.encode()))


def shard_batch(images: np.ndarray, labels: np.ndarray, indices: np.ndarray, devices: Sequence[jax.Device]) -> Shares:
    """Splits a batch over the devices: `(indices, images, labels)`, the images as floats in [0, 1]."""
    batch = (indices, take(images, indices), labels[indices].astype(np.int32))
    return parallel.shard_tree(batch, devices)


def batch_width(batch_size: int, num_images: int, devices: Sequence[jax.Device]) -> int:
    """Returns the size of the batches: no larger than there are images, and a multiple of the devices.

    Raises:
        UserError: `batch_size` is not a whole number of at least 1.

    >>> batch_width(500, 7, [None] * 4)
    8
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise UserError(f"batch_size must be a whole number of at least 1, not {batch_size}")
    return -(-min(batch_size, num_images) // len(devices)) * len(devices)


def narrow_width(width: int, num_images: int, devices: Sequence[jax.Device]) -> int:
    """Returns the size of the batches where fewer images remain: as many batches, with less padding.

    It is a multiple of a sixteenth of `width`, so that models of which similar numbers remain share compiled code.

    Args:
        width: The result of `batch_width`.
        num_images: Number of remaining images, at least 1.
        devices: The devices.

    >>> [narrow_width(500, num_images, [None]) for num_images in (270, 386, 913, 3)]
    [288, 416, 480, 32]
    """
    batches = -(-num_images // width)
    part = batch_width(-(-width // _WIDTHS), width, devices)
    return min(width, -(-num_images // (batches * part)) * part)


def batches_of(
    remaining: np.ndarray, batch_size: int, devices: Sequence[jax.Device]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the batches of the images that remain, each padded with its last image.

    Args:
        remaining: bool `[N]`.
        batch_size: Images at once, over all devices.
        devices: The devices.

    Yields:
        `(indices, mask)`: int32 `[B]` in 0..N-1, and bool `[B]`, False for the padding.

    >>> [(indices.tolist(), mask.sum().item()) for indices, mask in batches_of(np.arange(5) > 1, 2, [None])]
    [([2, 3], 2), ([4, 4], 1)]
    """
    where = np.flatnonzero(remaining).astype(np.int32)
    if len(where):
        width = narrow_width(batch_width(batch_size, len(remaining), devices), len(where), devices)
        for positions, mask in batching.padded_batches(len(where), width):
            yield where[positions], mask


def _score(functions, _, batch):
    images, labels = batch
    logits = functions[0](images)
    classes = jnp.where(has_class(logits), jnp.argmax(logits, axis=-1), -1)
    return is_correct(logits, labels), classes.astype(jnp.int32)


@functools.cache
def _certifier(method: str) -> Callable[..., jax.Array]:
    def certify(functions, threat, batch):
        _, images, labels = batch
        return certification.certify(functions[0], images, labels, threat, method=method)

    return certify


@functools.cache
def _voter(count: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def vote(functions, rest, batch):
        (key, sigma), (indices, images, _) = rest, batch
        return smoothing.count_votes(functions[0], prng.keys_at(key, indices), images, sigma, count)

    return vote


@functools.cache
def _crafter(name: str) -> Callable[..., jax.Array]:
    """Returns the function of an attack; cached, so that its compiled code is found again."""

    def craft(functions, rest, batch):
        (key, threat), (indices, images, labels) = rest, batch
        keys = prng.keys_at(key, indices)
        attack = functions[1] if len(functions) > 1 else attacks_lib.by_name(name)
        return attack(functions[0], keys, images, labels, threat)

    return craft


def _train(logits_fn, key, images, labels, threat, *, attack, network, channels):
    built = networks.build_generator(network, channels)
    return attacks_lib.train_generator(logits_fn, key, images, labels, threat, network=built, design=DESIGNS[attack])

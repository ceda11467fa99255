"""How robust classifiers are: every image of a split scored once, under attacks made on themselves and on others.

Models are scored as a matrix. An attack is made on a *maker* and tried on every model: where maker and model are the
same it is white box, elsewhere it is black box by transfer. Robust means right on the clean image **and** on the
adversarial one, so that a robust accuracy is a share of all images; over several attacks the worst case is taken image
by image.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from robust_gan import attacks as attacks_lib
from robust_gan import parallel, random
from robust_gan.data import batching
from robust_gan.errors import DataError, UserError
from robust_gan.losses import is_correct
from robust_gan.types import Attack, LogitsFn, ThreatModel

GENERATOR = "generator"
CLEAN = "clean"


@dataclasses.dataclass(frozen=True)
class Model:
    """A classifier to evaluate, or to make adversarial images with.

    Attributes:
        name: Its name in tables.
        logits_fn: Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
        generator: Its co-trained generator as an `Attack`; None where it has none.
    """

    name: str
    logits_fn: LogitsFn
    generator: Attack | None = None


@dataclasses.dataclass(frozen=True)
class Scores:
    """What held, image by image.

    Attributes:
        targets: Names of the models under attack.
        makers: Names of the models on which attacks were made, the targets first.
        attacks: Names of the attacks.
        clean: bool `[targets, N]`, right on the clean image.
        robust: For each (target, maker, attack) that exists, bool `[N]`: right on the clean image and on the
            adversarial one.
    """

    targets: tuple[str, ...]
    makers: tuple[str, ...]
    attacks: tuple[str, ...]
    clean: np.ndarray
    robust: dict[tuple[str, str, str], np.ndarray]

    def clean_accuracy(self, target: str) -> float:
        """Returns the share of images that are right when nobody attacks."""
        return float(self.clean[self.targets.index(target)].mean())

    def robust_accuracy(self, target: str, makers: Sequence[str], attacks: Sequence[str] | None = None) -> float | None:
        """Returns the share of all images that are right clean and under every attack made on any of the makers.

        Args:
            target: The model under attack.
            makers: On whom the attacks are made; `[target]` for white box.
            attacks: Which attacks; None for all.

        Returns:
            The share in [0, 1], or None where no such attack exists (a generator that a model does not have).
        """
        rows = [
            self.robust[target, maker, attack]
            for maker in makers
            for attack in (self.attacks if attacks is None else attacks)
            if (target, maker, attack) in self.robust
        ]
        return float(np.logical_and.reduce(rows).mean()) if rows else None


def attack_names(text: str) -> tuple[str, ...]:
    """Reads a comma-separated list of attacks, as on the command line; `clean` is always measured and may be named.

    Raises:
        UserError: An attack is unknown or named twice.

    >>> attack_names("clean,fgsm,pgd10,generator")
    ('fgsm', 'pgd10', 'generator')
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(set(names)) < len(names):
        raise UserError(f"an attack is named twice in {text!r}")
    for name in names:
        if name not in (CLEAN, GENERATOR):
            attacks_lib.by_name(name)
    return tuple(name for name in names if name != CLEAN)


def check_images(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Refuses images and labels on which a figure would mean nothing.

    Args:
        images: uint8 or float `[N, H, W, C]`.
        labels: Integers `[N]`.
        num_classes: K.

    Raises:
        DataError: An empty set, a wrong shape or type, pixels that are not finite or outside [0, 1] by more than
            1e-6, labels outside 0..K-1.

    >>> check_images(np.zeros((1, 2, 2, 1)), np.array([10]), 10)
    Traceback (most recent call last):
    robust_gan.errors.DataError: labels must be in 0..9, but range from 10 to 10
    """
    if images.ndim != 4 or not len(images):
        raise DataError(f"images must be a non-empty array [N, H, W, C], not of shape {images.shape}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"images must be uint8 or float in [0, 1], not {images.dtype}")
    if images.dtype != np.uint8:
        if not np.isfinite(images).all():
            raise DataError("images must be finite, but hold NaN or infinite pixels")
        if images.min() < -1e-6 or images.max() > 1 + 1e-6:
            raise DataError(f"pixels must be in [0, 1], but range from {images.min():g} to {images.max():g}")
    if labels.shape != images.shape[:1]:
        raise DataError(f"labels must have shape {images.shape[:1]}, one per image, not {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels must be integers, not {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"labels must be in 0..{num_classes - 1}, but range from {labels.min()} to {labels.max()}")


def evaluate(
    targets: Sequence[Model],
    images: np.ndarray,
    labels: np.ndarray,
    threat: ThreatModel,
    *,
    attacks: Sequence[str],
    sources: Sequence[Model] = (),
    transfers: bool = True,
    batch_size: int = 500,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    advance: Callable[[int], Any] = lambda images: None,
) -> Scores:
    """Scores every image of a split exactly once per attack.

    Args:
        targets: The models under attack.
        images: uint8 or float `[N, H, W, C]`, checked already (`check_images`).
        labels: `[N]`.
        threat: The threat model.
        attacks: Names, see `attacks.by_name`, and `generator` for a model's co-trained one.
        sources: Further models on which attacks are made, but which are not scored themselves.
        transfers: Whether the targets' attacks are tried on each other too.
        batch_size: Images at once, over all devices; rounded up to a multiple of their number. No figure depends on
            it, nor on the number of devices: every image has a key of its own.
        seed: Of the attacks' randomness.
        devices: Where; None for all.
        advance: Called with the number of images attacked, for a progress bar (`total` gives the sum).

    Returns:
        What held, image by image.

    Guarantees:
        `test_every_image_is_counted_once`, `test_scores_do_not_depend_on_batch_size_or_devices`.
    """
    devices = parallel.find_devices() if devices is None else devices
    makers = [*targets, *sources]
    width = -(-min(batch_size, len(images)) // len(devices)) * len(devices)
    clean = np.zeros((len(targets), len(images)), bool)
    robust: dict[tuple[str, str, str], np.ndarray] = {}
    score = parallel.map_batch(_score, devices)
    placed = {model.name: parallel.replicate(_as_pytree(model.logits_fn), devices) for model in makers}
    for indices, mask in batching.padded_batches(len(images), width):
        kept = indices[mask]
        batch = (indices, to_unit(images[indices]), labels[indices].astype(np.int32))
        shares = parallel.split_tree(batch, devices)
        for row, target in enumerate(targets):
            clean[row, kept] = parallel.join(score(placed[target.name], shares[1:]))[mask]
        for maker in makers:
            for name in attacks:
                if name == GENERATOR and maker.generator is None:
                    continue
                craft = parallel.map_batch(_crafter(name), devices)
                key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
                made_by = _as_pytree(maker.generator) if name == GENERATOR else None
                adversarial = craft((placed[maker.name], made_by, key, threat), shares)
                for row, target in enumerate(targets):
                    if target is not maker and not transfers and maker not in sources:
                        continue
                    right = parallel.join(score(placed[target.name], (adversarial, shares[2])))[mask]
                    where = robust.setdefault((target.name, maker.name, name), np.zeros(len(images), bool))
                    where[kept] = right & clean[row, kept]
                advance(len(kept))
    names = [tuple(model.name for model in models) for models in (targets, makers)]
    return Scores(names[0], names[1], tuple(attacks), clean, robust)


def total(targets: Sequence[Model], sources: Sequence[Model], attacks: Sequence[str], num_images: int) -> int:
    """Returns how many images an evaluation attacks: what the calls of `advance` add up to.

    >>> model = Model("a", lambda x: x)
    >>> total([model], [], ["fgsm", "generator"], 100)
    100
    """
    makers = [*targets, *sources]
    crafted = sum(name != GENERATOR or maker.generator is not None for maker in makers for name in attacks)
    return crafted * num_images


def to_unit(images: np.ndarray) -> np.ndarray:
    """Returns images as float32 in [0, 1]; uint8 is divided by 255.

    >>> to_unit(np.array([0, 255], np.uint8)).tolist()
    [0.0, 1.0]
    """
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return np.clip(images.astype(np.float32), 0, 1)


def _score(logits_fn, share):
    images, labels = share
    return is_correct(logits_fn(images), labels)


@functools.cache
def _crafter(name: str):
    """Returns the compiled function of an attack; cached, so that every model of one architecture shares it."""

    def craft(replicated, share):
        logits_fn, generator, key, threat = replicated
        indices, images, labels = share
        keys = random.keys_at(key, indices)
        attack = generator if name == GENERATOR else attacks_lib.by_name(name)
        return attack(logits_fn, keys, images, labels, threat)

    return craft


def _as_pytree(function: Callable) -> Callable:
    """Makes a function an argument: a `jax.tree_util.Partial` as it is, another one as a constant."""
    return function if isinstance(function, jax.tree_util.Partial) else jax.tree_util.Partial(function)

"""Fingerprints of models and attacks, by which a saved state is matched to its evaluation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import prng
from robust_gan.data.array_files import take
from robust_gan.errors import UserError, one_line
from robust_gan.evaluation.external import ExternalImages
from robust_gan.evaluation.probes import draw
from robust_gan.evaluation.sharded_model import ShardedModel, arguments_of, compiled, is_architecture
from robust_gan.storage import leaves
from robust_gan.types import Attack, ThreatModel

LOOKED_AT, DIFFERENTIATED, CRAFTED = 1024, 256, 64
"""Numbers of images whose logits, input gradients and perturbations by a generator are compared."""

_WIDTH = 64
_COLUMNS = 16
_RELATIVE = {"logits": 1e-4, "gradients": 1e-2, "generator": 1e-2}
"""Largest relative difference of two rows of one model. Another order of summation changes a float32 sum by about 1e-6,
and a gradient by more where this moves the input of a ReLU across 0."""
_ROUNDING = 1e-6


class Trait(NamedTuple):
    """One part of a fingerprint.

    Attributes:
        name: Its name.
        value: Exact values of any type; or a row of numbers for each image, float64 `[M, S]`.
        tolerance: Largest difference of each row, `[M]`; None for exact values.
    """

    name: str
    value: np.ndarray
    tolerance: np.ndarray | None = None

    def agrees(self, other: np.ndarray) -> bool:
        """Tells whether a stored value belongs to the same model.

        NaN equals NaN. One gradient in a hundred may differ: at a kink it depends on how sums are rounded.

        >>> Trait("logits", np.array([[1.0], [np.nan]]), np.full(2, 1e-4)).agrees(np.array([[1.00001], [np.nan]]))
        True
        """
        if other.shape != self.value.shape:
            return False
        if self.tolerance is None:
            return bool(np.array_equal(self.value, other))
        near = np.isclose(other, self.value, rtol=0, atol=self.tolerance[:, None], equal_nan=True).all(-1)
        return int((~near).sum()) <= (0 if self.name == "logits" else len(near) // 100)


def check_model(
    sharded: ShardedModel,
    images: np.ndarray,
    labels: np.ndarray,
    threat: ThreatModel,
    batch_size: int,
    num_devices: int,
) -> list[Trait]:
    """Returns the fingerprint of a model; computed once for each `ShardedModel`.

    It holds digests of the arrays that a `jax.tree_util.Partial` binds, of the model and of its generator; the logits
    of at most `LOOKED_AT` images and the input gradients of at most `DIFFERENTIATED`; perturbations of `CRAFTED` images
    by a generator of the user's own; and the batch size if logits depend on the batch. For a randomised model the
    tolerance is four times the difference of two passes. Two functions without bound arrays have one fingerprint if
    they differ only on other images, or only in gradients and by less than a hundredth.

    Args:
        sharded: The model.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        threat: The threat model, for the generator.
        batch_size: Largest number of images in one call.
        num_devices: Number of devices that share a batch.

    Raises:
        UserError: The model fails.
    """
    # Only a generator depends on the threat model.
    key = batch_size, num_devices, *([] if sharded.generator is None else [threat.norm, float(threat.epsilon)])
    if key not in sharded.known:
        try:
            sharded.known[key] = _traits(sharded, images, labels, threat, batch_size, num_devices)
        except UserError:
            raise
        except Exception as error:  # It is the user's own program, and may raise anything.
            if is_architecture(sharded.model.logits_fn):
                raise
            raise UserError(f"{sharded.name} fails on the images: {type(error).__name__}: {one_line(error)}") from error
    return sharded.known[key]


def _traits(sharded, images, labels, threat, batch_size, num_devices):
    logits_fn, where = sharded.model.logits_fn, draw(labels, LOOKED_AT, seed=0)
    width = min(batch_size, len(where), _WIDTH)
    predict, first = compiled(_predict, logits_fn), jnp.array(take(images, where[:width]))
    logits, noise = _in_batches(predict, images, where, width), 0.0
    if not is_architecture(logits_fn):
        # Not compiled: random numbers drawn during tracing are constants of compiled code.
        moved = _sketch(np.asarray(logits_fn(first), np.float64)) - _sketch(logits[:width])
        noise = 4 * float(np.abs(moved).max(initial=0))
    dtype = jax.eval_shape(predict, first).dtype
    rounding = max(_ROUNDING, 4 * float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0)
    spread = logits - logits.mean(-1, keepdims=True) if np.isfinite(logits).all() else _finite(logits)
    tolerance = _RELATIVE["logits"] * _sizes(spread) + rounding * _sizes(logits) + noise
    known = Trait("logits", _sketch(logits), tolerance)
    turned = np.roll(_in_batches(predict, images, np.roll(where, width // 2), width), -(width // 2), axis=0)
    traits = [
        *_arrays("arrays", logits_fn),
        known,
        Trait("batches", np.array([0, 0] if known.agrees(_sketch(turned)) else [batch_size, num_devices])),
    ]
    if noise <= _RELATIVE["gradients"] * np.median(_sizes(spread)):
        some = draw(labels, DIFFERENTIATED, seed=0)
        traits.append(_rows("gradients", _gradients(logits_fn, images, some, width, logits.shape[-1])))
    if sharded.generator is not None:
        traits += _arrays("arrays of the generator", sharded.generator)
        if not is_architecture(sharded.generator):
            traits.append(_rows("generator", _crafted(sharded, sharded.generator, images, labels, threat)))
    return traits


def _predict(logits_fn, images):
    return logits_fn(images)


def _pull(logits_fn, images, direction):
    logits, pull = jax.vjp(lambda x: logits_fn(x).astype(jnp.float32), images)
    return pull(jnp.broadcast_to(direction, logits.shape))[0]


def _gradients(logits_fn, images, where, width, num_classes):
    direction = np.random.default_rng(0).standard_normal(num_classes).astype(np.float32)
    slope = compiled(_pull, logits_fn)
    try:
        return _in_batches(lambda batch: _summary(slope(batch, direction)), images, where, min(width, len(where)))
    except Exception:  # It is the user's own program, and may have no derivative.
        return np.zeros((0, 1))


def check_attack(
    sharded: ShardedModel, attack: Attack, images: np.ndarray, labels: np.ndarray, threat: ThreatModel
) -> list[Trait]:
    """Returns the fingerprint of a user's attack: its arrays, and its perturbations of `CRAFTED` images.

    Args:
        sharded: The model under attack.
        attack: The function.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        threat: The threat model.
    """
    if isinstance(attack, ExternalImages):
        return [Trait("images of the attack", np.array(leaves.digest(attack.images)))]
    made = _crafted(sharded, attack, images, labels, threat)
    return [*_arrays("arrays of the attack", attack), _rows("generator", made)]


def _crafted(sharded, attack, images, labels, threat):
    """Returns summaries of an attack's perturbations of `CRAFTED` images."""
    few = draw(labels, CRAFTED, seed=0)
    keys, images = prng.per_image_keys(prng.make_key(0), len(few)), take(images, few)
    craft = compiled(lambda made, x, y: made(sharded.model.logits_fn, keys, x, y, threat), attack)
    try:
        return _summary(np.asarray(craft(images, labels[few].astype(np.int32)), np.float64) - images)
    except Exception:  # It may refuse these images; then its arrays are the fingerprint.
        return np.zeros((0, 1))


def _rows(name, summaries):
    sketches, sizes = summaries[:, :-1], summaries[:, -1]
    # Rows in which everything cancels have rounding errors of the size of the other rows.
    floor = _ROUNDING * float(np.median(sizes)) if len(sizes) else 0.0
    return Trait(name, sketches, (_RELATIVE[name] + _ROUNDING) * sizes + floor)


def _in_batches(function, images, where, width):
    """Returns the rows of a function, float64, in batches of one size: the last is filled up with the first images."""
    parts = []
    for start in range(0, len(where), width):
        batch = take(images, where[np.arange(start, start + width) % len(where)])
        parts.append(np.asarray(function(jnp.array(batch)), np.float64))
    return np.concatenate(parts)[: len(where)]


def _summary(rows):
    """Returns the sketches of rows and, in the last column, their sizes: `[M, S + 1]`."""
    rows = np.asarray(rows, np.float64)
    return np.concatenate([_sketch(rows), _sizes(rows)[:, None]], axis=1)


def _finite(rows):
    return np.where(np.isfinite(rows), rows, 0.0)


def _sizes(rows):
    return np.linalg.norm(_finite(rows).reshape(len(rows), -1), axis=-1)


def _sketch(rows):
    """Returns short rows, `[M, S]`: the rows or projections on random signs, and a number for the non-finite places."""
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
    places = np.zeros(len(flat))
    if not np.isfinite(flat).all():
        marks = np.isnan(flat) + 2.0 * np.isposinf(flat) + 3.0 * np.isneginf(flat)
        places = marks @ np.random.default_rng(1).uniform(1, 2, flat.shape[1])
    seen = _finite(flat)
    if flat.shape[1] > 2 * _COLUMNS:
        seen = seen @ np.random.default_rng(0).choice([-1.0, 1.0], (flat.shape[1], _COLUMNS))
    return np.concatenate([seen, places[:, None]], axis=1)


def _arrays(name, function):
    tree = jax.tree.leaves(arguments_of(function))
    arrays = [leaves.to_host(leaf if hasattr(leaf, "dtype") else np.asarray(leaf)) for leaf in tree]
    return (
        [Trait(name, np.array([f"{array.dtype} {array.shape} {leaves.digest(array)}" for array in arrays]))]
        if tree
        else []
    )

"""What a model is known by: all that its arrays and its answers on a draw of images show of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import prng
from robust_gan.data.array_files import take, to_unit
from robust_gan.errors import UserError, one_line
from robust_gan.evaluation.probes import draw
from robust_gan.evaluation.sharded_model import ShardedModel, arguments_of, compiled, is_architecture
from robust_gan.storage import leaves
from robust_gan.types import Attack, ThreatModel

LOOKED_AT, DIFFERENTIATED, CRAFTED = 1024, 256, 64
"""Images on which logits are compared, input gradients, and what a generator makes."""

_WIDTH = 64
_COLUMNS = 16
_RELATIVE = {"logits": 1e-4, "gradients": 1e-2, "generator": 1e-2}
"""By how much rows may differ in units of their own size. Arithmetic in another order moves a sum of float32 by some
1e-6 of it; a unit of a ReLU that this moves across 0 moves a gradient by its own part."""
_ROUNDING = 1e-6


class Trait(NamedTuple):
    """One thing that a model is known by.

    Attributes:
        name: What it is.
        value: Exact values of any type; or a row of numbers for each image, float64 `[M, S]`.
        tolerance: By how much each row may differ, `[M]`; None where nothing may.
    """

    name: str
    value: np.ndarray
    tolerance: np.ndarray | None = None

    def agrees(self, other: np.ndarray) -> bool:
        """Tells whether a value that was stored is of the same model.

        NaN equals NaN. Among hundred and more images one in a hundred may differ where gradients are compared: at a
        kink they depend on how sums are rounded.

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
    """Returns what a model is known by; found once for each `ShardedModel`.

    Its arrays, where a `jax.tree_util.Partial` binds them, and its generator's, to the bit; its logits on at most
    `LOOKED_AT` images and their gradients in the pixels on at most `DIFFERENTIATED`, image by image, where it has
    gradients; what a generator of somebody else makes of `CRAFTED`; and the size of the batches where logits depend on
    the batch. Of a model that answers at random no more can be told than lies outside four times the difference of two
    passes. Two functions without bound arrays that differ only on images that were not drawn, or whose gradients alone
    differ and by less than a hundredth, are not told apart.

    Args:
        sharded: The model.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        threat: The threat model, for the generator.
        batch_size: Images at once.
        num_devices: That share a batch.

    Raises:
        UserError: The model fails.
    """
    # The threat model matters to a generator alone.
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
    drawn, width = take(images, where), min(batch_size, len(where), _WIDTH)
    ask = compiled(_ask, logits_fn)
    logits, noise, first = _in_batches(ask, drawn, width), 0.0, jnp.array(drawn[:width])
    if not is_architecture(logits_fn):
        # Not compiled, so that the noise shows that is drawn while a function is traced.
        moved = _sketch(np.asarray(logits_fn(first), np.float64)) - _sketch(logits[:width])
        noise = 4 * float(np.abs(moved).max(initial=0))
    dtype = jax.eval_shape(ask, drawn[:width]).dtype
    rounding = max(_ROUNDING, 4 * float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0)
    spread = logits - logits.mean(-1, keepdims=True) if np.isfinite(logits).all() else _finite(logits)
    tolerance = _RELATIVE["logits"] * _sizes(spread) + rounding * _sizes(logits) + noise
    known = Trait("logits", _sketch(logits), tolerance)
    turned = np.roll(_in_batches(ask, np.roll(drawn, width // 2, axis=0), width), -(width // 2), axis=0)
    traits = [
        *_arrays("arrays", logits_fn),
        known,
        Trait("batches", np.array([0, 0] if known.agrees(_sketch(turned)) else [batch_size, num_devices])),
    ]
    if noise <= _RELATIVE["gradients"] * np.median(_sizes(spread)):
        traits.append(
            _rows(
                "gradients",
                _gradients(logits_fn, images[draw(labels, DIFFERENTIATED, seed=0)], width, logits.shape[-1]),
            )
        )
    if sharded.generator is not None:
        traits += _arrays("arrays of the generator", sharded.generator)
        if not is_architecture(sharded.generator):
            few = draw(labels, CRAFTED, seed=0)
            traits.append(_rows("generator", _crafted(sharded, sharded.generator, images[few], labels[few], threat)))
    return traits


def _ask(logits_fn, images):
    return logits_fn(images)


def _pull(logits_fn, images, direction):
    logits, pull = jax.vjp(lambda x: logits_fn(x).astype(jnp.float32), images)
    return pull(jnp.broadcast_to(direction, logits.shape))[0]


def _gradients(logits_fn, images, width, num_classes):
    direction = np.random.default_rng(0).standard_normal(num_classes).astype(np.float32)
    slope = compiled(_pull, logits_fn)
    try:
        return _in_batches(lambda batch: slope(batch, direction), to_unit(images), min(width, len(images)))
    except Exception:  # It is the user's own program, and may have no derivative.
        return np.zeros((0, 1))


def of_attack(
    sharded: ShardedModel, attack: Attack, images: np.ndarray, labels: np.ndarray, threat: ThreatModel
) -> list[Trait]:
    """Returns what an attack that is somebody's own function is known by: its arrays, and what it adds to `CRAFTED`.

    Args:
        sharded: The model that it is tried on.
        attack: The function.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        threat: The threat model.
    """
    few = draw(labels, CRAFTED, seed=0)
    made = _crafted(sharded, attack, images[few], labels[few], threat)
    return [*_arrays("arrays of the attack", attack), _rows("generator", made)]


def _crafted(sharded, attack, images, labels, threat):
    """What an attack that is somebody's own function adds to images."""
    keys = prng.per_image_keys(prng.make_key(0), len(images))
    craft = compiled(lambda made, x, y: made(sharded.model.logits_fn, keys, x, y, threat), attack)
    images = to_unit(images)
    try:
        return np.asarray(craft(images, labels.astype(np.int32)), np.float64) - images
    except Exception:  # It may not take these; then its arrays say all there is.
        return np.zeros((0, 1))


def _rows(name, rows):
    if not len(rows):
        return Trait(name, rows)
    return Trait(name, _sketch(rows), (_RELATIVE[name] + _ROUNDING) * _sizes(rows) + _floor(rows))


def _floor(rows):
    """An absolute tolerance: rounding errors of the size of a middling row, for rows in which all cancels."""
    return _ROUNDING * float(np.median(_sizes(rows))) if len(rows) else 0.0


def _in_batches(function, images, width):
    """Returns the rows of a function, float64, asked in batches of one size: the last is filled up from the start."""
    parts = []
    for start in range(0, len(images), width):
        rows = np.arange(start, start + width) % len(images)
        parts.append(np.asarray(function(jnp.array(images[rows])), np.float64))
    return np.concatenate(parts)[: len(images)]


def _finite(rows):
    return np.where(np.isfinite(rows), rows, 0.0)


def _sizes(rows):
    return np.linalg.norm(_finite(rows).reshape(len(rows), -1), axis=-1)


def _sketch(rows):
    """Returns rows in few numbers, `[M, S]`: as they are or their products with random signs; and where not finite."""
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
    rng = np.random.default_rng(0)
    marks = np.isnan(flat) + 2.0 * np.isposinf(flat) + 3.0 * np.isneginf(flat)
    where = marks @ rng.uniform(1, 2, flat.shape[1]) if marks.any() else np.zeros(len(flat))
    seen = _finite(flat)
    if flat.shape[1] > 2 * _COLUMNS:
        seen = seen @ rng.choice([-1.0, 1.0], (flat.shape[1], _COLUMNS))
    return np.concatenate([seen, where[:, None]], axis=1)


def _arrays(name, function):
    tree = jax.tree.leaves(arguments_of(function))
    arrays = [leaves.to_host(leaf if hasattr(leaf, "dtype") else np.asarray(leaf)) for leaf in tree]
    told = np.array([f"{array.dtype} {array.shape} {leaves.digest(array)}" for array in arrays])
    return [Trait(name, told)] if tree else []

"""Computes logits, input gradients and short attacks for the alarms, in batches of one size."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import prng
from robust_gan.attacks import input_gradient, pgd, trace
from robust_gan.data import batching
from robust_gan.data.array_files import take
from robust_gan.errors import one_line
from robust_gan.evaluation.sharded_model import attack_key, compiled
from robust_gan.losses import is_correct
from robust_gan.types import LogitsFn, ThreatModel

_RELATIVE = 1e-4
"""Largest difference of an image's logits between batches of different sizes, relative to the largest logit: float32
sums of 30,000 products whose large common part cancels differ by 1e-5."""
_ROUNDING = 16
"""The same in units of the last place, for classifiers that compute in float16 or bfloat16."""
_REPEATED = 4
"""The same for two calls with one batch, which differ only on devices that sum in no fixed order."""


def draw(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws a sample of images that is balanced over the classes as far as possible.

    Args:
        labels: `[N]`.
        count: Largest size of the sample.
        seed: Seed of the sample.

    Returns:
        Positions in increasing order, `[min(count, N)]`.

    >>> labels = np.repeat([0, 1, 2], [90, 8, 2])
    >>> np.bincount(labels[draw(labels, 12, seed=0)]).tolist()
    [5, 5, 2]
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], labels[by_class], side="left")
    place_within_class = np.arange(len(labels)) - starts
    return np.sort(by_class[np.argsort(place_within_class, kind="stable")][:count])


def invalid(logits: np.ndarray) -> np.ndarray:
    """Returns which images have invalid logits: a NaN, +inf, or only -inf; bool `[N]`.

    A single -inf is valid: it masks the class out.

    Args:
        logits: `[N, K]`.

    >>> invalid(np.array([[0.0, -np.inf], [0.0, np.nan], [0.0, np.inf]])).tolist()
    [False, True, True]
    """
    logits = np.asarray(logits, np.float64)
    return np.isnan(logits).any(-1) | ~np.isfinite(logits.max(-1))


class Probe:
    """A classifier and images; it is called with copies of at most `batch_size` images at once.

    Args:
        logits_fn: The classifier.
        batch_size: Largest number of images in one call.
        images: All images of the evaluation, uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
    """

    def __init__(self, logits_fn: LogitsFn, batch_size: int, images: np.ndarray, labels: np.ndarray) -> None:
        """Stores the arguments."""
        self._logits_fn, self.width = logits_fn, min(batch_size, len(images))
        self.images, self.labels, self.positions = images, labels.astype(np.int32), np.arange(len(images))
        self._gradient, self._predict = compiled(input_gradient, logits_fn), compiled(_predict, logits_fn)
        self._attacks: dict[tuple[tuple[str, int], ...], Callable[..., Any]] = {}

    def part(self, positions: np.ndarray) -> "Probe":
        """Returns the same classifier with some of the images."""
        part = Probe(self._logits_fn, self.width, self.images[positions], self.labels[positions])
        part.positions = positions
        return part

    def logits(self) -> np.ndarray:
        """Returns the logits of all images from compiled code, `[N, K]`."""
        return self._batched(lambda x, _: self._predict(x))

    def uncompiled(self, order: np.ndarray, size: int) -> np.ndarray:
        """Returns the logits of images in a given order and batch size from uncompiled code, `[len(order), K]`."""
        size = max(1, min(size, self.width))
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        return np.concatenate([np.asarray(self._logits_fn(jnp.array(take(self.images, part)))) for part in parts])

    def recompiled(self, positions: np.ndarray) -> np.ndarray:
        """Returns the logits of at most one batch of images from newly compiled code, `[B, K]`."""
        return np.asarray(compiled(_predict, self._anew())(jnp.array(take(self.images, positions))))

    def find_missing_derivative(self) -> str:
        """Returns the reason why the classifier has no derivative; empty if it has one."""
        one = jax.ShapeDtypeStruct((1, *self.images.shape[1:]), jnp.float32)
        try:
            jax.eval_shape(compiled(input_gradient, self._anew()), one, jax.ShapeDtypeStruct((1,), jnp.int32))
        except Exception as error:  # It is the user's own program, and may raise anything.
            return f"{type(error).__name__}: {one_line(error)}"
        return ""

    def gradients(self, images: np.ndarray | None = None) -> np.ndarray:
        """Returns the gradients of the cross-entropy at the images or others with their labels, `[N, H, W, C]`."""
        return self._batched(lambda x, rows: self._gradient(x, jnp.array(self.labels[rows])), images)

    def attack(self, threat: ThreatModel, seed: int, **settings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the images after PGD, `[N, H, W, C]`, and which are classified correctly before and after it, `[N]`.

        And of these the ones whose best loss rose by more than 1 % in the last quarter of the steps, `[N]`; with
        restarts none. The keys are the same as in an evaluation of all images with this attack and seed.

        Args:
            threat: The threat model.
            seed: Seed of the attack.
            **settings: `num_steps` and `num_restarts` of `attacks.pgd`.
        """
        restarts = settings.get("num_restarts", 1)
        name = f"pgd{settings['num_steps']}" + (f"x{restarts}" if restarts > 1 else "")
        keys, key = prng.keys_at(attack_key(name, seed), jnp.asarray(self.positions)), tuple(settings.items())
        robust = self._attacks.setdefault(key, compiled(_robust, self._logits_fn, **settings))

        def attack(images, rows):
            return robust(keys[rows], images, jnp.array(self.labels[rows]), threat)

        return self._batched(attack)

    def allowance(self, logits: np.ndarray, *, repeated: bool = False) -> np.ndarray:
        """Returns the largest change of each image's logits that rounding can cause, `[N]`.

        It is relative to the image's largest logit, in units of the narrowest float type of the classifier.

        Args:
            logits: Logits of all images, `[N, K]`.
            repeated: Whether the batches are the same, so that only the order of sums can differ.
        """
        finite = np.where(np.isfinite(logits), np.asarray(logits, np.float64), 0.0)
        size = np.abs(finite).max(-1)
        if repeated and jax.default_backend() == "cpu":  # A CPU program sums in a fixed order.
            return _REPEATED * float(jnp.finfo(jnp.float32).eps) * size
        unit = _unit_of_rounding(self._logits_fn, (self.width, *self.images.shape[1:]))
        return (_REPEATED * unit if repeated else max(_ROUNDING * unit, _RELATIVE)) * size

    def _anew(self) -> LogitsFn:
        """Returns the classifier as a new function, which JAX has not compiled yet."""
        return lambda images: self._logits_fn(images)

    def _batched(self, function: Callable[..., Any], images: np.ndarray | None = None) -> Any:
        images = self.images if images is None else images
        parts = []
        for rows, mask in batching.padded_batches(len(images), self.width):
            found = function(jnp.array(take(images, rows)), rows)
            parts.append(jax.tree.map(lambda array, mask=mask: np.asarray(array)[mask], found))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _unit_of_rounding(logits_fn, shape):
    """Returns the epsilon of the narrowest float type in the program, or of the device's products if it is larger."""
    try:
        program = jax.make_jaxpr(lambda x: logits_fn(x))(jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr
    except Exception:  # A classifier that cannot be traced is still checked, as float32.
        return float(jnp.finfo(jnp.float32).eps)
    kinds = {kind for kind in _float_types(program) if jnp.finfo(kind).bits >= 16} or {jnp.dtype(jnp.float32)}
    products = {"cpu": 0.0, "gpu": 2.0**-11}.get(jax.default_backend(), 2.0**-8)  # TF32 and bfloat16 passes.
    if getattr(jax.config, "jax_default_matmul_precision", None) in ("highest", "float32"):
        products = 0.0
    return max(*(float(jnp.finfo(kind).eps) for kind in kinds), products)


def _float_types(program: Any) -> Iterator[Any]:
    for equation in program.eqns:
        for variable in equation.outvars:
            if jnp.issubdtype(getattr(variable.aval, "dtype", np.int32), jnp.floating):
                yield jnp.dtype(variable.aval.dtype)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield from _float_types(inner)


def _predict(logits_fn, images):
    return logits_fn(images)


def _robust(logits_fn, keys, images, labels, threat, *, num_steps, num_restarts=1):
    given = logits_fn, keys, images, labels, threat
    if num_restarts > 1:
        attacked = pgd(*given, num_steps=num_steps, num_restarts=num_restarts)
        rising = jnp.zeros(labels.shape, bool)
    else:
        steps = trace(pgd, *given, num_steps=num_steps)
        attacked, rising = steps.images, steps.best_losses[-1] > 1.01 * steps.best_losses[3 * num_steps // 4]
    robust = is_correct(logits_fn(attacked), labels) & is_correct(logits_fn(images), labels)
    return attacked, robust, rising & robust

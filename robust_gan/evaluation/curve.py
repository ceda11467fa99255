"""Robust accuracy against epsilon, from 0 to where no image is robust."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from robust_gan import parallel, threat_model
from robust_gan.data.array_files import take
from robust_gan.errors import UserError
from robust_gan.evaluation.models import GENERATOR, Model
from robust_gan.evaluation.rescaling import rescale
from robust_gan.evaluation.sequential import evaluate_sequential
from robust_gan.evaluation.sharded_model import ShardedModel, shard_models
from robust_gan.evaluation.state import EvaluationState
from robust_gan.evaluation.transfer import score
from robust_gan.types import ThreatModel

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
"""Multiples of the radius of the evaluation; the curve ends before the whole range of pixels is allowed."""


class Curve(NamedTuple):
    """Robust accuracy at several radii.

    Attributes:
        attack: Made on each model at each radius.
        epsilons: The radii, from 0.
        robust_accuracy: For each model a share of all images at each radius.
        distances: For each model the size of the smallest perturbation of each image, where the attack searches it: 0
            where the clean image is misclassified, infinite where none was found.
    """

    attack: str
    epsilons: tuple[float, ...]
    robust_accuracy: dict[str, tuple[float, ...]]
    distances: dict[str, np.ndarray] = {}  # noqa: RUF012  # Never changed.


def trace_curve(
    models: Sequence[Model | ShardedModel], images: np.ndarray, labels: np.ndarray, threat: ThreatModel, *,
    attack: str, batch_size: int = 500, seed: int = 0, devices: Sequence[jax.Device] | None = None,
    state: EvaluationState | None = None, progress_fn: Callable[[int], Any] = lambda images: None,
) -> Curve:  # fmt: skip
    """Attacks models at growing radii until no image is robust; `fmn` is run once, and gives all radii.

    Args:
        models: The models under attack.
        images: uint8 or float `[N, H, W, C]`, within the bounds of the threat model.
        labels: `[N]`.
        threat: Its norm and bounds count, and its radius is the unit of `FACTORS`.
        attack: A name of `attacks.by_name`.
        batch_size: Images at once, over all devices.
        seed: Seed of the attack.
        devices: Devices to use; None for all.
        state: Saved state of a stopped evaluation.
        progress_fn: Called with the number of images attacked.

    Returns:
        The curve; at radius 0 it is the accuracy on clean images.

    Raises:
        UserError: The attack is `generator`, and a model has none; there is no model; or epsilon is 0.

    >>> import jax.numpy as jnp
    >>> from robust_gan import LinfThreat
    >>> model = Model("mean", lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1))
    >>> images = np.array([0.6, 0.9], np.float32).reshape(2, 1, 1, 1)
    >>> curve = trace_curve([model], images, np.zeros(2, np.int32), LinfThreat(0.2), attack="fgsm")
    >>> curve.epsilons[0], curve.robust_accuracy["mean"][0], curve.robust_accuracy["mean"][-1]
    (0.0, 1.0, 0.0)
    """
    devices = parallel.find_devices() if devices is None else devices
    low, high = getattr(threat, "bounds", (0.0, 1.0))
    models, images, labels, threat = rescale(models, images, labels, threat)
    if not models or not float(threat.epsilon) > 0:
        raise UserError(f"a curve needs a model and a radius above 0, its unit, not epsilon {float(threat.epsilon):g}")
    sharded = shard_models(models, images, labels, devices)
    largest = threat_model.whole_range(threat, images.shape[1:]).epsilon / float(threat.epsilon)
    factors = [factor for factor in FACTORS if factor <= largest]
    given: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "devices": devices, "progress_fn": progress_fn}
    if attack.startswith("fmn"):
        distances = {model.name: (high - low) * _measure_distances(model, images, labels, threat, attack, state, given)
                     for model in sharded}  # fmt: skip
        radii = [0.0, *((high - low) * float(threat.epsilon) * factor for factor in factors)]
        return _from_distances(attack, radii, distances)
    if state is not None:
        # The radius is in the names of the parts.
        unit: Any = type(threat)(1.0, bounds=threat.bounds)  # type: ignore[call-arg]
        identity = {"attacks": [attack], "batch_size": batch_size, "devices": devices}
        state.under("curve, ").belong(sharded, images, labels, unit, seed, **identity)
    state = EvaluationState() if state is None else state.under("curve, ")
    if attack == GENERATOR and (without := [model.name for model in models if model.generator is None]):
        raise UserError(f"{without[0]} has no generator: trace its curve under another attack")
    epsilons, shares = [0.0], {model.name: list[float]() for model in models}
    for scaled in (threat_model.scaled(threat, factor) for factor in factors):
        epsilon = float(scaled.epsilon)
        scores = score(
            sharded, images, labels, scaled, attacks=[attack], surrogates=[], transfers=False,
            state=state.under(f"epsilon {epsilon!r}: "), shown=(), **given,
        )  # fmt: skip
        epsilons.append(epsilon * (high - low))
        for model in models:
            robust = scores.robust_accuracy(model.name, [model.name])
            assert robust is not None  # The attack was made on every model.
            shares[model.name] += [robust] if shares[model.name] else [scores.clean_accuracy(model.name), robust]
        if not any(row[-1] for row in shares.values()):
            break
    return Curve(attack, tuple(epsilons), {name: tuple(row) for name, row in shares.items()})


def _measure_distances(model, images, labels, threat, attack, state, given):
    """Returns the sizes of the smallest perturbations, `[N]`: the attack is run in a ball that holds every image."""
    state = EvaluationState() if state is None else state
    everywhere = threat_model.whole_range(threat, images.shape[1:])
    broken_by = np.full(len(labels), -1, np.int16)
    distances = _Distances(state.array(f"distance: {model.name}", np.zeros(len(labels))), images, threat.norm)
    evaluate_sequential(
        model, images, labels, everywhere, attacks=[attack], state=state.under("smallest perturbations, "),
        adversarial=distances, broken_by=broken_by, **given,
    )  # fmt: skip
    return np.where(broken_by < 0, np.inf, np.where(broken_by == 0, 0.0, distances.sizes))


class _Distances(NamedTuple):
    """Takes adversarial images and keeps the sizes of their perturbations, `[N]`."""

    sizes: np.ndarray
    images: np.ndarray
    norm: str

    def __setitem__(self, indices: np.ndarray, values: np.ndarray) -> None:
        moved = (np.float64(values) - take(self.images, indices)).reshape(len(indices), -1)
        self.sizes[indices] = np.linalg.norm(moved, ord=np.inf if self.norm == "linf" else 2, axis=1)


def _from_distances(attack, radii, distances):
    rows = {name: [float(np.mean(found > radius)) for radius in radii] for name, found in distances.items()}
    last = next((index for index in range(1, len(radii)) if not any(row[index] for row in rows.values())), len(radii))
    curves = {name: tuple(row[: last + 1]) for name, row in rows.items()}
    return Curve(attack, tuple(radii[: last + 1]), curves, distances)

"""Checks the inputs of an evaluation, and rescales images, models and radius together to pixels in [0, 1]."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from robust_gan import threat_model
from robust_gan.data.array_files import check_images
from robust_gan.errors import UserError
from robust_gan.evaluation.models import Model, check_deterministic
from robust_gan.threat_model import L2Threat, LinfThreat
from robust_gan.types import ThreatModel


def rescale(
    models: Sequence[Any], images: Any, labels: Any, threat: ThreatModel
) -> tuple[list[Any], np.ndarray, np.ndarray, ThreatModel]:
    """Returns checked models, images, labels and threat model for pixels in [0, 1].

    Args:
        models: `Model`s for images within the bounds; a `ShardedModel` is returned unchanged.
        images: Floats `[N, H, W, C]` within the bounds of the threat model, or uint8.
        labels: Integers `[N]`.
        threat: The threat model.

    Raises:
        UserError: Images, labels or the threat model are invalid, two models share a name, or a model returns no
            logits.

    >>> from robust_gan import LinfThreat
    >>> images, threat = np.full((1, 2, 2, 1), 51.0), LinfThreat(25.5, bounds=(0, 255))
    >>> _, images, _, threat = rescale([], images, np.array([0]), threat)
    >>> f"{images.max():.1f}", threat
    ('0.2', LinfThreat(epsilon=0.1, bounds=(0.0, 1.0)))
    """
    images, labels = np.asarray(images), np.asarray(labels)
    names = [model.name for model in models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two models are named {twice[0]!r}: scores are by name, so give each a name of its own")
    low, high = threat.bounds if hasattr(threat, "bounds") else (0.0, 1.0)
    threat_model.check_threat(threat, int(np.prod(images.shape[1:])) if images.ndim == 4 else 0)
    if (low, high) != (0.0, 1.0):
        if np.issubdtype(images.dtype, np.floating):
            threat_model.check_images(images, threat)
            images = np.clip((images - low) / (high - low), 0.0, 1.0).astype(np.float32)
        models = [_rescale_model(model, low, high) if isinstance(model, Model) else model for model in models]
        epsilon = float(threat.epsilon) / (high - low)
        # A larger L-infinity radius than 1 allows no more.
        threat = LinfThreat(min(epsilon, 1.0)) if threat.norm == "linf" else L2Threat(epsilon)
    known = [model for model in models if isinstance(model, Model)]
    check_images(images, labels, min([_num_classes(model, images.shape[1:]) for model in known], default=2**15))
    return list(models), images, labels, threat


def _num_classes(model: Model, shape: tuple[int, ...]) -> int:
    check_deterministic(model.name, model.logits_fn)
    logits = jax.eval_shape(model.logits_fn, jax.ShapeDtypeStruct((1, *shape), np.float32))
    if not hasattr(logits, "shape") or len(logits.shape) != 2 or logits.shape[0] != 1:
        found = getattr(logits, "shape", type(logits).__name__)
        raise UserError(f"{model.name} must return logits [B, K], but gives {found} for one image")
    return logits.shape[1]


def _rescale_model(model: Model, low: float, high: float) -> Model:
    """Returns the model for images in [0, 1]; a `jax.tree_util.Partial` stays one, with the same arrays."""
    width = high - low

    def logits_fn(function, *arguments, **keywords):
        *bound, images = arguments
        return function(*bound, low + width * images, **keywords)

    def generator(function, *arguments, **keywords):
        *bound, classifier_fn, key, images, labels, threat = arguments
        outer = type(threat)(width * threat.epsilon, bounds=(low, high))
        inner = lambda points: classifier_fn((points - low) / width)  # noqa: E731
        found = function(*bound, inner, key, low + width * images, labels, outer, **keywords)
        return threat_model.project((found - low) / width, images, threat)

    def wrap(outer: Callable, function: Callable) -> Callable:
        if isinstance(function, jax.tree_util.Partial):
            head = functools.partial(outer, function.func)
            return jax.tree_util.Partial(head, *function.args, **function.keywords)
        return functools.partial(outer, function)

    return Model(
        model.name,
        wrap(logits_fn, model.logits_fn),
        None if model.generator is None else wrap(generator, model.generator),
    )

"""Certifies the images of an evaluation, and checks that no attack breaks a certified one.

Randomised smoothing is kept apart: its figures are those of another classifier, the smoothed one.
"""

from collections.abc import Sequence

import jax
import numpy as np

from robust_gan import certification
from robust_gan.certification import smoothing
from robust_gan.errors import CertificateError, UserError
from robust_gan.evaluation.config import EvaluationConfig
from robust_gan.evaluation.sharded_model import ShardedModel, attack_key, batches_of, shard_batch
from robust_gan.evaluation.state import EvaluationState
from robust_gan.types import ThreatModel

SMOOTHING = "smoothing"
NORMS = {**dict.fromkeys(certification.METHODS, "linf"), SMOOTHING: "l2"}
"""The norm that each method covers."""


def check_methods(config: EvaluationConfig, norms: Sequence[str] = ()) -> None:
    """Refuses methods of certification that are unknown or cover no norm, and settings of smoothing.

    Args:
        config: The configuration.
        norms: Of the evaluation; empty where they are not known yet.

    Raises:
        UserError: Says which.

    >>> check_methods(EvaluationConfig(certify="ibp"), ["linf", "l2"])
    """
    for name in config.certify:
        if name not in NORMS:
            raise UserError(f"the methods of --certify are {', '.join(NORMS)}, not {name!r}")
        if norms and NORMS[name] not in norms:
            raise UserError(f"--certify={name} covers the norm {NORMS[name]}, but the evaluation has {norms[0]}")
    if SMOOTHING in config.certify:
        smoothing.check_settings(config.smoothing_sigma, config.smoothing_samples, config.smoothing_alpha)


def certify_images(
    model: ShardedModel, images: np.ndarray, labels: np.ndarray, threat: ThreatModel, methods: Sequence[str], *,
    batch_size: int, devices: Sequence[jax.Device], state: EvaluationState,
) -> np.ndarray:  # fmt: skip
    """Returns which images are certified by one of several methods, bool `[N]`.

    Args:
        model: The model.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        threat: The threat model, with the bounds (0, 1).
        methods: Of `certification.METHODS`; each is tried on the images that are not yet certified.
        batch_size: Images at once, over all devices.
        devices: The devices.
        state: Saved state of a stopped evaluation; continued and updated.

    Raises:
        UserError: The model has an operation without a rule.
    """
    certified = np.zeros(len(labels), bool)
    for method in methods:
        found, done = state.part(f"certified by {method}: {model.name}", len(labels))
        for indices, mask in batches_of(~certified & ~done, batch_size, devices):
            shares = shard_batch(images, labels, indices, devices)
            rows = indices[mask]
            found[rows] = model.certify(method, shares, threat)[mask]
            done[rows] = True
            state.save()
        state.flush()
        certified |= found
    return certified


def smooth_images(
    model: ShardedModel, images: np.ndarray, config: EvaluationConfig, *, devices: Sequence[jax.Device],
    state: EvaluationState,
) -> certification.Smoothed:  # fmt: skip
    """Returns the predictions and L2 radii of the smoothed classifier of a model, for all images.

    The noise of an image depends on the seed and its position alone.

    Args:
        model: The model.
        images: uint8 or float `[N, H, W, C]`.
        config: The configuration.
        devices: The devices.
        state: Saved state of a stopped evaluation; continued and updated.
    """
    sigma, count, alpha = config.smoothing_sigma, config.smoothing_samples, config.smoothing_alpha
    name = f"smoothed, sigma {sigma}, {count} samples, alpha {alpha}: {model.name}"
    predicted = state.array(name, np.full(len(images), smoothing.ABSTAINED, np.int32))
    radius, done = state.array(f"radius, {name}", np.zeros(len(images))), state.part(name + ", done", len(images))[1]
    for indices, mask in batches_of(~done, config.batch_size, devices):
        shares = shard_batch(images, np.zeros(len(images), np.int32), indices, devices)
        selection, votes = model.count_votes(shares, attack_key(SMOOTHING, config.seed), sigma, count)
        rows = indices[mask]
        predicted[rows], radius[rows] = smoothing.decide(selection[mask], votes[mask], count, sigma, alpha)
        done[rows] = True
        state.save()
    state.flush()
    return certification.Smoothed(predicted, radius)


def check_attacks(model: str, certified: np.ndarray, robust: dict[str, np.ndarray]) -> None:
    """Checks that every certified image is robust under every attack.

    Args:
        model: The name of the model.
        certified: bool `[N]`.
        robust: For each attack, and for `clean`, which images are robust, bool `[N]`.

    Raises:
        CertificateError: A certified image is misclassified: one of the two is wrong.

    >>> check_attacks("a", np.array([False, True]), {"fgsm": np.array([True, False])})
    Traceback (most recent call last):
    robust_gan.errors.CertificateError: image 1 is certified for a, but fgsm breaks it: the bounds or the attack are ...
    """
    for attack, rows in robust.items():
        if wrong := np.flatnonzero(certified & ~rows).tolist():
            raise CertificateError(
                f"image {wrong[0]} is certified for {model}, but {attack} breaks it: the bounds or the attack are "
                "wrong, please report it with the model"
            )

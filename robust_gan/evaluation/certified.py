"""Certifies the images of an evaluation, and checks that no attack breaks a certified one."""

from collections.abc import Sequence

import jax
import numpy as np

from robust_gan import certification
from robust_gan.data import batching
from robust_gan.errors import CertificateError, UserError
from robust_gan.evaluation.sharded_model import ShardedModel, batch_width, shard_batch
from robust_gan.evaluation.state import EvaluationState
from robust_gan.types import ThreatModel


def check_methods(methods: Sequence[str], norm: str) -> None:
    """Refuses methods of certification that are unknown or do not cover the norm.

    Raises:
        UserError: Says which.

    >>> check_methods(["ibp"], "linf")
    """
    if unknown := [name for name in methods if name not in certification.METHODS]:
        raise UserError(f"the methods of --certify are {', '.join(certification.METHODS)}, not {unknown[0]!r}")
    if methods and norm != "linf":
        raise UserError(f"--certify covers the norm linf, but the evaluation has {norm}")


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
        where = np.flatnonzero(~certified & ~done).astype(np.int32)
        width = batch_width(batch_size, len(labels), devices)
        for positions, mask in batching.padded_batches(len(where), width) if len(where) else ():
            shares = shard_batch(images, labels, where[positions], devices)
            rows = where[positions[mask]]
            found[rows] = model.certify(method, shares, threat)[mask]
            done[rows] = True
            state.save()
        state.flush()
        certified |= found
    return certified


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

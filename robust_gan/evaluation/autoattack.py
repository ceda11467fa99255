"""AutoAttack on arrays, in one call."""

from typing import Any, NamedTuple

import jax
import numpy as np

from robust_gan import attacks, interop, parallel
from robust_gan.data.array_files import check_images, to_unit
from robust_gan.evaluation.models import Model
from robust_gan.evaluation.sequential import AttackResult, evaluate_sequential
from robust_gan.evaluation.subject import get_threat
from robust_gan.types import LogitsFn, ThreatModel


class AutoAttackResult(NamedTuple):
    """The result of AutoAttack; `print` shows it in the form of its authors' program.

    Attributes:
        robust: bool `[N]`, which images are classified correctly clean and under all attacks.
        attacks: An `AttackResult` for `clean` and each attack.
        threat: The threat model.
        size: The largest perturbation, in the norm of the threat model.
    """

    robust: np.ndarray
    attacks: list[AttackResult]
    threat: ThreatModel
    size: float

    @property
    def robust_accuracy(self) -> float:
        """The share of images that are robust."""
        return float(self.robust.mean())

    def __str__(self) -> str:
        """Returns a line for each attack."""
        seconds, lines = 0.0, []
        for result in self.attacks:
            seconds += result.seconds
            share = f"{100 * result.robust_accuracy:.2f}%"
            if result.attack == "clean":
                lines.append(f"initial accuracy: {share}")
            else:
                name = result.attack.upper().replace("_", "-")
                lines.append(f"robust accuracy after {name}: {share} (total time {seconds:.1f} s)")
        norm = self.threat.norm.capitalize()
        lines.append(f"max {norm} perturbation: {self.size:.5f} (epsilon {float(self.threat.epsilon):.5f})")
        return "\n".join([*lines, f"robust accuracy: {100 * self.robust_accuracy:.2f}%"])


def autoattack(
    logits_fn: LogitsFn | Any, images: np.ndarray, labels: np.ndarray, epsilon: float, *, norm: str = "linf",
    batch_size: int = 500, seed: int = 0,
) -> tuple[np.ndarray, AutoAttackResult]:  # fmt: skip
    """Runs the standard version of AutoAttack on a classifier, on all devices.

    Args:
        logits_fn: Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`, or a PyTorch module (see `interop.from_torch`).
            With fewer than four classes, margin PGD takes the place of targeted APGD.
        images: uint8, or float in [0, 1], `[N, H, W, C]`.
        labels: `[N]`.
        epsilon: Radius in units of [0, 1].
        norm: `linf` or `l2`.
        batch_size: Images at once; the result does not depend on it.
        seed: Of the attacks.

    Returns:
        The adversarial images, float32 `[N, H, W, C]` in [0, 1] (the clean image where none was found), and the result.

    Raises:
        UserError: An argument is invalid, or the classifier cannot be called on the images.

    References:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", ICML 2020, https://arxiv.org/abs/2003.01690

    >>> import jax.numpy as jnp
    >>> logits_fn = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1)
    >>> images = np.full((2, 4, 4, 1), [[[[0.6]]], [[[0.9]]]], np.float32)
    >>> adversarial, result = autoattack(logits_fn, images, np.array([0, 0]), 0.2)
    >>> result.robust.tolist(), str(result).splitlines()[0]
    ([False, True], 'initial accuracy: 100.00%')
    """
    if interop.is_torch_module(logits_fn):
        logits_fn = interop.from_torch(logits_fn)
    images, labels = np.asarray(images), np.asarray(labels)
    check_images(images, labels, 2**15)
    threat = get_threat(norm, epsilon, images.shape[1:])
    classes = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)).shape[-1]
    devices = parallel.find_devices()
    clean = to_unit(images)
    adversarial = clean.copy()
    robust, results = evaluate_sequential(
        Model("the classifier", logits_fn), images, labels, threat, batch_size=batch_size, seed=seed,
        attacks=attacks.autoattack("standard" if classes >= 4 else "few_classes"),
        devices=devices[:1] if interop.needs_one_device(logits_fn) else devices, adversarial=adversarial,
    )  # fmt: skip
    moved = (adversarial - clean).reshape(len(images), -1)
    size = np.abs(moved).max() if threat.norm == "linf" else np.linalg.norm(moved, axis=-1).max()
    return adversarial, AutoAttackResult(robust, results, threat, float(size))

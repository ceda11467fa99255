"""Sequential evaluation: each attack is made only on the images that all attacks before it left robust."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from robust_gan import parallel
from robust_gan.evaluation.models import CLEAN, Attacks, Model, name_attacks
from robust_gan.evaluation.rescaling import rescale
from robust_gan.evaluation.sharded_model import ShardedModel, batches_of, shard_batch, shard_models
from robust_gan.evaluation.state import EvaluationState, Rows
from robust_gan.types import ThreatModel


class AttackResult(NamedTuple):
    """The result of one attack of a sequential evaluation.

    Attributes:
        attack: Its name; `clean` for the first result, without an attack.
        attacked: Number of images that were attacked.
        broken: Number of these that became misclassified.
        robust_accuracy: Share of all images that are robust after this attack.
        seconds: Wall time, compilation included.
    """

    attack: str
    attacked: int
    broken: int
    robust_accuracy: float
    seconds: float


def evaluate_sequential(
    model: Model | ShardedModel, images: np.ndarray, labels: np.ndarray, threat: ThreatModel, *, attacks: Attacks,
    batch_size: int = 500, seed: int = 0, devices: Sequence[jax.Device] | None = None,
    state: EvaluationState | None = None, adversarial: Any = None,
    predicted: np.ndarray | None = None, broken_by: np.ndarray | None = None,
    certified: np.ndarray | None = None,
    progress_fn: Callable[[int], Any] = lambda images: None,
) -> tuple[np.ndarray, list[AttackResult]]:  # fmt: skip
    """Attacks a model with several attacks, each only on the remaining robust images, as AutoAttack does.

    Every image has a key of its own and every attack starts from the clean image: the result is the worst case over
    the attacks image by image, whatever their order, the batches and the devices.

    Args:
        model: The model under attack.
        images: uint8 or float `[N, H, W, C]`, within the bounds of the threat model.
        labels: `[N]`.
        threat: The threat model; where its bounds are not (0, 1), everything is rescaled to [0, 1] together.
        attacks: Names, functions or both in their order, see `models.name_attacks`.
        batch_size: Images at once, over all devices.
        seed: Of the attacks.
        devices: Devices to use; None for all.
        state: Saved state of a stopped evaluation of the same; continued and updated.
        adversarial: float32 `[N, H, W, C]` in [0, 1], filled in place with the misclassified adversarial images; an
            array, or another object whose rows can be set, such as `EvaluationState.rows`.
        predicted: int32 `[N]`, filled in place with the classes that these are classified as.
        broken_by: int16 `[N]`, filled in place with the index of the result that broke an image.
        certified: bool `[N]`, images that are not attacked: they are robust under every attack.
        progress_fn: Called with the number of images that an attack is done with, attacked or not.

    Returns:
        bool `[N]`, which images are robust under all attacks; and an `AttackResult` for `clean` and each attack.

    Raises:
        UserError: The state is of another evaluation, or an argument or an attack of the user's own is invalid.

    Guarantees:
        `test_in_turn_is_the_worst_case_of_each`, `test_survivors_do_not_depend_on_packing_or_devices`.

    >>> import jax.numpy as jnp
    >>> from robust_gan import LinfThreat
    >>> model = Model("mean", lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1))
    >>> images = np.array([0.6, 0.9], np.float32).reshape(2, 1, 1, 1)
    >>> robust, results = evaluate_sequential(model, images, np.zeros(2, np.int32), LinfThreat(0.2), attacks=["fgsm"])
    >>> robust.tolist(), [(result.attack, result.robust_accuracy) for result in results]
    ([False, True], [('clean', 1.0), ('fgsm', 0.5)])
    """
    devices = parallel.find_devices() if devices is None else devices
    names, functions = name_attacks(attacks)
    [model], images, labels, threat = rescale([model], images, labels, threat)
    [sharded] = shard_models([model], images, labels, devices, functions)
    if state is not None:
        made = [name for name in names if name != CLEAN]
        state.belong([sharded], images, labels, threat, seed, attacks=made, batch_size=batch_size, devices=devices)
    runner = _Runner(sharded, images, labels, threat, batch_size, seed, devices,
                     EvaluationState() if state is None else state, adversarial, predicted, progress_fn)  # fmt: skip
    remaining = np.ones(len(images), bool)
    skipped = np.zeros(len(images), bool) if certified is None else certified
    results: list[AttackResult] = []
    for attack in (CLEAN, *filter(sharded.can, names)):
        tried = remaining if attack == CLEAN else remaining & ~skipped
        robust, seconds = runner.attack(attack, tried)
        robust = remaining & (robust | ~tried)
        if broken_by is not None:
            broken_by[remaining & ~robust] = len(results)
        attacked, broken = int(tried.sum()), int((remaining & ~robust).sum())
        results.append(AttackResult(attack, attacked, broken, float(robust.mean()), round(seconds, 3)))
        remaining = robust
    return remaining, results


class _Runner(NamedTuple):
    """Runs the attacks of a sequential evaluation."""

    model: ShardedModel
    images: np.ndarray
    labels: np.ndarray
    threat: ThreatModel
    batch_size: int
    seed: int
    devices: Sequence[jax.Device]
    state: EvaluationState
    adversarial: Any
    predicted: np.ndarray | None
    progress_fn: Callable[[int], Any]

    def attack(self, attack: str, remaining: np.ndarray) -> tuple[np.ndarray, float]:
        """Attacks the remaining images; returns which of them are robust, bool `[N]`, and the seconds it took."""
        name, count = f"{attack}, sequential: {self.model.name}", len(self.images)
        robust, done = self.state.part(name, count)
        seconds = self.state.array(f"seconds of {name}", np.zeros(()))
        left = remaining & ~done
        self.progress_fn(count - int(left.sum()))
        try:
            for indices, mask in batches_of(left, self.batch_size, self.devices):
                began, rows = time.perf_counter(), indices[mask]
                shares = shard_batch(self.images, self.labels, indices, self.devices)
                made = shares[1] if attack == CLEAN else self.model.craft(attack, shares, self.threat, self.seed)
                correct, classes = self.model.score(made, shares[2])
                robust[rows] = correct[mask]
                broken = ~robust[rows]
                # `Rows` have the clean images already.
                if self.adversarial is not None and not (attack == CLEAN and isinstance(self.adversarial, Rows)):
                    self.adversarial[rows[broken]] = parallel.gather(made)[mask][broken]
                if self.predicted is not None:
                    self.predicted[rows[broken]] = classes[mask][broken]
                seconds += time.perf_counter() - began
                done[rows] = True  # Set last, so that an interruption before it repeats the batch.
                self.state.save()
                self.progress_fn(len(rows))
        finally:
            self.state.flush()
        return robust, float(seconds)

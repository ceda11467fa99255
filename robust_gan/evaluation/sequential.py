"""Attacks in turn: each is made on the images alone that all before it left standing, as AutoAttack does."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from robust_gan import parallel
from robust_gan.data import batching
from robust_gan.evaluation.models import CLEAN, Attacks, Model, name_attacks
from robust_gan.evaluation.sharded_model import ShardedModel, batch_width, place, share
from robust_gan.evaluation.state import EvaluationState, Rows
from robust_gan.evaluation.units import in_unit_range
from robust_gan.types import ThreatModel


class AttackResult(NamedTuple):
    """What one attack of several in turn did.

    Attributes:
        attack: Its name; `clean` for the first result, on which nobody attacks.
        attacked: Images that it was made on.
        broken: Images of these that it broke.
        robust_accuracy: Share of all images that stand after it.
        seconds: Wall time, compilation included.
    """

    attack: str
    attacked: int
    broken: int
    robust_accuracy: float
    seconds: float


def evaluate_sequential(
    model: Model | ShardedModel,
    images: np.ndarray,
    labels: np.ndarray,
    threat: ThreatModel,
    *,
    attacks: Attacks,
    batch_size: int = 500,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    kept: EvaluationState | None = None,
    adversarial: np.ndarray | Rows | None = None,
    predicted: np.ndarray | None = None,
    broken_by: np.ndarray | None = None,
    advance: Callable[[int], Any] = lambda images: None,
) -> tuple[np.ndarray, list[AttackResult]]:
    """Attacks a model in turn with several attacks, each on what still stands.

    The survivors are packed into full batches of one size, so that nothing is compiled twice. As every image has a key
    of its own and every attack starts from the clean image, what stands at the end does not depend on the packing, the
    number of devices or the order of the attacks; it is the worst case over them, image by image.

    Args:
        model: Under attack, white box.
        images: uint8 or float `[N, H, W, C]`, within the bounds of the threat model.
        labels: `[N]`.
        threat: The threat model; where its bounds are not (0, 1), model, images and radius are moved to [0, 1].
        attacks: Names, see `attacks.by_name`, and `generator` for the model's co-trained one, in their order; or
            functions, as `attacks.autoattack` returns them, see `models.name_attacks`.
        batch_size: Images at once, over all devices.
        seed: Of the attacks.
        devices: Where; None for all.
        kept: What a stopped evaluation of the same model, images, threat model and seed had found; not done again,
            and added to.
        adversarial: float32 `[N, H, W, C]` in [0, 1], to be filled in place with the images that were broken.
        predicted: int32 `[N]`, to be filled in place with the classes that the broken images are taken for.
        broken_by: int16 `[N]`, to be filled in place with the place among the results of what broke an image.
        advance: Called with the number of images of which an attack is done: attacked, or standing no more.

    Returns:
        bool `[N]`, which images stand; and a `AttackResult` for `clean` and each attack.

    Raises:
        UserError: What was kept is of another evaluation, or an argument is none that can be scored.

    Guarantees:
        `test_in_turn_is_the_worst_case_of_each`, `test_survivors_do_not_depend_on_packing_or_devices`.

    >>> import jax.numpy as jnp
    >>> from robust_gan import LinfThreat
    >>> model = Model("mean", lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1))
    >>> images = np.array([0.6, 0.9], np.float32).reshape(2, 1, 1, 1)
    >>> standing, results = evaluate_sequential(model, images, np.zeros(2, np.int32), LinfThreat(0.2), attacks=["fgsm"])
    >>> standing.tolist(), [(result.attack, result.robust_accuracy) for result in results]
    ([False, True], [('clean', 1.0), ('fgsm', 0.5)])
    """
    devices = parallel.find_devices() if devices is None else devices
    names, functions = name_attacks(attacks)
    [model], images, labels, threat = in_unit_range([model], images, labels, threat)
    [placed] = place([model], images, labels, devices, functions)
    if kept is not None:
        kept.belong([placed], images, labels, threat, seed, attacks=[name for name in names if name != CLEAN],
                    batch_size=batch_size, devices=devices)  # fmt: skip
    kept = EvaluationState() if kept is None else kept
    width = batch_width(batch_size, len(images), devices)
    before = np.ones(len(images), bool)
    results: list[AttackResult] = []
    for attack in (CLEAN, *filter(placed.can, names)):
        name = f"{attack}, in turn: {model.name}"
        stood, done = kept.part(name, len(images))
        seconds = kept.array(f"seconds of {name}", np.zeros(()))
        where = np.flatnonzero(before & ~done).astype(np.int32)
        advance(len(images) - len(where))
        try:
            for positions, mask in batching.padded_batches(len(where), width) if len(where) else ():
                began, rows = time.perf_counter(), where[positions[mask]]
                shares = share(images, labels, where[positions], devices)
                attacked = shares[1] if attack == CLEAN else placed.craft(attack, shares, threat, seed)
                right, classes = placed.score(attacked, shares[2])
                stood[rows] = right[mask]
                broken_rows = rows[~stood[rows]]
                if adversarial is not None:
                    adversarial[broken_rows] = parallel.gather(attacked)[mask][~stood[rows]]
                if predicted is not None:
                    predicted[broken_rows] = classes[mask][~stood[rows]]
                seconds += time.perf_counter() - began
                done[rows] = True  # Last: whoever is stopped in between finds it again.
                kept.save()
                advance(len(rows))
        finally:
            kept.flush()
        standing = before & stood
        broken = int(before.sum() - standing.sum())
        if broken_by is not None:
            broken_by[before & ~standing] = len(results)
        results.append(
            AttackResult(attack, int(before.sum()), broken, float(standing.mean()), round(float(seconds), 3))
        )
        before = standing
    return before, results

"""Scores models as a matrix: each attack is made on each source and tried on each target.

Where source and target are the same model the attack is white-box, elsewhere it is black-box by transfer. An image is
robust when it is classified correctly both clean and attacked, so that robust accuracy is a share of all images; over
several attacks the worst case is taken image by image.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from robust_gan import parallel
from robust_gan.data import batching
from robust_gan.data.array_files import to_unit
from robust_gan.errors import UserError
from robust_gan.evaluation.models import CLEAN, GENERATOR, Attacks, Model, name_attacks
from robust_gan.evaluation.rescaling import rescale
from robust_gan.evaluation.sharded_model import ShardedModel, batch_width, shard_batch, shard_models
from robust_gan.evaluation.state import EvaluationState
from robust_gan.types import ThreatModel


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of each image under attacks that were made on each model.

    Attributes:
        targets: Names of the models under attack.
        sources: Names of the models on which attacks were made, the targets first.
        attacks: Names of the attacks.
        clean: bool `[targets, N]`, whether the clean image is classified correctly.
        robust: For each (target, source, attack) that exists, bool `[N]`: whether both the clean and the adversarial
            image are classified correctly.
        predicted: For each target under each white-box attack, and under `clean`, int32 `[N]`: the predicted classes.
        shown: For the same keys the adversarial images that were asked for, float32 `[E, H, W, C]`; the clean ones
            under `clean`.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    attacks: tuple[str, ...]
    clean: np.ndarray
    robust: dict[tuple[str, str, str], np.ndarray]
    predicted: dict[tuple[str, str], np.ndarray] = dataclasses.field(default_factory=dict)
    shown: dict[tuple[str, str], np.ndarray] = dataclasses.field(default_factory=dict)

    def clean_accuracy(self, target: str) -> float:
        """Returns the accuracy of a target on clean images."""
        return float(self.clean[self.targets.index(target)].mean())

    def robust_accuracy(
        self, target: str, sources: Sequence[str], attacks: Sequence[str] | None = None, *,
        also: np.ndarray | None = None,
    ) -> float | None:  # fmt: skip
        """Returns the robust accuracy of a target under the worst of several attacks, see `robust_images`.

        Returns:
            A share of all images, or None where no such attack was made (the generator of a model without one).
        """
        robust = self.robust_images(target, sources, attacks, also=also)
        return None if robust is None else float(robust.mean())

    def robust_images(
        self, target: str, sources: Sequence[str], attacks: Sequence[str] | None = None, *,
        also: np.ndarray | None = None,
    ) -> np.ndarray | None:  # fmt: skip
        """Returns which images are robust under every attack that was made on any of the sources, bool `[N]`.

        Args:
            target: Name of the model under attack.
            sources: Names of the models on which the attacks were made; `[target]` for white-box attacks.
            attacks: Names of the attacks; None for all.
            also: bool `[N]`, which images are robust under further attacks.

        Returns:
            The mask, or None where no such attack was made.
        """
        rows = [
            self.robust[target, source, attack]
            for source in sources
            for attack in (self.attacks if attacks is None else attacks)
            if (target, source, attack) in self.robust
        ]
        if also is not None:
            rows.append(also)
        return np.all(rows, axis=0) if rows else None


def evaluate_transfer(
    targets: Sequence[Model | ShardedModel],
    images: np.ndarray,
    labels: np.ndarray,
    threat: ThreatModel,
    *,
    attacks: Attacks,
    surrogates: Sequence[Model | ShardedModel] = (),
    transfers: bool = True,
    batch_size: int = 500,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    state: EvaluationState | None = None,
    shown: Sequence[int] = (),
    progress_fn: Callable[[int], Any] = lambda images: None,
) -> Scores:
    """Computes the scores of models under attacks that are made on each of them; each image is scored once per attack.

    Args:
        targets: The models under attack.
        images: uint8 or float `[N, H, W, C]`, within the bounds of the threat model.
        labels: `[N]`.
        threat: The threat model; where its bounds are not (0, 1), everything is rescaled to [0, 1] together.
        attacks: Names, functions or both, see `models.name_attacks`.
        surrogates: Further models on which attacks are made, but which are not scored.
        transfers: Whether the attacks made on one target are tried on the other targets.
        batch_size: Images at once over all devices; rounded up to a multiple of their number. No result depends on
            it or on the number of devices, because every image has a key of its own.
        seed: Of the attacks.
        devices: Devices to use; None for all.
        state: Saved state of a stopped evaluation of the same models, images, threat model and seed; continued and
            updated.
        shown: Positions of images whose adversarial examples are returned too.
        progress_fn: Called with the number of images attacked (`num_attacked` computes the total).

    Returns:
        The scores.

    Raises:
        UserError: The state belongs to another evaluation, an argument cannot be scored, or an attack of the user's
            own leaves the ball or the range.

    Guarantees:
        `test_every_image_is_counted_once`, `test_scores_do_not_depend_on_batch_size_or_devices`,
        `test_a_stopped_evaluation_goes_on_to_the_same_scores`.

    >>> import jax.numpy as jnp
    >>> from robust_gan import LinfThreat
    >>> model = Model("mean", lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1))
    >>> images = np.array([0.6, 0.9], np.float32).reshape(2, 1, 1, 1)
    >>> scores = evaluate_transfer([model], images, np.zeros(2, np.int32), LinfThreat(0.2), attacks=["fgsm"])
    >>> scores.clean_accuracy("mean"), scores.robust_accuracy("mean", ["mean"])
    (1.0, 0.5)
    """
    devices = parallel.find_devices() if devices is None else devices
    names, functions = name_attacks(attacks)
    models, images, labels, threat = rescale([*targets, *surrogates], images, labels, threat)
    if not targets:
        raise UserError("give at least one model to evaluate")
    if any(not 0 <= position < len(images) for position in shown):
        raise UserError(f"shown must be positions of images in 0..{len(images) - 1}, not {list(shown)}")
    sharded = shard_models(models, images, labels, devices, functions)
    if state is not None:
        state.belong(sharded, images, labels, threat, seed, attacks=names, batch_size=batch_size, devices=devices)
    return score(
        sharded[: len(targets)], images, labels, threat, attacks=names, surrogates=sharded[len(targets) :],
        transfers=transfers, batch_size=batch_size, seed=seed, devices=devices,
        state=EvaluationState() if state is None else state, shown=shown, progress_fn=progress_fn,
    )  # fmt: skip


def score(
    targets: Sequence[ShardedModel], images: np.ndarray, labels: np.ndarray, threat: ThreatModel, *,
    attacks: Sequence[str], surrogates: Sequence[ShardedModel], transfers: bool, batch_size: int, seed: int,
    devices: Sequence[jax.Device], state: EvaluationState, shown: Sequence[int], progress_fn: Callable[[int], Any],
) -> Scores:  # fmt: skip
    """Computes the scores as `evaluate_transfer` does, without checking to which evaluation the state belongs."""
    sources, count = [*targets, *surrogates], len(images)
    table = _Table(targets, images, attacks, np.asarray(shown, int), state)
    try:
        for indices, mask in batching.padded_batches(count, batch_width(batch_size, count, devices)):
            rows, shares = indices[mask], shard_batch(images, labels, indices, devices)
            for target in targets:
                table.score_clean(target, shares, rows, mask)
            for source in sources:
                attacked = [target for target in targets if target is source or transfers or source in surrogates]
                for attack in filter(source.can, attacks):
                    table.score_attack(source, attacked, attack, shares, rows, mask, threat, seed)
                    progress_fn(len(rows))
    finally:
        state.flush()
    names = [tuple(model.name for model in models) for models in (targets, sources)]
    clean = np.stack([table.clean[name][0] for name in names[0]])
    return Scores(names[0], names[1], tuple(attacks), clean, table.robust, table.predicted, table.shown)


class _Table:
    """The arrays of an evaluation by transfer, which lie in its state and are filled batch by batch."""

    def __init__(self, targets, images, attacks, positions, state):
        self._state, self._count, self._positions = state, len(images), positions
        self.clean = {target.name: state.part(f"clean: {target.name}", self._count) for target in targets}
        self.robust: dict[tuple[str, str, str], np.ndarray] = {}
        self.predicted: dict[tuple[str, str], np.ndarray] = {}
        self.shown: dict[tuple[str, str], np.ndarray] = {}
        unset = np.full(self._count, -1, np.int32)
        for target in targets:
            for attack in (CLEAN, *filter(target.can, attacks)):
                name, key = f"{attack}: {target.name}", (target.name, attack)
                self.predicted[key] = state.array(f"predicted under {name}", unset)
                if len(positions):
                    self.shown[key] = state.array(f"shown under {name}", to_unit(images[positions]))

    def score_clean(self, target, shares, rows, mask):
        correct, done = self.clean[target.name]
        if not done[rows].all():
            found, classes = target.score(*shares[1:])
            correct[rows], self.predicted[target.name, CLEAN][rows] = found[mask], classes[mask]
            done[rows] = True
            self._state.save()

    def score_attack(self, source, targets, attack, shares, rows, mask, threat, seed):
        parts = [self._state.part(f"{attack}, made on {source.name}: {target.name}", self._count) for target in targets]
        for target, (robust, _) in zip(targets, parts, strict=True):
            self.robust[target.name, source.name, attack] = robust
        if all(done[rows].all() for _, done in parts):
            return
        adversarial = source.craft(attack, shares, threat, seed)
        for target, (robust, done) in zip(targets, parts, strict=True):
            correct, classes = target.score(adversarial, shares[2])
            robust[rows] = correct[mask] & self.clean[target.name][0][rows]
            if target is source:
                self.predicted[target.name, attack][rows] = classes[mask]
                here = np.isin(self._positions, rows)
                if here.any():
                    made = parallel.gather(adversarial)[mask]
                    self.shown[target.name, attack][here] = made[self._positions[here] - rows[0]]
            done[rows] = True  # Set last, so that an interruption before it repeats the batch.
        self._state.save()


def num_attacked(
    targets: Sequence[Model | ShardedModel],
    surrogates: Sequence[Model | ShardedModel],
    attacks: Sequence[str],
    num_images: int,
) -> int:
    """Returns how many images an evaluation by transfer attacks: the total of the calls of `progress_fn`.

    Args:
        targets: The models under attack.
        surrogates: Further models on which attacks are made.
        attacks: Their names.
        num_images: N.

    >>> model = Model("a", lambda x: x)
    >>> num_attacked([model], [], ["fgsm", "generator"], 100)
    100
    """
    sources = [*targets, *surrogates]
    crafted = sum(name != GENERATOR or source.generator is not None for source in sources for name in attacks)
    return crafted * num_images

"""How robust classifiers are: every image of a split scored once, under attacks made on themselves and on others.

Models are scored as a matrix. An attack is made on a *maker* and tried on every model: where maker and model are the
same it is white box, elsewhere it is black box by transfer. Robust means right on the clean image **and** on the
adversarial one, so that a robust accuracy is a share of all images; over several attacks the worst case is taken image
by image.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from robust_gan import parallel
from robust_gan.data import batching
from robust_gan.evaluation.models import CLEAN, GENERATOR, Attacks, Model, name_attacks, to_unit
from robust_gan.evaluation.sharded_model import ShardedModel, batch_width, place, share
from robust_gan.evaluation.state import EvaluationState
from robust_gan.evaluation.units import in_unit_range
from robust_gan.types import ThreatModel


@dataclasses.dataclass(frozen=True)
class Scores:
    """What held, image by image.

    Attributes:
        targets: Names of the models under attack.
        makers: Names of the models on which attacks were made, the targets first.
        attacks: Names of the attacks.
        clean: bool `[targets, N]`, right on the clean image.
        robust: For each (target, maker, attack) that exists, bool `[N]`: right on the clean image and on the
            adversarial one.
        predicted: For each target under each attack in the open, and under `clean`, int32 `[N]`: the class that each
            image is taken for; -1 where an older version had scored it.
        shown: For the same the adversarial images that were asked for, float32 `[E, H, W, C]`; clean under `clean`.
    """

    targets: tuple[str, ...]
    makers: tuple[str, ...]
    attacks: tuple[str, ...]
    clean: np.ndarray
    robust: dict[tuple[str, str, str], np.ndarray]
    predicted: dict[tuple[str, str], np.ndarray] = dataclasses.field(default_factory=dict)
    shown: dict[tuple[str, str], np.ndarray] = dataclasses.field(default_factory=dict)

    def clean_accuracy(self, target: str) -> float:
        """Returns the share of images that are right when nobody attacks."""
        return float(self.clean[self.targets.index(target)].mean())

    def robust_accuracy(
        self,
        target: str,
        makers: Sequence[str],
        attacks: Sequence[str] | None = None,
        *,
        also: np.ndarray | None = None,
    ) -> float | None:
        """Returns the share of all images that are right clean and under every attack made on any of the makers.

        Args:
            target: The model under attack.
            makers: On whom the attacks are made; `[target]` for white box.
            attacks: Which attacks; None for all.
            also: bool `[N]`, what stood under further attacks.

        Returns:
            The share in [0, 1], or None where no such attack exists (a generator that a model does not have).
        """
        robust = self.robust_images(target, makers, attacks, also=also)
        return None if robust is None else float(robust.mean())

    def robust_images(
        self,
        target: str,
        makers: Sequence[str],
        attacks: Sequence[str] | None = None,
        *,
        also: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Returns which images are right clean and under every attack made on any of the makers, bool `[N]`.

        Args:
            target: The model under attack.
            makers: On whom the attacks are made; `[target]` for white box.
            attacks: Which attacks; None for all.
            also: bool `[N]`, what stood under further attacks.

        Returns:
            The images, or None where no such attack exists.
        """
        rows = [
            self.robust[target, maker, attack]
            for maker in makers
            for attack in (self.attacks if attacks is None else attacks)
            if (target, maker, attack) in self.robust
        ]
        if also is not None:
            rows.append(also)
        return np.all(rows, axis=0) if rows else None


def evaluate(
    targets: Sequence[Model | ShardedModel],
    images: np.ndarray,
    labels: np.ndarray,
    threat: ThreatModel,
    *,
    attacks: Attacks,
    sources: Sequence[Model | ShardedModel] = (),
    transfers: bool = True,
    batch_size: int = 500,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    kept: EvaluationState | None = None,
    shown: Sequence[int] = (),
    advance: Callable[[int], Any] = lambda images: None,
) -> Scores:
    """Scores every image of a split exactly once per attack.

    Args:
        targets: The models under attack.
        images: uint8 or float `[N, H, W, C]`, within the bounds of the threat model.
        labels: `[N]`.
        threat: The threat model; where its bounds are not (0, 1), models, images and radius are moved to [0, 1]
            together, and so are the images that are shown.
        attacks: Names, see `attacks.by_name`; `generator` for a model's co-trained one; and those of `RETRAINED`. Or
            functions of your own (`types.Attack`), see `models.name_attacks`.
        sources: Further models on which attacks are made, but which are not scored themselves.
        transfers: Whether the targets' attacks are tried on each other too.
        batch_size: Images at once, over all devices; rounded up to a multiple of their number. No figure depends on
            it, nor on the number of devices: every image has a key of its own.
        seed: Of the attacks' randomness.
        devices: Where; None for all.
        kept: What a stopped evaluation of the same models, images, threat model and seed had found; not done again,
            and added to.
        shown: Positions of the images whose adversarial ones are returned too.
        advance: Called with the number of images attacked, for a progress bar (`total` gives the sum).

    Returns:
        What held, image by image.

    Raises:
        UserError: What was kept is of another evaluation, or an argument is none that can be scored.

    Guarantees:
        `test_every_image_is_counted_once`, `test_scores_do_not_depend_on_batch_size_or_devices`,
        `test_a_stopped_evaluation_goes_on_to_the_same_scores`.

    >>> import jax.numpy as jnp
    >>> from robust_gan import LinfThreat
    >>> model = Model("mean", lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1))
    >>> images = np.array([0.6, 0.9], np.float32).reshape(2, 1, 1, 1)
    >>> scores = evaluate([model], images, np.zeros(2, np.int32), LinfThreat(0.2), attacks=["fgsm"])
    >>> scores.clean_accuracy("mean"), scores.robust_accuracy("mean", ["mean"])
    (1.0, 0.5)
    """
    devices = parallel.find_devices() if devices is None else devices
    names, functions = name_attacks(attacks)
    models, images, labels, threat = in_unit_range([*targets, *sources], images, labels, threat)
    placed = place(models, images, labels, devices, functions)
    if kept is not None:
        kept.belong(placed, images, labels, threat, seed, attacks=names, batch_size=batch_size, devices=devices)
    return score(
        placed[: len(targets)], images, labels, threat, attacks=names, sources=placed[len(targets) :],
        transfers=transfers, batch_size=batch_size, seed=seed, devices=devices,
        kept=EvaluationState() if kept is None else kept, shown=shown, advance=advance,
    )  # fmt: skip


def score(
    targets: Sequence[ShardedModel],
    images: np.ndarray,
    labels: np.ndarray,
    threat: ThreatModel,
    *,
    attacks: Sequence[str],
    sources: Sequence[ShardedModel],
    transfers: bool,
    batch_size: int,
    seed: int,
    devices: Sequence[jax.Device],
    kept: EvaluationState,
    shown: Sequence[int],
    advance: Callable[[int], Any],
) -> Scores:
    """Scores as `evaluate` does, where it is known already of which evaluation the findings are."""
    makers, count = [*targets, *sources], len(images)
    clean = {target.name: kept.part(f"clean: {target.name}", count) for target in targets}
    robust: dict[tuple[str, str, str], np.ndarray] = {}
    positions = np.asarray(shown, int)
    predicted, pictures = {}, {}
    for target in targets:
        for attack in (CLEAN, *filter(target.can, attacks)):
            key = target.name, attack
            name = f"{attack}: {target.name}"
            predicted[key] = kept.array(f"predicted under {name}", np.full(count, -1, np.int32))
            if len(positions):
                pictures[key] = kept.array(f"shown under {name}", to_unit(images[positions]))
    try:
        for indices, mask in batching.padded_batches(count, batch_width(batch_size, count, devices)):
            rows, shares = indices[mask], share(images, labels, indices, devices)
            for target in targets:
                right, done = clean[target.name]
                if not done[rows].all():
                    found, classes = target.score(*shares[1:])
                    right[rows], predicted[target.name, CLEAN][rows] = found[mask], classes[mask]
                    done[rows] = True
                    kept.save()
            for maker in makers:
                for attack in filter(maker.can, attacks):
                    attacked = [target for target in targets if target is maker or transfers or maker in sources]
                    parts = [kept.part(f"{attack}, made on {maker.name}: {target.name}", count) for target in attacked]
                    robust |= {(target.name, maker.name, attack): stood
                               for target, (stood, _) in zip(attacked, parts, strict=True)}  # fmt: skip
                    if not all(done[rows].all() for _, done in parts):
                        adversarial = maker.craft(attack, shares, threat, seed)
                        for target, (stood, done) in zip(attacked, parts, strict=True):
                            found, classes = target.score(adversarial, shares[2])
                            stood[rows] = found[mask] & clean[target.name][0][rows]
                            if target is maker:
                                predicted[target.name, attack][rows] = classes[mask]
                                here = np.isin(positions, rows)
                                if here.any():
                                    made = parallel.gather(adversarial)[mask]
                                    pictures[target.name, attack][here] = made[positions[here] - rows[0]]
                            done[rows] = True  # Last: whoever is stopped in between finds it again.
                        kept.save()
                    advance(len(rows))
    finally:
        kept.flush()
    names = [tuple(model.name for model in models) for models in (targets, makers)]
    return Scores(
        names[0], names[1], tuple(attacks), np.stack([clean[name][0] for name in names[0]]), robust, predicted, pictures
    )


def total(
    targets: Sequence[Model | ShardedModel],
    sources: Sequence[Model | ShardedModel],
    attacks: Sequence[str],
    num_images: int,
) -> int:
    """Returns how many images an evaluation attacks: what the calls of `advance` add up to.

    Args:
        targets: The models under attack.
        sources: Further models on which attacks are made.
        attacks: Their names.
        num_images: N.

    >>> model = Model("a", lambda x: x)
    >>> total([model], [], ["fgsm", "generator"], 100)
    100
    """
    makers = [*targets, *sources]
    crafted = sum(name != GENERATOR or maker.generator is not None for maker in makers for name in attacks)
    return crafted * num_images

"""What an attack does in each of its steps, on a sample of the images."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from robust_gan import attacks as attacks_lib
from robust_gan import prng
from robust_gan.data.array_files import take
from robust_gan.errors import UserError
from robust_gan.evaluation.probes import draw
from robust_gan.evaluation.sharded_model import ShardedModel, attack_key, compiled
from robust_gan.types import ThreatModel

_COUNT = 128
_OTHER = "pgd40"


def trace_steps(
    models: Sequence[ShardedModel], images: np.ndarray, labels: np.ndarray, threat: ThreatModel, *, attack: str,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Returns means over at most 128 images, balanced over the classes, in each step of an attack.

    Args:
        models: The models under attack.
        images: uint8 or float `[N, H, W, C]`.
        labels: `[N]`.
        threat: The threat model.
        attack: A name of `attacks.by_name`; where it records no steps or has restarts, `pgd40` is traced.
        seed: Of the attack; the keys are those of an evaluation of all images.

    Returns:
        A JSON-able dictionary: `attack`; `images`, their number; and under `models` for each name `loss`, `best_loss`
        and `misclassified`, a value for each step: the share that has been misclassified so far.

    Raises:
        UserError: The attack cannot be made.
    """
    drawn = draw(labels, _COUNT, seed)
    batch = jnp.array(take(images, drawn)), jnp.array(labels[drawn].astype(np.int32))
    found = {}
    for model in models:
        for name in dict.fromkeys((attack, _OTHER)):
            keys = prng.keys_at(attack_key(name, seed), jnp.asarray(drawn, jnp.int32))
            try:
                rows = compiled(_trace, model.model.logits_fn, attack=name)(keys, *batch, threat)
                break
            except UserError:
                if name == _OTHER:
                    raise
        found[model.name] = dict(zip(("loss", "best_loss", "misclassified"), map(_listed, rows), strict=True))
    return {"attack": name, "images": len(drawn), "models": found}


def _listed(row):
    return [float(value) if np.isfinite(value) else None for value in np.asarray(row, np.float64)]


def _trace(logits_fn, keys, images, labels, threat, *, attack):
    steps = attacks_lib.trace(attacks_lib.by_name(attack), logits_fn, keys, images, labels, threat)
    return steps.losses.mean(1), steps.best_losses.mean(1), steps.fooled.mean(1)

"""Signs that a game goes wrong though its numbers are finite, told at each validation: `health/*` and `warning/*`.

They say what to look at, not that a figure is wrong; no run ends by them.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from robust_gan import adversaries, checkpoint, data, evaluation, prng, threat_model
from robust_gan.attacks.generator import PAPER, Design, draw_latent, generator_inputs, trained
from robust_gan.config import Config
from robust_gan.game import TrainState
from robust_gan.losses import cross_entropy
from robust_gan.networks import inference
from robust_gan.training import evaluator

IMAGES = 256
"""Of the validation split, the first ones, on which players are looked at."""

LEAST_VARIATION = 0.01
"""Of noise in [-1, 1]: the mean, over pixels, of its standard deviation over images."""

MOST_SINGLE_STEP_LEAD = 0.3
"""Of accuracy under one gradient step over that under many."""

MOST_FALL = 0.05
"""Of robust accuracy from its best, where that is more than chance: two standard errors."""

WARNINGS = {
    "generator_constant": "the generator's noise is nearly the same for every image: it has collapsed",
    "generator_without_gain": "the generator does not raise the classifier's loss",
    "classifier_constant": "the classifier takes every image for the same class: it has collapsed",
    "single_step_overfitting": "the classifier withstands one gradient step and not many: it has overfitted to one",
    "robust_overfitting": "robust accuracy has fallen from its best: the classifier overfits; see validation.patience",
}
"""What each warning says."""


def measure(config: Config, dataset: data.Dataset, state: TrainState, info: checkpoint.DataInfo) -> dict[str, float]:
    """Looks at both players.

    Args:
        config: The run.
        dataset: Its validation split is looked at.
        state: The state.
        info: What the networks know of the data.

    Returns:
        `health/classes_predicted` among the images, `health/logit_variation` (the mean, over classes, of the standard
        deviation over images), and with a generator `health/noise_variation` and `health/generator_gain` (how much
        higher the cross-entropy is on its images than on clean ones).
    """
    images, labels = (part[:IMAGES] for part in (dataset.validation.images, dataset.validation.labels))
    model = evaluator.state_model(config, state, info)
    noise_fn, design, player = None, PAPER, None
    if config.adversary.name == "generator":
        noise_fn = inference.generate(config.adversary.generator.network, info.image_shape[-1])
        design, player = adversaries.get_design(config.adversary.generator), state.adversary[:2]
    look = _look(noise_fn, design, info.num_classes)
    found = look(
        model.logits_fn, player, evaluation.to_unit(images), labels, threat_model.from_config(config.threat)
    )  # fmt: skip
    return {f"health/{name}": float(value) for name, value in jax.device_get(found).items()}


def warnings(
    figures: Mapping[str, float], health: Mapping[str, float], config: Config, count: int, best: float | None
) -> dict[str, bool]:
    """Tells which signs there are.

    Args:
        figures: What `validation.figures` returned.
        health: What `measure` returned.
        config: The run.
        count: Images of the validation.
        best: The best figure of `validation.selection` before; None where there was none.

    Returns:
        For each of `WARNINGS` that the game can have, whether there is reason for it.

    >>> figures = {"validation/clean_accuracy": 0.9, "validation/fgsm": 0.8, "validation/pgd10": 0.1}
    >>> health = {"health/classes_predicted": 10.0}
    >>> found = warnings(figures, health, Config(), 1000, best=0.5)
    >>> [name for name, is_so in found.items() if is_so]
    ['single_step_overfitting', 'robust_overfitting']
    """
    pgd = figures[f"validation/pgd{config.validation.pgd_steps}"]
    found = {"classifier_constant": health["health/classes_predicted"] == 1}
    if "health/noise_variation" in health:
        found["generator_constant"] = not health["health/noise_variation"] >= LEAST_VARIATION  # Nor NaN.
        found["generator_without_gain"] = not health["health/generator_gain"] > 0
    found["single_step_overfitting"] = figures["validation/fgsm"] - pgd > MOST_SINGLE_STEP_LEAD
    if config.adversary.name != "none":
        best = max(best or 0.0, 0.0)
        found["robust_overfitting"] = best - pgd > max(MOST_FALL, 2 * math.sqrt(best * (1 - best) / count))
    return found


class LogOnce:
    """Says each warning when it comes, not as long as it stays.

    Args:
        say: Called with a sentence.

    >>> said = []
    >>> teller = LogOnce(said.append)
    >>> for is_so in (True, True, False):
    ...     metrics = teller.tell(500, {"classifier_constant": is_so})
    >>> len(said), metrics
    (1, {'warning/classifier_constant': 0.0})
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        """Has said nothing yet."""
        self._say, self._before = say, dict[str, bool]()

    def tell(self, step: int, found: dict[str, bool]) -> dict[str, float]:
        """Says what is new, and returns the warnings as metrics, 0 or 1."""
        for name, is_so in found.items():
            if is_so and not self._before.get(name):
                self._say(f"warning at step {step}: {WARNINGS[name]} (warning/{name})")
        self._before = found
        return {f"warning/{name}": float(is_so) for name, is_so in found.items()}


@functools.cache
def _look(noise_fn: Callable | None, design: Design, num_classes: int) -> Callable[..., dict[str, jax.Array]]:
    @jax.jit
    def look(logits_fn, player, images, labels, threat):
        logits = logits_fn(images)
        predicted = jnp.argmax(logits, axis=-1)
        found = {
            "classes_predicted": jnp.sum(jnp.any(predicted[:, None] == jnp.arange(num_classes), axis=0)),
            "logit_variation": jnp.mean(jnp.std(logits, axis=0)),
        }
        if noise_fn is None:
            return found
        key = prng.make_key(evaluator.SEED)
        latent = None
        if design.latent_size:
            # One for all: noise that varies by its random input alone is constant in the images.
            latent = jnp.broadcast_to(draw_latent(key[None], design), (len(images), design.latent_size))
        seen = generator_inputs(logits_fn, latent, images, images, labels, threat, design, num_classes)
        noise = noise_fn(*player, seen)
        adversarial = trained(noise_fn, design, num_classes)(
            *player, logits_fn, key, images, labels, threat
        )  # fmt: skip
        gain = cross_entropy(logits_fn(adversarial), labels) - cross_entropy(logits, labels)
        return found | {"noise_variation": jnp.mean(jnp.std(noise, axis=0)), "generator_gain": jnp.mean(gain)}

    return look

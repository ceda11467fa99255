"""Diagnostics of a finite but failing game, computed at each validation: the metrics `health/*` and `warning/*`.

They suggest a check and never end a run.
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
from robust_gan.types import LogitsFn

SEED = 0
"""All validations attack with the same random numbers, so that steps are comparable."""

NUM_IMAGES = 256
"""The diagnostics use the first images of the validation split."""

MIN_NOISE_VARIATION = 0.01
"""Threshold on the standard deviation over images of noise in [-1, 1], averaged over pixels."""

MAX_SINGLE_STEP_GAP = 0.3
"""Threshold on the accuracy under FGSM minus the accuracy under PGD."""

MAX_ROBUST_DROP = 0.05
"""Threshold on the drop of robust accuracy from its best, if that exceeds two standard errors."""

WARNINGS = {
    "generator_constant": "the generator's noise is nearly the same for every image: it has collapsed",
    "generator_without_gain": "the generator does not raise the classifier's loss",
    "classifier_constant": "the classifier predicts the same class for every image: it has collapsed",
    "single_step_overfitting": "the classifier is robust to one gradient step but not to many: it has overfitted",
    "robust_overfitting": "robust accuracy has fallen from its best: the classifier overfits; see validation.patience",
}


def measure(
    config: Config, logits_fn: LogitsFn, state: TrainState, info: checkpoint.DataInfo, split: data.Split
) -> dict[str, float]:
    """Computes the metrics `health/*` of both players.

    Args:
        config: The run.
        logits_fn: The classifier of the state.
        state: The state.
        info: The data.
        split: The validation split.

    Returns:
        `health/classes_predicted`, `health/logit_variation` (standard deviation over images, averaged over classes),
        and with a generator `health/noise_variation` and `health/generator_gain` (cross-entropy on its images minus
        cross-entropy on clean images).
    """
    images, labels = split.images[:NUM_IMAGES], split.labels[:NUM_IMAGES]
    noise_fn, design, player = None, PAPER, None
    if config.adversary.name == "generator":
        noise_fn = inference.generate(config.adversary.generator.network, info.image_shape[-1])
        design, player = adversaries.get_design(config.adversary.generator), state.adversary[:2]
    compute = _compile(noise_fn, design, info.num_classes)
    threat = threat_model.from_config(config.threat)
    health = jax.device_get(compute(logits_fn, player, evaluation.to_unit(images), labels, threat))
    return {f"health/{name}": float(value) for name, value in health.items()}


def get_warnings(
    metrics: Mapping[str, float], health: Mapping[str, float], config: Config, num_images: int, best: float | None
) -> dict[str, bool]:
    """Returns for each warning that applies to the game whether it is raised.

    Args:
        metrics: `validation/*`, see `evaluator.Validation`.
        health: The output of `measure`.
        config: The run.
        num_images: Images of the validation.
        best: The best selection metric before; None if there is none.

    >>> metrics = {"validation/clean_accuracy": 0.9, "validation/fgsm": 0.8, "validation/pgd10": 0.1}
    >>> health = {"health/classes_predicted": 10.0}
    >>> raised = get_warnings(metrics, health, Config(), 1000, best=0.5)
    >>> [name for name, is_raised in raised.items() if is_raised]
    ['single_step_overfitting', 'robust_overfitting']
    """
    pgd = metrics[f"validation/pgd{config.validation.pgd_steps}"]
    raised = {"classifier_constant": health["health/classes_predicted"] == 1}
    if "health/noise_variation" in health:
        raised["generator_constant"] = not health["health/noise_variation"] >= MIN_NOISE_VARIATION  # Also if NaN.
        raised["generator_without_gain"] = not health["health/generator_gain"] > 0
    raised["single_step_overfitting"] = metrics["validation/fgsm"] - pgd > MAX_SINGLE_STEP_GAP
    if config.adversary.name != "none":
        best = max(best or 0.0, 0.0)
        raised["robust_overfitting"] = best - pgd > max(MAX_ROBUST_DROP, 2 * math.sqrt(best * (1 - best) / num_images))
    return raised


class LogOnce:
    """Logs each warning when it is first raised, and again only after it was cleared.

    Args:
        log_fn: Called with a sentence.

    >>> sentences = []
    >>> log_once = LogOnce(sentences.append)
    >>> for is_raised in (True, True, False):
    ...     metrics = log_once(500, {"classifier_constant": is_raised})
    >>> len(sentences), metrics
    (1, {'warning/classifier_constant': 0.0})
    """

    def __init__(self, log_fn: Callable[[str], Any]) -> None:
        self._log_fn, self._before = log_fn, dict[str, bool]()

    def __call__(self, step: int, raised: dict[str, bool]) -> dict[str, float]:
        """Logs what is new, and returns the warnings as metrics, 0 or 1."""
        for name, is_raised in raised.items():
            if is_raised and not self._before.get(name):
                self._log_fn(f"warning at step {step}: {WARNINGS[name]} (warning/{name})")
        self._before = raised
        return {f"warning/{name}": float(is_raised) for name, is_raised in raised.items()}


@functools.cache
def _compile(noise_fn: Callable | None, design: Design, num_classes: int) -> Callable[..., dict[str, jax.Array]]:
    @jax.jit
    def compute(logits_fn, player, images, labels, threat):
        logits = logits_fn(images)
        predicted = jnp.argmax(logits, axis=-1)
        health = {
            "classes_predicted": jnp.sum(jnp.any(predicted[:, None] == jnp.arange(num_classes), axis=0)),
            "logit_variation": jnp.mean(jnp.std(logits, axis=0)),
        }
        if noise_fn is None:
            return health
        key, latent = prng.make_key(SEED), None
        if design.latent_size:
            # One latent for all images: noise that varies with the latent alone is constant in the images.
            latent = jnp.broadcast_to(draw_latent(key[None], design), (len(images), design.latent_size))
        noise = noise_fn(*player, generator_inputs(logits_fn, latent, images, images, labels, threat, design,
                                                   num_classes))  # fmt: skip
        adversarial = trained(noise_fn, design, num_classes)(*player, logits_fn, key, images, labels, threat)
        gain = cross_entropy(logits_fn(adversarial), labels) - cross_entropy(logits, labels)
        return health | {"noise_variation": jnp.mean(jnp.std(noise, axis=0)), "generator_gain": jnp.mean(gain)}

    return compute

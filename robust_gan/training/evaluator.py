"""Validation during training: accuracies, diagnostics, and the metric that selects the best checkpoint."""

from typing import Any, NamedTuple

import jax
import numpy as np

from robust_gan import adversaries, checkpoint, evaluation, threat_model
from robust_gan.config import Config
from robust_gan.evaluation.certified import certify_images
from robust_gan.evaluation.sharded_model import shard_models
from robust_gan.game import TrainState
from robust_gan.networks import inference
from robust_gan.reporting import details, noise_images
from robust_gan.training import diagnostics
from robust_gan.training.setup import Setup, get_validation_attacks


class Validation(NamedTuple):
    """The result of one validation.

    Attributes:
        metrics: `validation/clean_accuracy`, `validation/fgsm`, `validation/pgdN`, the attacks of `validation.attacks`
            and, with a generator, `validation/generator`, as shares of the images; and `validation/worst_case`, the
            share that withstands PGD and all of `validation.attacks`, where there are any.
        health: `health/*`, see `diagnostics.measure`.
        warnings: See `diagnostics.get_warnings`.
        images: A few clean images `[E, H, W, C]`, of different classes.
        noise: For each attack its perturbations of these images, in units of epsilon.
    """

    metrics: dict[str, float]
    health: dict[str, float]
    warnings: dict[str, bool]
    images: np.ndarray
    noise: dict[str, np.ndarray]


class Evaluator:
    """Evaluates states of a run on the validation split.

    Args:
        setup: The run.
        size: Number of images; 0 for `validation.size` of the configuration, or all.
    """

    def __init__(self, setup: Setup, size: int = 0) -> None:
        self._setup, split = setup, setup.dataset.validation
        size = size or setup.config.validation.size or len(split.labels)
        self._images, self._labels = split.images[:size], split.labels[:size]
        self._shown = details.choose(self._labels, noise_images.SHOWN).tolist()

    def evaluate(self, state: TrainState, best: float | None = None) -> Validation:
        """Computes all validation metrics of a state.

        Args:
            state: The state.
            best: The best selection metric before; None if there is none.
        """
        config, info = self._setup.config, self._setup.info
        model = get_model(config, state, info)
        selecting = dict.fromkeys((f"pgd{config.validation.pgd_steps}", *get_validation_attacks(config)))
        attacks = dict.fromkeys(("fgsm", *selecting, *([evaluation.GENERATOR] if model.generator else [])))
        threat, devices = threat_model.from_config(config.threat), self._setup.devices
        [sharded] = shard_models([model], self._images, self._labels, devices)
        where: dict[str, Any] = {"batch_size": config.validation.batch_size, "devices": devices}
        scores = evaluation.evaluate_transfer(
            [sharded], self._images, self._labels, threat, attacks=tuple(attacks), seed=diagnostics.SEED,
            shown=self._shown, **where,
        )  # fmt: skip
        metrics = {"validation/clean_accuracy": scores.clean_accuracy(model.name)}
        metrics |= {f"validation/{attack}": float(row.mean()) for (_, _, attack), row in scores.robust.items()}
        if config.classifier.loss == "ibp":
            certified = certify_images(sharded, self._images, self._labels, threat, ("ibp",),
                                       state=evaluation.EvaluationState(), **where)  # fmt: skip
            metrics["validation/certified"] = float(certified.mean())
        if len(selecting) > 1:
            rows = [row for (_, _, attack), row in scores.robust.items() if attack in selecting]
            metrics["validation/worst_case"] = float(np.all(rows, axis=0).mean())
        health = diagnostics.measure(config, model.logits_fn, state, info, self._setup.dataset.validation)
        shown = {attack: images for (_, attack), images in scores.shown.items()}
        clean = shown.pop(evaluation.CLEAN)
        return Validation(
            metrics, health, diagnostics.get_warnings(metrics, health, config, len(self._labels), best), clean,
            {name: noise_images.get_noise(made, clean, config.threat.epsilon) for name, made in shown.items()},
        )  # fmt: skip


def get_model(config: Config, state: TrainState, info: checkpoint.DataInfo) -> evaluation.Model:
    """Returns the classifier (and generator) of a state with running BatchNorm statistics, and averaged weights if any.

    Args:
        config: The run.
        state: The state.
        info: Its data.
    """
    generator = None
    if config.adversary.name == "generator":
        attack = adversaries.get_attack(config.adversary.generator, info.image_shape[-1], info.num_classes)
        generator = jax.tree_util.Partial(attack, state.adversary.params, state.adversary.batch_stats)
    apply = inference.classify(config.classifier.network, info.num_classes)
    classifier = state.classifier if state.average is None else state.average
    logits_fn = jax.tree_util.Partial(apply, classifier.params, classifier.batch_stats)
    return evaluation.Model("classifier", logits_fn, generator)


def get_selection_metric(config: Config, metrics: dict[str, float]) -> float:
    """Returns the metric that selects the best checkpoint.

    Args:
        config: The run.
        metrics: See `Validation.metrics`.

    Returns:
        With the loss `ibp`, the share of certified images; otherwise robust accuracy under PGD, or in the worst case
        over it and `validation.attacks`; for standard training, where it stays near 0, clean accuracy.

    >>> metrics = {"validation/clean_accuracy": 0.9, "validation/pgd10": 0.4}
    >>> get_selection_metric(Config(), metrics)
    0.4
    """
    if config.classifier.loss == "ibp":
        return metrics["validation/certified"]
    if config.adversary.name == "none":
        return metrics["validation/clean_accuracy"]
    return metrics.get("validation/worst_case", metrics[f"validation/pgd{config.validation.pgd_steps}"])

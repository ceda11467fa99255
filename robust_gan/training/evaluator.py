"""What is measured on the validation split while training, and by what the best checkpoint is chosen."""

from collections.abc import Sequence

import jax
import numpy as np

from robust_gan import adversaries, checkpoint, data, evaluation, threat_model
from robust_gan.config import Config
from robust_gan.game import TrainState
from robust_gan.networks import inference
from robust_gan.reporting import details, noise_images

SEED = 0
"""The attacks of every validation draw the same numbers, so that steps are compared on equal terms."""


def validate(
    config: Config, dataset: data.Dataset, state: TrainState, info: checkpoint.DataInfo, devices: Sequence[jax.Device]
) -> dict[str, float]:
    """Scores the classifier of a state on the validation split and returns the `figures`."""
    return figures(score(config, dataset, state, info, devices))


def score(
    config: Config, dataset: data.Dataset, state: TrainState, info: checkpoint.DataInfo, devices: Sequence[jax.Device]
) -> evaluation.Scores:
    """Scores the classifier of a state on the validation split: clean, FGSM, PGD and its generator.

    Returns:
        What held, with the adversarial images of a few of different classes (`Scores.shown`).
    """
    count = config.validation.size or len(dataset.validation.labels)
    model = state_model(config, state, info)
    names = ("fgsm", f"pgd{config.validation.pgd_steps}", *([evaluation.GENERATOR] if model.generator else []))
    labels = dataset.validation.labels[:count]
    return evaluation.evaluate(
        [model], dataset.validation.images[:count], labels, threat_model.from_config(config.threat), attacks=names,
        batch_size=config.validation.batch_size, seed=SEED, devices=devices,
        shown=details.choose(labels, noise_images.SHOWN).tolist(),
    )  # fmt: skip


def figures(scores: evaluation.Scores) -> dict[str, float]:
    """Returns the figures of a validation.

    Args:
        scores: Of `score`.

    Returns:
        `validation/clean_accuracy`, `validation/fgsm`, `validation/pgdN` and, with a generator,
        `validation/generator`, as shares of the images.
    """
    robust = {f"validation/{attack}": float(stood.mean()) for (_, _, attack), stood in scores.robust.items()}
    return {"validation/clean_accuracy": scores.clean_accuracy(scores.targets[0]), **robust}


def noise(config: Config, scores: evaluation.Scores) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns what the attacks of a validation do to a few images.

    Args:
        config: The run.
        scores: Of `score`.

    Returns:
        The clean images `[E, H, W, C]`, and for each attack its perturbations in units of epsilon.
    """
    shown = {attack: images for (_, attack), images in scores.shown.items()}
    images = shown.pop(evaluation.CLEAN)
    return images, {
        attack: noise_images.get_noise(made, images, config.threat.epsilon) for attack, made in shown.items()
    }  # fmt: skip


def state_model(config: Config, state: TrainState, info: checkpoint.DataInfo) -> evaluation.Model:
    """Returns the classifier (and generator) of a state, as they evaluate.

    That is with running BatchNorm statistics, and with the averaged weights where there are such.
    """
    generator = None
    if config.adversary.name == "generator":
        attack = adversaries.get_attack(config.adversary.generator, info.image_shape[-1], info.num_classes)
        generator = jax.tree_util.Partial(attack, state.adversary.params, state.adversary.batch_stats)
    apply = inference.classify(config.classifier.network, info.num_classes)
    classifier = state.classifier if state.average is None else state.average
    logits_fn = jax.tree_util.Partial(apply, classifier.params, classifier.batch_stats)
    return evaluation.Model("classifier", logits_fn, generator)


def selection(config: Config, figures: dict[str, float]) -> float:
    """Returns the figure by which the best checkpoint is chosen.

    Args:
        config: The run.
        figures: What `validate` returned.

    Returns:
        Robust accuracy under PGD; for standard training, where that is near 0 throughout, clean accuracy.

    >>> figures = {"validation/clean_accuracy": 0.9, "validation/pgd10": 0.4}
    >>> selection(Config(), figures)
    0.4
    """
    if config.adversary.name == "none":
        return figures["validation/clean_accuracy"]
    return figures[f"validation/pgd{config.validation.pgd_steps}"]

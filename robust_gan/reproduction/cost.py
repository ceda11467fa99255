"""The cost of training: time, classifier gradients per update, parameters; and the final losses."""

from typing import Any

import jax
import numpy as np
from etils import epath

from robust_gan import adversaries, checkpoint, networks, prng
from robust_gan.config import Config, adversarial_weight
from robust_gan.storage import files, workdir

LOSSES = ("clean_loss", "adversarial_loss", "generator_loss", "penalty")


def gradient_evaluations(config: Config) -> int:
    """Returns the number of backward passes through the classifier per update, each over one batch.

    Gradients in the pixels and in the weights count alike; the Hessian-vector product of the exact penalty counts as
    two; the passes for a generator that is not updated on every batch are averaged, and rounded up.

    >>> from robust_gan.config import AdversaryConfig, GeneratorConfig
    >>> gradient_evaluations(Config(adversary=AdversaryConfig(name="pgd")))
    12
    >>> gradient_evaluations(Config(adversary=AdversaryConfig(generator=GeneratorConfig(steps=5))))
    7
    """
    adversary, classifier = config.adversary, config.classifier
    attacked = adversarial_weight(config) > 0
    update = int(classifier.clean_weight > 0 or classifier.consistency > 0) + int(attacked)
    if config.penalty.coefficient:
        update += 2 if config.penalty.form == "exact" else 1
    update *= 2 if classifier.awp_gamma else 1
    if not attacked:
        return update
    if adversary.name == "fgsm":
        return update + 1
    if adversary.name == "pgd":
        return update + adversary.pgd.num_steps
    if adversary.name == "ensemble":
        return update + (1 if adversary.ensemble.scheme == "tramer" else 1 + adversary.ensemble.pgd_steps)
    generator = adversary.generator
    gradients = generator.num_refinements * ("gradient" in generator.inputs) + int(generator.final_fgsm_step > 0)
    steps = generator.steps * generator.batches_per_step
    improve = steps * (gradients * (2 if generator.diversity else 1) + 1)
    return update + -(-improve // generator.update_every) + gradients


def history(config: Config, folder: epath.Path) -> list[dict[str, float]]:
    """Returns the validations of a run with the cost up to each.

    Args:
        config: The run.
        folder: Its workdir.

    Returns:
        For each validation `step`, `seconds` of training, `gradient_evaluations` (batches) and `robust_accuracy`
        under PGD on the validation split.
    """
    metric, timing = f"validation/pgd{config.validation.pgd_steps}", _lines(folder / workdir.TIMING)
    return [
        {
            "step": line["step"],
            "seconds": round(sum(entry["seconds"] for entry in timing if entry["step"] <= line["step"]), 3),
            "gradient_evaluations": line["step"] * gradient_evaluations(config),
            "robust_accuracy": line[metric],
        }
        for line in _lines(folder / workdir.METRICS)
        if metric in line
    ]


def losses(folder: epath.Path) -> dict[str, float]:
    """Returns the training losses of both players, averaged over the last fifth of the log.

    Args:
        folder: The workdir of a finished run.

    Returns:
        The `LOSSES` of the run; `penalty` is half the squared norm of the generator's gradient.
    """
    logged = [line for line in _lines(folder / workdir.METRICS) if "train/classifier_loss" in line]
    last = logged[-max(1, len(logged) // 5) :]
    return {
        name: sum(line[f"train/{name}"] for line in last) / len(last)
        for name in LOSSES
        if f"train/{name}" in last[0]
    }  # fmt: skip


def measure(config: Config, folder: epath.Path, info: checkpoint.DataInfo) -> dict[str, Any]:
    """Returns the cost of a finished run: seconds, gradients, parameters; and its `losses` and `history`.

    The seconds include compilation but not validation.

    Args:
        config: The run.
        folder: Its workdir.
        info: Its data.
    """
    height, width, channels = info.image_shape
    classifier = networks.build_classifier(config.classifier.network, info.num_classes)
    parameters = {"classifier": _count(classifier, info.image_shape)}
    if config.adversary.name == "generator":
        channels_in = adversaries.get_design(config.adversary.generator).channels(channels, info.num_classes)
        generator = networks.build_generator(config.adversary.generator.network, channels)
        parameters["generator"] = _count(generator, (height, width, channels_in))
    return {
        "seconds": round(sum(line["seconds"] for line in _lines(folder / workdir.TIMING)), 1),
        "updates": config.num_steps,
        "gradient_evaluations": gradient_evaluations(config),
        "parameters": parameters,
        "losses": losses(folder),
        "history": history(config, folder),
    }


def _lines(path):
    return files.read_lines(path)


def _count(network, shape):
    params, _ = jax.eval_shape(network.init, prng.make_key(0), jax.ShapeDtypeStruct((1, *shape), np.float32))
    return networks.count_params(params)

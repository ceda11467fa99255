"""Adversaries: the maximising players of the game, as pure functions (`types.Adversary`)."""

from collections.abc import Callable, Sequence

import jax

from robust_gan import networks, optimizers
from robust_gan.adversaries import external
from robust_gan.adversaries.ensemble import ensemble
from robust_gan.adversaries.fgsm import fgsm
from robust_gan.adversaries.generator import generator
from robust_gan.adversaries.none import none
from robust_gan.adversaries.pgd import pgd
from robust_gan.attacks.generator import Design, trained
from robust_gan.config import AdversaryConfig, GeneratorConfig
from robust_gan.config.imports import is_function_name
from robust_gan.networks import inference
from robust_gan.types import Adversary, LogitsFn, ThreatModel

__all__ = ["ensemble", "fgsm", "from_config", "generator", "get_attack", "get_design", "none", "pgd"]


def from_config(
    config: AdversaryConfig,
    threat: ThreatModel,
    *,
    channels: int,
    num_classes: int,
    sources: Sequence[LogitsFn] = (),
    precision: str = "float32",
) -> Adversary:
    """Returns the adversary of a configuration.

    Args:
        config: Validated already.
        threat: The threat model.
        channels: C of the images.
        num_classes: K of the data.
        sources: The classifiers of `config.ensemble.sources`, for the adversary `ensemble`.
        precision: Dtype of the generator's inner layers.

    Raises:
        UserError: The generator's name is unknown, or a function of the user's cannot be used.

    >>> from robust_gan import LinfThreat
    >>> from_config(AdversaryConfig(name="pgd"), LinfThreat(0.15), channels=1, num_classes=10).init(None, None)
    ()
    """
    if is_function_name(config.name):
        return external.load(config.name, config=config, threat=threat, num_classes=num_classes, channels=channels)
    if config.name == "none":
        return none()
    if config.name == "fgsm":
        return fgsm(threat, start=config.fgsm.start, step_size=config.fgsm.step_size)
    if config.name == "pgd":
        return pgd(
            threat,
            num_steps=config.pgd.num_steps,
            step_size=config.pgd.step_size or None,
            loss=config.pgd.loss,
            keep_best=config.pgd.keep_best,
        )
    if config.name == "ensemble":
        return ensemble(
            sources,
            threat,
            scheme=config.ensemble.scheme,
            num_steps=config.ensemble.pgd_steps,
            keep_best=config.ensemble.keep_best,
            clean_share=config.ensemble.clean_share,
        )
    return generator(
        networks.build_generator(config.generator.network, channels, precision, remat=config.generator.remat),
        optimizers.build(config.generator.optimizer),
        threat,
        steps=config.generator.steps,
        design=get_design(config.generator),
        diversity=config.generator.diversity,
        num_classes=num_classes,
    )


def get_design(config: GeneratorConfig) -> Design:
    """Returns the design of the generator of a configuration.

    >>> get_design(GeneratorConfig(inputs=("gradient",), num_refinements=2)).num_refinements
    2
    """
    return Design(
        tuple(config.inputs), config.num_refinements, config.latent_size, config.final_fgsm_step,
        config.parametrization, config.start,
    )  # fmt: skip


def get_attack(config: GeneratorConfig, channels: int, num_classes: int) -> Callable[..., jax.Array]:
    """Returns the attack of a trained generator.

    It is called as `(params, batch_stats, logits_fn, key, images, labels, threat)`; see `attacks.generator.trained`.
    The same arguments return the same object, so that compiled functions are reused.

    Args:
        config: The configuration of its training.
        channels: C of the images.
        num_classes: K of the data.

    >>> get_attack(GeneratorConfig(), 1, 10) is get_attack(GeneratorConfig(), 1, 10)
    True
    """
    return trained(inference.generate(config.network, channels), get_design(config), num_classes)

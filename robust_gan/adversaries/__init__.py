"""Adversaries: the maximising player, one file each, each built of pure functions (`types.Adversary`)."""

from robust_gan import networks, optimizers
from robust_gan.adversaries.generator import generator
from robust_gan.adversaries.none import none
from robust_gan.adversaries.pgd import pgd
from robust_gan.config import AdversaryConfig
from robust_gan.types import Adversary, ThreatModel

__all__ = ["from_config", "generator", "none", "pgd"]


def from_config(config: AdversaryConfig, threat: ThreatModel, channels: int) -> Adversary:
    """Builds the adversary of a configuration.

    Args:
        config: Validated already.
        threat: The threat model.
        channels: C of the images.

    Raises:
        UserError: The generator's name is unknown.

    >>> from robust_gan import LinfThreat
    >>> from_config(AdversaryConfig(name="pgd"), LinfThreat(0.15), 1).init(None, None)
    ()
    """
    if config.name == "none":
        return none()
    if config.name == "pgd":
        return pgd(threat, num_steps=config.pgd.num_steps, step_size=config.pgd.step_size or None)
    network = networks.build_generator(config.generator.network, channels)
    return generator(network, optimizers.build(config.generator.optimizer), threat, steps=config.generator.steps)

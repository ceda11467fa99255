"""State of the game: what is constant (`Game`) and what changes from step to step (`TrainState`)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_gan import adversaries, networks, optimizers, threat_model
from robust_gan.config import Config, adversarial_weight, has_memory
from robust_gan.types import Adversary, LogitsFn, Network, PlayerState, PyTree, ThreatModel, Variables


class TrainState(NamedTuple):
    """All arrays that change from step to step.

    Attributes:
        step: int32 `[]`, classifier steps taken.
        key: The constant root key; the randomness of a step is a function of (key, step).
        classifier: The minimising player.
        adversary: The maximising player's state; `()` where it does not learn.
        average: Exponential moving average of the classifier's variables; None without `Game.ema_decay`.
        memory: The last perturbations, int8 as in `game.memory`: of the images of the batch in `train_step`, of the
            training split between the steps of a run; None where nothing is remembered.
    """

    step: jax.Array
    key: jax.Array
    classifier: PlayerState
    adversary: PyTree
    average: Variables | None = None
    memory: jax.Array | None = None


class CertifiedTerm(NamedTuple):
    """The term of the classifier's loss that bounds it over the whole ball.

    Attributes:
        threat: The threat model of the bounds.
        weight: Share of the term in the loss.
        warmup_steps: Training steps without it.
        ramp_steps: Steps after these over which radius and share grow in a straight line.
    """

    threat: ThreatModel
    weight: float | jax.Array
    warmup_steps: int = 0
    ramp_steps: int = 0

    def at_step(self, step: jax.Array) -> "CertifiedTerm":
        """Returns the term of a step.

        >>> from robust_gan import LinfThreat
        >>> term = CertifiedTerm(LinfThreat(0.4), 0.5, warmup_steps=10, ramp_steps=10)
        >>> [round(float(term.at_step(jnp.int32(step)).weight), 2) for step in (9, 14, 99)]
        [0.0, 0.25, 0.5]
        """
        share = jnp.clip((step + 1 - self.warmup_steps) / max(self.ramp_steps, 1), 0.0, 1.0)
        return self._replace(threat=threat_model.scaled(self.threat, share), weight=share * self.weight)


@dataclasses.dataclass(frozen=True)
class Game:
    """The constants of a game: functions and numbers that the compiled step closes over.

    Attributes:
        classifier: The classifier network D.
        optimizer: The classifier's, weight decay included.
        adversary: The maximising player.
        loss: `cross_entropy` (`losses.classifier_loss`) or `trades` (`losses.trades`).
        clean_weight: Weight of the clean cross-entropy.
        adversarial_weight: Weight of the adversarial term; at 0 the adversary is never called.
        label_smoothing: Of the classifier's cross-entropy.
        consistency: Coefficient of the squared distance between the probabilities of clean and adversarial images.
        gradient_penalty: Coefficient of R = 1/2 ||grad_phi CE||^2 in the classifier's loss: positive damps the game,
            negative is the released code, 0 is none and costs nothing.
        penalty_form: `exact`, or `finite_difference` as in the released code.
        penalty_step: Size h of the finite difference.
        penalty_decay: Weight decay of the adversary's kernels, which the finite difference includes; 0 for none.
        update_every: Training steps per update of the adversary; see `step.train_step`.
        attack_bn_mode: `batch` or `running`: the BatchNorm statistics with which the classifier is attacked in
            training. Its own update uses those of the clean and of the adversarial batch, and updates the running ones
            by the one and then by the other; evaluation uses the running ones.
        awp_gamma: Size of the adversarial weight perturbation (`objective.perturb_weights`); 0 for none.
        ema_decay: Decay of the exponential moving average of the weights; 0 for none.
        certified: The term of the loss `ibp`, or None.
        memory: The threat model whose radius is the unit of `TrainState.memory`; None where nothing is remembered.
        epsilon_warmup_steps: Steps over which the radius grows linearly up to epsilon; 0 for none.
        adversary_within: Returns the adversary for a share of epsilon; used by the warm-up alone.
    """

    classifier: Network
    optimizer: optax.GradientTransformation
    adversary: Adversary
    loss: str = "cross_entropy"
    clean_weight: float = 1.0
    adversarial_weight: float = 1.0
    label_smoothing: float = 0.0
    consistency: float = 0.0
    gradient_penalty: float = 0.0
    penalty_form: str = "exact"
    penalty_step: float = 0.01
    penalty_decay: float = 0.0
    update_every: int = 1
    attack_bn_mode: str = "batch"
    awp_gamma: float = 0.0
    ema_decay: float = 0.0
    certified: CertifiedTerm | None = None
    memory: ThreatModel | None = None
    epsilon_warmup_steps: int = 0
    adversary_within: Callable[[float | jax.Array], Adversary] | None = None


def at_step(game: Game, step: jax.Array) -> Game:
    """Returns the game of a step: during warm-ups, with an adversary and a certified term of a smaller radius.

    Args:
        game: The game.
        step: int32 `[]`, steps before this one.

    >>> from robust_gan.config import AdversaryConfig
    >>> config = Config(adversary=AdversaryConfig(name="pgd", epsilon_warmup_steps=4))
    >>> game = from_config(config, num_classes=10, channels=1)
    >>> at_step(game, jnp.int32(1)).adversary is game.adversary
    False
    >>> game = from_config(Config(), num_classes=10, channels=1)
    >>> at_step(game, jnp.int32(1)).adversary is game.adversary
    True
    """
    if game.certified is not None:
        game = dataclasses.replace(game, certified=game.certified.at_step(step))
    if not game.epsilon_warmup_steps or game.adversary_within is None:
        return game
    share = jnp.minimum((step + 1) / game.epsilon_warmup_steps, 1.0)
    memory = game.memory and threat_model.scaled(game.memory, share)
    return dataclasses.replace(game, adversary=game.adversary_within(share), memory=memory)


def from_config(config: Config, *, num_classes: int, channels: int, sources: Sequence[LogitsFn] = ()) -> Game:
    """Returns the game of a configuration.

    Args:
        config: Validated already.
        num_classes: K of the data.
        channels: C of the data.
        sources: The classifiers of `config.adversary.ensemble.sources`, for the adversary `ensemble`.

    Returns:
        The game.

    Raises:
        UserError: A network's name is unknown.

    >>> from_config(Config(), num_classes=10, channels=1).attack_bn_mode
    'batch'
    """
    threat = threat_model.from_config(config.threat)

    def within(share: float | jax.Array) -> Adversary:
        return adversaries.from_config(
            config.adversary,
            threat_model.scaled(threat, share),
            channels=channels,
            num_classes=num_classes,
            sources=sources,
            precision=config.precision,
        )

    return Game(
        classifier=networks.build_classifier(config.classifier.network, num_classes, config.precision),
        optimizer=optimizers.build(config.classifier.optimizer),
        adversary=within(1.0),
        loss=config.classifier.loss,
        clean_weight=config.classifier.clean_weight,
        adversarial_weight=adversarial_weight(config),
        label_smoothing=config.classifier.label_smoothing,
        consistency=config.classifier.consistency,
        gradient_penalty=config.penalty.coefficient,
        penalty_form=config.penalty.form,
        penalty_step=config.penalty.step,
        penalty_decay=config.adversary.generator.optimizer.weight_decay if config.penalty.decay else 0.0,
        update_every=config.adversary.generator.update_every if config.adversary.name == "generator" else 1,
        attack_bn_mode=config.classifier.attack_bn_mode,
        awp_gamma=config.classifier.awp_gamma,
        ema_decay=config.classifier.ema_decay,
        certified=_certified_term(config),
        memory=threat if has_memory(config) else None,
        epsilon_warmup_steps=config.adversary.epsilon_warmup_steps,
        adversary_within=within,
    )


def _certified_term(config: Config) -> CertifiedTerm | None:
    settings = config.classifier.ibp
    if config.classifier.loss != "ibp":
        return None
    threat = threat_model.LinfThreat(settings.epsilon or config.threat.epsilon)
    return CertifiedTerm(threat, settings.weight, settings.warmup_steps, settings.ramp_steps)

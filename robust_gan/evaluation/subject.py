"""Prepares an evaluation: tries models and attacks on a few images, and copies the models to the devices."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from robust_gan import interop, networks, threat_model
from robust_gan.config import ThreatConfig, check_epsilon
from robust_gan.data.array_files import to_unit
from robust_gan.errors import UserError
from robust_gan.evaluation import checks, corruptions
from robust_gan.evaluation.external import ExternalImages, check_external
from robust_gan.evaluation.models import RETRAINED, EvaluatedModel, EvaluationData
from robust_gan.evaluation.plan import AttackPlan, fit_classes
from robust_gan.evaluation.sharded_model import ShardedModel, shard_models
from robust_gan.evaluation.transfer import num_attacked
from robust_gan.types import ThreatModel


class Subject(NamedTuple):
    """The models, images, threat model and attacks of an evaluation, checked and ready to run.

    Attributes:
        models: Models under attack first, then the surrogates.
        num_targets: Number of models under attack.
        data: The images.
        threat: The threat model.
        attacks: The attacks.
        missing: For each model without a derivative the reason.
        sharded: The models on their devices.
        devices: The devices.
    """

    models: list[EvaluatedModel]
    num_targets: int
    data: EvaluationData
    threat: ThreatModel
    attacks: AttackPlan
    missing: dict[str, str]
    sharded: list[ShardedModel]
    devices: Sequence[jax.Device]

    @property
    def targets(self) -> list[ShardedModel]:
        """The models under attack."""
        return self.sharded[: self.num_targets]

    @property
    def surrogates(self) -> list[ShardedModel]:
        """Further models on which attacks are made."""
        return self.sharded[self.num_targets :]

    def num_attacked(self) -> int:
        """Returns how many images the evaluation attacks, for a progress bar."""
        count = len(self.data.labels)
        sequential = (1 + len(self.attacks.sequential)) * count if self.attacks.sequential else 0
        corrupted = len(corruptions.CORRUPTIONS) * len(corruptions.SEVERITIES) * count * self.attacks.corrupted
        attacked = num_attacked(self.targets, self.surrogates, self.attacks.names, count)
        return attacked + self.num_targets * (sequential + corrupted)


def prepare_each(
    models: Sequence[EvaluatedModel], num_targets: int, data: EvaluationData, threats: Sequence[ThreatModel],
    plans: Sequence[AttackPlan], batch_size: int, devices: Sequence[jax.Device],
) -> list[Subject]:  # fmt: skip
    """Returns what `prepare` does for each threat model and its attacks; the models are copied to the devices once."""
    subjects: list[Subject] = []
    for threat, plan in zip(threats, plans, strict=True):
        copied = subjects[0].sharded if subjects else None
        subjects.append(prepare(models, num_targets, data, threat, plan, batch_size, devices, copied))
    return subjects


def get_threat(norm: str, epsilon: float | None, image_shape: tuple[int, ...] = ()) -> ThreatModel:
    """Returns the threat model of a norm and a radius in units of [0, 1].

    Raises:
        UserError: The radius is invalid for this norm, or so large that it allows every image.

    >>> get_threat("linf", 0.1)
    LinfThreat(epsilon=0.1, bounds=(0.0, 1.0))
    """
    check_epsilon(epsilon, norm=norm, image_shape=image_shape)
    assert epsilon is not None  # `check_epsilon` refuses it.
    return threat_model.from_config(ThreatConfig(norm, float(epsilon)))


def prepare(
    models: Sequence[EvaluatedModel], num_targets: int, data: EvaluationData, threat: ThreatModel, attacks: AttackPlan,
    batch_size: int, devices: Sequence[jax.Device], copied: list[ShardedModel] | None = None,
) -> Subject:  # fmt: skip
    """Tries models and attacks on a few images, and copies the models to the devices.

    Args:
        models: Models under attack first, then the surrogates.
        num_targets: Number of models under attack.
        data: The images.
        threat: The threat model.
        attacks: The attacks.
        batch_size: Images at once, over all devices.
        devices: The devices; the first alone where a PyTorch module is called through a callback.
        copied: The models on the devices, where they are there already.

    Raises:
        UserError: A model or an attack fails, or they do not fit each other.
    """
    if any(interop.needs_one_device(evaluated.model.logits_fn) for evaluated in models):
        if jax.process_count() > 1:
            raise UserError("a PyTorch module that is called through a callback is evaluated by one process")
        devices = devices[:1]
    if attacks.corrupted:
        corruptions.check_shape(data.images.shape[1:])
    images, per_device = data.images, -(-batch_size // len(devices))
    external = {name: made for name, made in attacks.functions.items() if isinstance(made, ExternalImages)}
    for made in external.values():
        check_external(made, images, data.labels, threat)
    if set(attacks.names + attacks.sequential) & set(RETRAINED):
        networks.generator_for(images.shape[1:])
    num_classes = max(2, int(data.labels.max()) + 1, len(data.label_names))
    tried: list[EvaluatedModel] = []
    missing: dict[str, str] = {}
    largest = 0
    for index, evaluated in enumerate(models):
        model = evaluated.model
        own = evaluated.record is None
        if own:
            model = checks.prepare_model(model, images, per_device, num_classes)
            if why := checks.find_missing_derivative(model.logits_fn, to_unit(images[:1])):
                missing[model.name] = why
        classes = jax.eval_shape(model.logits_fn, jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)).shape[-1]
        largest = max(largest, classes)
        attacks = fit_classes(attacks, model.name, classes)
        names = [*attacks.names, *(attacks.sequential if index < num_targets else ())]
        width = min(per_device, -(-len(images) // len(devices)))
        if own:
            known = [name for name in names if name not in attacks.functions]
            checks.check_named_attacks(model, images, threat, known, width, missing.get(model.name, ""))
        for name in dict.fromkeys(name for name in names if name in attacks.functions and name not in external):
            checks.check_attack_function(name, attacks.functions[name], model, data, threat, width)
        tried.append(evaluated._replace(model=model))
    # The labels of a file may lack classes that a model knows.
    more = tuple(map(str, range(len(data.label_names), largest)))
    data = data._replace(label_names=data.label_names + more)
    if copied is None:
        copied = shard_models([evaluated.model for evaluated in tried], images, data.labels, devices, attacks.functions)
    return Subject(tried, num_targets, data, threat, attacks, missing, copied, devices)

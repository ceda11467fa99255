"""Runs a whole evaluation: attacks made on every model, sequential attacks, the curve, and the alarms."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from robust_gan import interop, parallel
from robust_gan.data.array_files import check_images
from robust_gan.errors import UserError
from robust_gan.evaluation import alarms, corruptions
from robust_gan.evaluation.alarms import Alarm
from robust_gan.evaluation.certified import (
    NORMS,
    SMOOTHING,
    certify_images,
    check_attacks,
    check_methods,
    smooth_images,
)
from robust_gan.evaluation.config import EvaluationConfig
from robust_gan.evaluation.curve import Curve, trace_curve
from robust_gan.evaluation.models import CLEAN, EvaluatedModel, EvaluationData, Model
from robust_gan.evaluation.plan import plan_attacks
from robust_gan.evaluation.result import EvaluationResult, SequentialResult, predictions
from robust_gan.evaluation.sequential import evaluate_sequential
from robust_gan.evaluation.state import EvaluationState
from robust_gan.evaluation.subject import Subject, get_threat, prepare_each
from robust_gan.evaluation.traces import trace_steps
from robust_gan.evaluation.transfer import evaluate_transfer
from robust_gan.types import Attack, LogitsFn

_PLOTTED_BY_QUERIES = "square"


def evaluate(
    models: Sequence[Model] | Mapping[str, LogitsFn],
    data: EvaluationData | tuple[np.ndarray, np.ndarray],
    config: EvaluationConfig,
    *,
    attacks: Mapping[str, Attack] = MappingProxyType({}),
    surrogates: Sequence[Model] = (),
    devices: Sequence[jax.Device] | None = None,
    state: EvaluationState | None = None,
    progress_fn: Callable[[int], Any] = lambda images: None,
) -> EvaluationResult:
    """Evaluates models under attacks and checks with alarms whether the results can be trusted.

    Args:
        models: The models under attack; or their `logits_fn` by name, or PyTorch modules (see `interop.from_torch`).
        data: The images; or a pair of images, uint8 or float in [0, 1], `[N, H, W, C]`, and labels `[N]`.
        config: Attacks, threat model, seed and batch size; `epsilon` must be given, `norm` is `linf` unless given.
            Its fields on files (`checkpoints`, `models`, `data`, `output`, ...) are not used here.
        attacks: Attacks of your own by name. They are made on every model in addition to `config.attacks`, or in the
            place where `config.attacks` or `config.sequential` names them.
        surrogates: Held-out models on which further black-box attacks are made.
        devices: Devices to use; None for all.
        state: Saved state of a stopped evaluation of the same; continued and updated.
        progress_fn: Called with the number of images attacked.

    Returns:
        The result.

    Raises:
        UserError: A model, the images or an attack cannot be used: checked on a few images before the first attack.

    >>> import jax.numpy as jnp
    >>> logits_fn = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1)
    >>> images, labels = np.full((2, 4, 4, 1), [[[[0.6]]], [[[0.9]]]], np.float32), np.array([0, 0])
    >>> def darken(logits_fn, key, images, labels, threat):
    ...     return jnp.clip(images - threat.epsilon, 0, 1)
    >>> config = EvaluationConfig(epsilon=0.2, attacks="fgsm", sequential="fgsm,darken")
    >>> result = evaluate({"mean": logits_fn}, (images, labels), config, attacks={"darken": darken})
    >>> result.clean_accuracy("mean"), result.robust_accuracy("mean")
    (1.0, 0.5)
    """
    if config.radius is None:
        raise UserError("epsilon is missing: give it in units of [0, 1], such as 8/255")
    given: dict[str, Any] = {"attacks": attacks, "surrogates": surrogates, "devices": devices}
    [result] = evaluate_threats(
        models, data, config, states=[EvaluationState() if state is None else state], progress_fn=progress_fn, **given
    )
    return result


def evaluate_threats(
    models: Sequence[Model] | Mapping[str, LogitsFn],
    data: EvaluationData | tuple[np.ndarray, np.ndarray],
    config: EvaluationConfig,
    *,
    attacks: Mapping[str, Attack] = MappingProxyType({}),
    surrogates: Sequence[Model] = (),
    devices: Sequence[jax.Device] | None = None,
    states: Sequence[EvaluationState] = (),
    progress_fn: Callable[[int], Any] = lambda images: None,
) -> list[EvaluationResult]:
    """Evaluates models under several threat models, `config.per_threat`, each as `evaluate` does.

    Args:
        models: As in `evaluate`.
        data: As in `evaluate`.
        config: As in `evaluate`, with several norms or radii.
        attacks: As in `evaluate`.
        surrogates: As in `evaluate`.
        devices: As in `evaluate`.
        states: For each threat model the saved state of a stopped evaluation; empty for none.
        progress_fn: As in `evaluate`.

    Returns:
        A result for each threat model; `EvaluationResult.robust` gives the images that are robust under one.

    Raises:
        UserError: As `evaluate`, before the first attack.

    >>> import jax.numpy as jnp
    >>> logits_fn = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], -1)
    >>> images, labels = np.full((2, 4, 4, 1), [[[[0.6]]], [[[0.9]]]], np.float32), np.array([0, 0])
    >>> config = EvaluationConfig(norm="linf,l2", epsilon="0.2,0.3", attacks="fgsm")
    >>> results = evaluate_threats({"mean": logits_fn}, (images, labels), config)
    >>> [(result.config.norm, result.robust_accuracy("mean")) for result in results]
    [('linf', 0.5), ('l2', 1.0)]
    """
    if isinstance(models, Mapping):
        models = [
            Model(name, interop.from_torch(model) if interop.is_torch_module(model) else model)
            for name, model in models.items()
        ]
    if config.epsilon is None:
        raise UserError("epsilon is missing: give it in units of [0, 1], such as 8/255")
    data = data if isinstance(data, EvaluationData) else EvaluationData.from_arrays(*data)
    configs = config.per_threat()
    plans = [plan_attacks(part, attacks) for part in configs]
    check_images(data.images, data.labels, 2**15)
    threats = [get_threat(part.norm or "linf", part.radius, data.images.shape[1:]) for part in configs]
    check_methods(config, [threat.norm for threat in threats])
    devices = parallel.find_devices(config.platform, config.num_devices) if devices is None else devices
    with jax.numpy_dtype_promotion("standard"):
        evaluated = [EvaluatedModel(model, {}) for model in (*models, *surrogates)]
        subjects = prepare_each(evaluated, len(models), data, threats, plans, config.batch_size, devices)
        results = []
        for part, subject, state in zip(configs, subjects, states or [EvaluationState() for _ in configs], strict=True):
            results.append(run_attacks(subject, part, state, progress_fn=progress_fn))
            add_alarms(results[-1], state)
    return results


def run_attacks(
    subject: Subject,
    config: EvaluationConfig,
    state: EvaluationState,
    *,
    shown: Sequence[int] = (),
    progress_fn: Callable[[int], Any] = lambda images: None,
) -> EvaluationResult:
    """Runs the attacks of an evaluation, continuing where its state was stopped.

    Args:
        subject: As `prepare` returned it.
        config: The configuration.
        state: The state; updated and written.
        shown: Positions of images whose adversarial examples are kept.
        progress_fn: Called with the number of images attacked.

    Returns:
        The result, without alarms and curve.
    """
    attacks, threat = subject.attacks, subject.threat
    if subject.missing and attacks.plotted not in attacks.names:
        subject = subject._replace(
            attacks=attacks._replace(plotted=[_PLOTTED_BY_QUERIES, *attacks.sequential][-1])
        )  # fmt: skip
    images, labels = subject.data.images, subject.data.labels
    where: dict[str, Any] = {"batch_size": config.batch_size, "devices": subject.devices, "state": state}
    methods = [name for name in config.certify if NORMS[name] == threat.norm]
    # First, so that a model that cannot be bounded is refused before it is attacked.
    certified = {
        model.name: certify_images(model, images, labels, threat, methods, **where)
        for model in (subject.targets if methods and SMOOTHING not in methods else ())
    }
    given: dict[str, Any] = where | {"seed": config.seed, "progress_fn": progress_fn}
    scores = evaluate_transfer(
        subject.targets, images, labels, threat, attacks=attacks.pick(attacks.names), surrogates=subject.surrogates,
        shown=shown, **given,
    )  # fmt: skip
    smoothed = {
        model.name: smooth_images(model, images, config, devices=subject.devices, state=state)
        for model in (subject.targets if SMOOTHING in methods else ())
    }
    result = EvaluationResult(config, subject, scores, certified=certified, smoothed=smoothed)
    for index, (name, proven) in enumerate(certified.items()):
        tried = {f"{attack} made on {source}": robust for (target, source, attack), robust in scores.robust.items()
                 if target == name}  # fmt: skip
        check_attacks(name, proven, {CLEAN: scores.clean[index], **tried})
    for model in subject.targets if attacks.corrupted else ():
        result.corrupted[model.name] = corruptions.score_corrupted(model, images, labels, **given)
    for model in subject.targets if attacks.sequential else ():
        rows = state.rows(f"adversarial: {model.name}", images) if config.save_adversarial else None
        predicted = state.array(f"predicted, sequential: {model.name}", np.full(len(labels), -1, np.int32))
        broken_by = np.full(len(labels), -1, np.int16)
        robust, results = evaluate_sequential(
            model, images, labels, threat, attacks=attacks.pick(attacks.sequential), adversarial=rows,
            predicted=predicted, broken_by=broken_by, certified=certified.get(model.name), **given,
        )  # fmt: skip
        result.sequential[model.name] = SequentialResult(
            robust, results, broken_by, np.where(robust, labels, predicted), rows
        )  # fmt: skip
    return result


def add_alarms(result: EvaluationResult, state: EvaluationState) -> None:
    """Traces the curve where it was asked for, and checks the alarms; what fails becomes a note.

    Args:
        result: Of `run_attacks`; filled in.
        state: The state, in which the alarms of the models are kept.
    """
    subject, config, scores = result.subject, result.config, result.scores
    images, labels, threat, devices = subject.data.images, subject.data.labels, subject.threat, subject.devices
    if "curve" in config.plots:

        def trace() -> Curve:
            return trace_curve(
                subject.targets, images, labels, threat, attack=subject.attacks.plotted, batch_size=config.batch_size,
                seed=config.seed, devices=devices, state=state,
            )  # fmt: skip

        result.curve = result.attempt("curve.png", trace)
    if "trace" in config.plots:

        def trace_attack() -> dict[str, Any]:
            given: dict[str, Any] = {"attack": subject.attacks.plotted, "seed": config.seed}
            return state.recall("traces") or trace_steps(subject.targets, images, labels, threat, **given)

        result.traces = result.attempt("trace.png", trace_attack)
        state.remember("traces", result.traces)
    for model in (sharded.model for sharded in subject.targets):

        def check(model: Model = model) -> list[Alarm]:
            # A resumed evaluation takes the alarms of the run that made the attacks.
            name = f"alarms of {model.name}"
            if (found := state.recall(name)) is not None:
                return [Alarm(*alarm) for alarm in found]
            checked = alarms.check_model(
                model.logits_fn, images, labels, threat, batch_size=-(-config.batch_size // len(devices)),
                seed=config.seed, no_derivative=subject.missing.get(model.name, ""),
                robust={attack: scores.robust[name, source, attack] for name, source, attack in scores.robust
                        if name == source == model.name},
                predicted=scores.predicted.get((model.name, CLEAN)),
            )  # fmt: skip
            state.remember(name, checked)
            return checked

        of_model = result.attempt(f"alarms on {model.name}", check) or []
        broken = result.sequential[model.name].broken() if model.name in result.sequential else {}
        of_scores = alarms.check_scores(scores, model.name, broken, predicted=predictions(result))
        of_curve = [] if result.curve is None else alarms.check_curve(result.curve, model.name, len(labels))
        state.flush()
        result.alarms[model.name] = [*of_model, *of_scores, *of_curve]

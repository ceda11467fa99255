"""Runs a whole evaluation: attacks made on every model, sequential attacks, the curve, and the alarms."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from robust_gan import attacks as attacks_lib
from robust_gan import interop, networks, parallel, threat_model
from robust_gan.certification import Smoothed
from robust_gan.config import ThreatConfig, check_epsilon
from robust_gan.data.array_files import check_images, to_unit
from robust_gan.errors import UserError, one_line
from robust_gan.evaluation import alarms, checks, corruptions
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
from robust_gan.evaluation.external import ExternalImages, check_external
from robust_gan.evaluation.models import (
    CLEAN,
    GENERATOR,
    RETRAINED,
    EvaluatedModel,
    EvaluationData,
    Model,
    attack_names,
)
from robust_gan.evaluation.requirements import AUTOATTACK, WORST_CASE, Requirement, parse_requirements
from robust_gan.evaluation.sequential import AttackResult, evaluate_sequential
from robust_gan.evaluation.sharded_model import ShardedModel, shard_models
from robust_gan.evaluation.state import EvaluationState, Rows
from robust_gan.evaluation.suites import CORRUPTIONS, get_suite
from robust_gan.evaluation.traces import trace_steps
from robust_gan.evaluation.transfer import Scores, evaluate_transfer, num_attacked
from robust_gan.types import Attack, LogitsFn, ThreatModel

_PLOTTED, _PLOTTED_BY_QUERIES = "pgd40", "square"


class AttackPlan(NamedTuple):
    """The attacks of an evaluation.

    Attributes:
        names: Made on every model and tried on every target.
        sequential: Made on each target, each on the images that the ones before left robust.
        functions: The attacks among them that are functions of the user's own, by name.
        plotted: The attack of the plots and the curve.
        requirements: The accuracies that must be reached.
        corrupted: Whether common corruptions are scored.
    """

    names: tuple[str, ...]
    sequential: tuple[str, ...]
    functions: dict[str, Attack]
    plotted: str
    requirements: tuple[Requirement, ...] = ()
    corrupted: bool = False

    def pick(self, names: Sequence[str]) -> list[str | tuple[str, Attack]]:
        """Returns attacks as `evaluate_transfer` and `evaluate_sequential` take them."""
        return [(name, self.functions[name]) if name in self.functions else name for name in names]


def plan_attacks(config: EvaluationConfig, functions: Mapping[str, Attack] = MappingProxyType({})) -> AttackPlan:
    """Returns the attacks of a configuration.

    Args:
        config: The configuration.
        functions: Attacks of the user's own by name; those that the configuration does not name are made on every
            model.

    Raises:
        UserError: A name or the suite is unknown, or an output needs other attacks.

    >>> plan_attacks(EvaluationConfig(suite="autoattack")).sequential
    ('apgd_ce', 'apgd_t', 'fab_t', 'square')
    """
    given = [None if names is None else ",".join(names) for names in (config.attacks, config.sequential)]
    suite = get_suite(config.suite, *given)
    lists = [text.split(",") for text in suite]
    check_methods(config)
    known = [attack_names([name for name in names if name not in functions]) for names in lists]
    if functions and not config.suite and config.attacks is None:
        lists[0], known[0] = [], ()
    names, sequential = (
        tuple(name for name in listed if name in functions or name in kept)
        for listed, kept in zip(([name.strip() for name in names] for names in lists), known, strict=True)
    )
    names += tuple(name for name in functions if name not in (*names, *sequential))
    if "transfer" in config.plots and not names:
        raise UserError("transfer.png shows an attack that is made on every model: name one with --attacks")
    if config.save_adversarial and not sequential:
        raise UserError(
            "adversarial.npz holds the adversarial images of a sequential evaluation: give --suite=autoattack or "
            "--sequential"
        )
    on_pixels = [name for name in names if name not in (GENERATOR, *RETRAINED, *functions)]
    used = {name: functions[name] for name in functions if name in (*names, *sequential)}
    corrupted = config.suite == CORRUPTIONS
    requirements = parse_requirements(config.require, names, sequential, corrupted=corrupted)
    plotted = on_pixels[-1] if on_pixels else _PLOTTED
    return AttackPlan(names, sequential, used, plotted, tuple(requirements), corrupted)


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


@dataclasses.dataclass
class SequentialResult:
    """The result of the sequential evaluation of one model.

    Attributes:
        robust: bool `[N]`, which images are robust under all attacks.
        attacks: An `AttackResult` for `clean` and each attack.
        broken_by: int16 `[N]`, the index of the result that broke each image; -1 where it is robust.
        predicted: int32 `[N]`, the class that each image is classified as after the attacks.
        adversarial: The adversarial images, where they were asked for.
    """

    robust: np.ndarray
    attacks: list[AttackResult]
    broken_by: np.ndarray
    predicted: np.ndarray
    adversarial: Rows | None = None

    def broken(self) -> dict[str, np.ndarray]:
        """Returns for each attack, `clean` included, which images it broke, bool `[N]`."""
        return {result.attack: self.broken_by == index for index, result in enumerate(self.attacks)}


@dataclasses.dataclass
class EvaluationResult:
    """The result of an evaluation.

    Attributes:
        config: The configuration.
        subject: The models, images, threat model and attacks.
        scores: Clean accuracy, and robust accuracy under the attacks made on every model, image by image.
        sequential: The result of the sequential evaluation of each target; empty where there was none.
        alarms: For each target.
        certified: For each target which images are certified, bool `[N]`; empty where `config.certify` has no bounds.
        smoothed: For each target the predictions of its smoothed classifier, where `config.certify` has smoothing.
        corrupted: For each target and common corruption which images are classified correctly at each severity, bool
            `[5, N]`; empty without the suite `corruptions`.
        curve: Robust accuracy against epsilon, where it was asked for.
        traces: The steps of the attack of the plots, of `trace_steps`, where they were asked for.
        notes: Sentences on what could not be computed or written.
    """

    config: EvaluationConfig
    subject: Subject
    scores: Scores
    sequential: dict[str, SequentialResult] = dataclasses.field(default_factory=dict)
    alarms: dict[str, list[Alarm]] = dataclasses.field(default_factory=dict)
    certified: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    smoothed: dict[str, Smoothed] = dataclasses.field(default_factory=dict)
    corrupted: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    curve: Curve | None = None
    traces: dict[str, Any] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def clean_accuracy(self, target: str) -> float:
        """Returns the accuracy of a target on clean images."""
        return self.scores.clean_accuracy(target)

    def robust_accuracy(self, target: str) -> float:
        """Returns the robust accuracy of a target: the worst case, image by image, over all white-box attacks."""
        return float(self.robust(target).mean())

    def robust(self, target: str) -> np.ndarray:
        """Returns the images that are classified correctly clean and under all white-box attacks, bool `[N]`."""
        also = self.sequential[target].robust if target in self.sequential else None
        found = self.scores.robust_images(target, [target], also=also)
        return self.scores.clean[self.scores.targets.index(target)] if found is None else found

    def requirements(self) -> list[Requirement]:
        """Returns what was measured of each accuracy that `config.require` names, for each target."""
        return [
            required._replace(target=target, found=self._find(target, required.accuracy))
            for required in self.subject.attacks.requirements
            for target in self.scores.targets
        ]

    def _find(self, target: str, accuracy: str) -> float | None:
        if accuracy == CLEAN:
            return self.clean_accuracy(target)
        if accuracy == CORRUPTIONS:
            return float(np.mean([correct.mean() for correct in self.corrupted[target].values()]))
        if accuracy == WORST_CASE:
            return self.robust_accuracy(target)
        if accuracy in self.subject.attacks.names:
            return self.scores.robust_accuracy(target, [target], [accuracy])
        results = self.sequential[target].attacks
        found = [result for result in results if accuracy in (AUTOATTACK, result.attack)]
        return found[-1].robust_accuracy if found else None

    def attempt(self, what: str, make: Callable[[], Any]) -> Any:
        """Returns the result of a function; where it fails, adds a note and returns None."""
        try:
            return make()
        except Exception as error:  # A model is the user's own program, and a report is not lost for a plot.
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
            self.notes.append(f"{what}: not made: {reason.rstrip('.')}.")
            return None


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
        attacks = _fit_classes(attacks, model.name, classes)
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


def _fit_classes(attacks: AttackPlan, model: str, classes: int) -> AttackPlan:
    """Returns attacks that a number of classes allows: AutoAttack's standard version becomes that for few classes."""
    standard, few = (attacks_lib.VERSIONS[version] for version in ("standard", "few_classes"))
    if classes < 4 and attacks.sequential[: len(standard)] == standard:
        attacks = attacks._replace(sequential=few + attacks.sequential[len(standard) :])
    for name in sorted({*attacks.names, *attacks.sequential} - set(attacks.functions)):
        if classes < (needed := attacks_lib.classes_needed(name)):
            raise UserError(
                f"{name} needs a classifier of at least {needed} classes, but {model} has {classes}: "
                "leave it out with --attacks or --sequential"
            )
    return attacks


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


def predictions(result: EvaluationResult) -> dict[tuple[str, str], np.ndarray]:
    """Returns the predicted classes `[N]` for each (target, attack), `clean` and `SEQUENTIAL` included."""
    sequential = {(name, SEQUENTIAL): found.predicted for name, found in result.sequential.items()}
    return dict(result.scores.predicted) | sequential


SEQUENTIAL = "sequential attacks"
"""Key of the predictions after a sequential evaluation."""

"""The host loop: data in, steps dispatched, metrics and checkpoints out. No flags, no arithmetic of the game."""

import contextlib
import functools
import importlib.util
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from robust_gan import checkpoint, data, evaluation, game, networks, parallel, threat_model, workdir
from robust_gan.config import Config, validate
from robust_gan.data import augmentation, order
from robust_gan.errors import DataError, UserError
from robust_gan.game import Game, TrainState
from robust_gan.networks import inference
from robust_gan.types import Batch

VALIDATION_SEED = 0
"""The attacks of every validation draw the same numbers, so that steps are compared on equal terms."""


class NotFiniteError(RuntimeError):
    """A loss became NaN or infinite; the checkpoints before it are intact."""


class Result(NamedTuple):
    """How a run ended.

    Attributes:
        state: The last state, on the host.
        step: Steps taken.
        finished: False where a signal ended it early.
        validation: The figures of the last validation.
    """

    state: TrainState
    step: int
    finished: bool
    validation: dict[str, float]


def train(
    config: Config,
    directory: str | os.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
    tensorboard: bool = False,
    say: Callable[[str], Any] = print,
) -> Result:
    """Trains, or goes on training, until `config.num_steps`.

    Writes to the folder: `config.json`; `metrics.jsonl`, a line every `log_every` steps with the metrics of that step
    and one for each validation; `timing.jsonl`; and `checkpoints/`, the newest and the best. The best is the one of
    the highest validation robust accuracy under PGD (for adversary `none`, where that is near 0 throughout, of the
    highest clean accuracy). SIGTERM and Ctrl-C finish the step, save and return; a second signal leaves at once.

    Args:
        config: The run.
        directory: Its folder; one that holds a stopped run of the same configuration is continued.
        devices: Where; None for all of the best platform.
        progress: A bar with rate and remaining time; None for only where stderr is a terminal.
        tensorboard: Write scalars for TensorBoard too (needs the extra `tensorboard`).
        say: Called with a sentence where there is something to say.

    Returns:
        How the run ended.

    Raises:
        UserError: The configuration, the data or the folder cannot be right; nothing is written then.
        NotFiniteError: A loss became NaN or infinite.

    Guarantees:
        `test_stopped_and_resumed_equals_undisturbed`.
    """
    validate(config)
    devices = parallel.find_devices() if devices is None else devices
    parallel.check_batch_size(config.batch_size, devices)
    if tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard needs tensorboardX: pip install 'robust_gan[tensorboard]'")
    # Before the data, which take long to decode.
    workdir.check(directory, config)
    _check_networks(config)
    dataset = load_data(config)
    info = checkpoint.DataInfo(
        dataset.name, dataset.train.images.shape[1:], dataset.num_classes, tuple(dataset.label_names)
    )
    played = game.from_config(config, num_classes=info.num_classes, channels=info.image_shape[-1])
    state = initial_state(config, played, info.image_shape)

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(workdir.claim(directory, config))
        writer = checkpoint.Writer(folder, config, info)
        stack.enter_context(_closed(writer.close))
        restored = writer.restore_latest(state, warn=say)
        start = 0
        if restored is not None:
            state, start = restored
            say(f"going on from step {start} of {folder}")
        metrics = workdir.Lines(folder / workdir.METRICS, start)
        timing = workdir.Lines(folder / workdir.TIMING, start)
        stack.enter_context(_closed(metrics.close))
        stack.enter_context(_closed(timing.close))
        board = _tensorboard(folder) if tensorboard else None
        if board is not None:
            stack.enter_context(_closed(board.close))
        stopped = stack.enter_context(_signals())
        progress = sys.stderr.isatty() if progress is None else progress
        bar = stack.enter_context(
            tqdm.tqdm(total=config.num_steps, initial=min(start, config.num_steps), unit="step", disable=not progress)
        )

        def record(step: int, values: dict[str, float]) -> None:
            metrics.write(step, values)
            if board is not None:
                for name, value in values.items():
                    board.add_scalar(name, value, step)

        step_fn = parallel.map_step(functools.partial(training_step, played, config), devices)
        arrays = {"images": dataset.train.images, "labels": dataset.train.labels}
        state, arrays = parallel.replicate((state, arrays), devices)
        validation: dict[str, float] = {}
        began, began_step, step = time.perf_counter(), start, start
        while step < config.num_steps and not stopped:
            state, measured = step_fn(state, arrays, batch_positions(config, step, len(dataset.train.labels), devices))
            step += 1
            bar.update()
            if step % config.log_every == 0 or step == config.num_steps:
                values = {f"train/{name}": float(value) for name, value in jax.device_get(measured).items()}
                _check_finite(values, step, folder)
                record(step, values)
                seconds = time.perf_counter() - began
                rate = (step - began_step) * config.batch_size / seconds
                timing.write(step, {"seconds": round(seconds, 3), "images_per_second": round(rate, 1)})
                began, began_step = time.perf_counter(), step
                bar.set_postfix_str(_postfix(values | validation))
            if step % config.validation.every == 0 or step == config.num_steps:
                validation = validate_state(config, dataset, state, info, devices)
                record(step, validation)
                writer.save(step, state, validation | {checkpoint.SELECTION: _selection(config, validation)})
                bar.set_postfix_str(_postfix(validation))
                began, began_step = time.perf_counter(), step
        if start >= config.num_steps:
            say(f"{folder} stands at step {start} of {config.num_steps}: nothing is left to do")
        if step < config.num_steps:
            # Saved without a validation: selecting it as the best would mean choosing blindly.
            writer.save(step, state, {checkpoint.SELECTION: -1.0})
            say(f"stopped at step {step} and saved; the same command goes on from there")
        return Result(jax.device_get(_without_key(state)), step, step >= config.num_steps, validation)


def load_data(config: Config) -> data.Dataset:
    """Loads and checks the data of a configuration.

    Raises:
        DataError: They are not prepared, damaged, or do not fit the configuration.
    """
    dataset = data.from_config(config.data)
    for split in (dataset.train, dataset.validation, dataset.test):
        evaluation.check_images(split.images, split.labels, dataset.num_classes)
    if config.validation.size > len(dataset.validation.labels):
        raise DataError(
            f"validation.size is {config.validation.size}, but data.validation_size holds out only "
            f"{len(dataset.validation.labels)} images: lower the one or raise the other"
        )
    return dataset


def initial_state(config: Config, played: Game, image_shape: Sequence[int]) -> TrainState:
    """Starts the game of a configuration at step 0.

    Raises:
        UserError: The networks cannot take images of this shape.
    """
    images = jnp.zeros((2, *image_shape), jnp.float32)
    try:
        return jax.jit(functools.partial(game.init, played))(jax.random.key(config.seed), images)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the networks {config.classifier.network} and {config.adversary.generator.network} cannot take images of "
            f"shape {tuple(image_shape)}: {str(error).splitlines()[0]}"
        ) from error


def training_step(
    played: Game, config: Config, state: TrainState, arrays: dict[str, jax.Array], positions: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Fetches, augments and plays one step, on one device of the axis `parallel.AXIS`.

    Args:
        played: The game.
        config: The run.
        state: The state before.
        arrays: The whole training split: uint8 `images` `[N, H, W, C]` and int32 `labels` `[N]`.
        positions: int32 `[M, B]`: M minibatches; the adversary moves on all, the classifier on the last.

    Returns:
        The state after, and scalar metrics.
    """
    augment_key = game.step_keys(state).augment
    minibatches = []
    for index in range(positions.shape[0]):
        keys = game.image_keys(jax.random.fold_in(augment_key, index), positions.shape[1], parallel.AXIS)
        images = augmentation.to_unit(arrays["images"][positions[index]])
        images = augmentation.augment(config.data.augmentation, keys, images, config.data.padding)
        minibatches.append(Batch(images, arrays["labels"][positions[index]]))
    *first, last = minibatches
    earlier = jax.tree.map(lambda *leaves: jnp.stack(leaves), *first) if first else None
    return game.train_step(played, state, last, earlier=earlier, axis_name=parallel.AXIS)


def batch_positions(config: Config, step: int, num_images: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns which images each device takes in a step: int32 `[D, M, B / D]`, a function of (seed, step)."""
    count = config.adversary.generator.minibatches if config.adversary.name == "generator" else 1
    rows = [
        order.batch_indices(config.seed, step * count + index, config.batch_size, num_images) for index in range(count)
    ]
    return parallel.split(np.stack(rows), devices, axis=1)


def validate_state(
    config: Config, dataset: data.Dataset, state: TrainState, info: checkpoint.DataInfo, devices: Sequence[jax.Device]
) -> dict[str, float]:
    """Scores the classifier of a state on the validation split: clean, FGSM, PGD and its generator.

    Returns:
        `validation/clean_accuracy`, `validation/fgsm`, `validation/pgdN` and, with a generator,
        `validation/generator`, as shares of the images.
    """
    count = config.validation.size or len(dataset.validation.labels)
    model = state_model(config, state, info)
    names = ("fgsm", f"pgd{config.validation.pgd_steps}", *([evaluation.GENERATOR] if model.noise_fn else []))
    scores = evaluation.evaluate(
        [model], dataset.validation.images[:count], dataset.validation.labels[:count],
        threat_model.from_config(config.threat), attacks=names, batch_size=config.validation.batch_size,
        seed=VALIDATION_SEED, devices=devices,
    )  # fmt: skip
    accuracies = {f"validation/{name}": scores.robust_accuracy(model.name, [model.name], [name]) for name in names}
    return {"validation/clean_accuracy": scores.clean_accuracy(model.name), **accuracies}


def state_model(config: Config, state: TrainState, info: checkpoint.DataInfo) -> evaluation.Model:
    """Returns the classifier (and generator) of a state, as they evaluate: with running BatchNorm statistics."""
    classifier, generator = state.classifier, state.adversary
    noise_fn = None
    if config.adversary.name == "generator":
        apply = inference.generate(config.adversary.generator.network, info.image_shape[-1])
        noise_fn = jax.tree_util.Partial(apply, generator.params, generator.batch_stats)
    apply = inference.classify(config.classifier.network, info.num_classes)
    logits_fn = jax.tree_util.Partial(apply, classifier.params, classifier.batch_stats)
    return evaluation.Model("classifier", logits_fn, noise_fn)


def _check_networks(config: Config) -> None:
    """Refuses names of networks that there are not; how many classes and channels they have is not known yet."""
    networks.build_classifier(config.classifier.network, 1)
    if config.adversary.name == "generator":
        networks.build_generator(config.adversary.generator.network, 1)


def _selection(config: Config, validation: dict[str, float]) -> float:
    if config.adversary.name == "none":
        return validation["validation/clean_accuracy"]
    return validation[f"validation/pgd{config.validation.pgd_steps}"]


def _check_finite(values: dict[str, float], step: int, folder) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            player = "generator" if "generator" in name else "classifier"
            raise NotFiniteError(
                f"{name} of the {player} is {value} at step {step}: lower its learning rate; the checkpoints in "
                f"{folder} are of before"
            )


def _postfix(values: dict[str, float]) -> str:
    shown = ("train/clean_loss", "train/adversarial_loss", "validation/clean_accuracy")
    pgd = [name for name in values if name.startswith("validation/pgd")]
    return " ".join(f"{name.split('/')[-1]} {values[name]:.3f}" for name in (*shown, *pgd) if name in values)


def _without_key(state: TrainState) -> TrainState:
    return state._replace(key=jax.random.key_data(state.key))


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the first SIGTERM or SIGINT, so that the loop can end its step; a second one acts as ever."""
    received: list[int] = []
    try:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def handle(number, frame):
            received.append(number)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        for number in before:
            signal.signal(number, handle)
    except ValueError:  # Only the main thread may set handlers; elsewhere the caller handles signals.
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _closed(close: Callable[[], None]) -> Iterator[None]:
    """Closes at the end; where that fails after a failure, the first one goes on, with the second as a note."""
    try:
        yield
    except BaseException as first:
        try:
            close()
        except Exception as second:
            first.add_note(f"and then, in closing: {second}")
        raise
    close()


def _tensorboard(folder) -> Any:
    import tensorboardX

    return tensorboardX.SummaryWriter(os.fspath(folder / "tensorboard"))

"""Dry run: shapes, parameters, memory and time of a run, measured with a few steps in memory."""

import functools
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax

from robust_gan import adversaries, checkpoint, networks, parallel
from robust_gan.config import Config
from robust_gan.reporting import progress, tables
from robust_gan.storage import leaves
from robust_gan.training import evaluator, multi_step, nonfinite, setup
from robust_gan.types import PyTree

_MAX_SECONDS = 3.0
_MAX_STEPS = 20


class Player(NamedTuple):
    """A network of the game.

    Attributes:
        role: `classifier` or `generator`.
        network: Its name.
        input_shape: On one device.
        output_shape: On one device.
        params: Its parameters.
    """

    role: str
    network: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    params: PyTree


class DryRun(NamedTuple):
    """The estimate for a run.

    Attributes:
        data: Name, shape of an image, number of classes.
        sizes: Training, validation and test images.
        batch_size: Images of a batch, over all devices.
        num_devices: Number of devices.
        players: The networks.
        memory: Bytes on each device during a step, by purpose, without validation.
        num_steps: Steps of the run.
        step_seconds: Seconds of a step.
        num_validations: Validations of the run.
        validation_seconds: Seconds of a validation.
        compile_seconds: Seconds of compilation.
    """

    data: checkpoint.DataInfo
    sizes: tuple[int, int, int]
    batch_size: int
    num_devices: int
    players: list[Player]
    memory: dict[str, int]
    num_steps: int
    step_seconds: float
    num_validations: int
    validation_seconds: float
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of the run, without the checkpoints, which are written in the background."""
        steps, validations = self.num_steps * self.step_seconds, self.num_validations * self.validation_seconds
        return self.compile_seconds + steps + validations


def measure(config: Config, devices: Sequence[jax.Device] | None = None, platform: str = "") -> DryRun:
    """Runs a few steps and validates one batch, and writes nothing.

    Args:
        config: The run.
        devices: As `training.train`.
        platform: As `training.train`.

    Raises:
        UserError: As `training.train`.
    """
    run = setup.build(config, devices, platform)
    devices = run.devices
    shared = len(devices) > 1 and devices[0].platform == "cpu"  # See `parallel.aligned`.
    memory = {
        "both players and their optimizer states": _num_bytes(run.state),
        f"training images{', once for all devices' if shared else ''}": _num_bytes(run.arrays),
    }
    players = _players(run)
    loop_state, arrays = parallel.replicate(
        (multi_step.LoopState(run.state, nonfinite.init_state()), run.arrays), devices
    )
    max_steps = multi_step.steps_per_call(config, devices[0].platform, run.streamed)
    indices = functools.partial(
        multi_step.batch_indices,
        config,
        max_steps=max_steps,
        num_images=len(run.dataset.train.labels),
        devices=devices,
        streamed=run.streamed,
    )
    first, started = indices(step=0, num_steps=1), time.perf_counter()
    steps = functools.partial(multi_step.run_steps, run.game, config, "stop")
    run_steps = parallel.compile_step(steps, devices, loop_state, arrays, first)
    compile_seconds = time.perf_counter() - started
    if (analysis := run_steps.memory_analysis()) is not None:  # Not every backend has one.
        memory["temporary arrays of a step"] = analysis.temp_size_in_bytes
    loop_state, _ = jax.block_until_ready(run_steps(loop_state, arrays, first))
    taken, started = 0, time.perf_counter()
    while taken < _MAX_STEPS and time.perf_counter() - started < _MAX_SECONDS:
        loop_state, _ = jax.block_until_ready(
            run_steps(loop_state, arrays, indices(step=1 + taken, num_steps=max_steps))
        )
        taken += max_steps
    step_seconds = (time.perf_counter() - started) / taken
    first_seconds, batch_seconds, num_batches = _time_validation(run, loop_state)
    return DryRun(
        data=run.info,
        sizes=(len(run.dataset.train.labels), len(run.dataset.validation.labels), len(run.dataset.test.labels)),
        batch_size=config.batch_size,
        num_devices=len(devices),
        players=players,
        memory=memory,
        num_steps=config.num_steps,
        step_seconds=step_seconds,
        num_validations=-(-config.num_steps // config.validation.every),
        validation_seconds=batch_seconds * num_batches,
        compile_seconds=compile_seconds + first_seconds - batch_seconds,
    )


def format_dry_run(result: DryRun) -> str:
    """Returns an estimate as text."""
    info, parts = result.data, []
    train, validation, test = result.sizes
    share = result.batch_size // result.num_devices
    parts.append(
        f"{info.name}: images {_shape(info.image_shape)} of {info.num_classes} classes, {train:,} for training, "
        f"{validation:,} for validation, {test:,} for test; batches of {result.batch_size}"
        + (f", {share} on each of {result.num_devices} devices" if result.num_devices > 1 else "")
    )
    for player in result.players:
        parts.append(
            f"{player.role} {player.network}: {_shape(player.input_shape)} -> {_shape(player.output_shape)}, "
            f"{networks.count_params(player.params):,} parameters\n"
            f"{tables.markdown(['layer', 'arrays', 'parameters'], _layers(player.params))}"
        )
    lines = [f"  {size / 1e6:10.1f} MB  {purpose}" for purpose, size in result.memory.items()]
    lines.append(f"  {sum(result.memory.values()) / 1e6:10.1f} MB  in total, without validation")
    parts.append("\n".join(["memory of each device:", *lines]))
    parts.append(
        f"time: {result.compile_seconds:.0f} s to compile, {result.num_steps:,} steps of "
        f"{1000 * result.step_seconds:.3g} ms, {result.num_validations} validations of "
        f"{result.validation_seconds:.2g} s: about {progress.format_duration(result.seconds)} under the present load"
    )
    return "\n\n".join(parts)


def _players(run: setup.Setup) -> list[Player]:
    config, info = run.config, run.info
    images = (config.batch_size // len(run.devices), *info.image_shape)
    logits, generator = (images[0], info.num_classes), config.adversary.generator
    players = [Player("classifier", config.classifier.network, images, logits, run.state.classifier.params)]
    if config.adversary.name == "generator":
        channels = adversaries.get_design(generator).channels(info.image_shape[-1], info.num_classes)
        params = run.state.adversary.params
        players.append(Player("generator", generator.network, (*images[:-1], channels), images, params))
    return players


def _layers(params: PyTree) -> list[list[str]]:
    """Returns a row for each layer; `nn.tabulate` needs a flax module, and a network may be any pair of functions."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, leaf in leaves.named(params).items():
        layer, _, array = name.rpartition("/")
        layers.setdefault(layer, {})[array] = leaf.shape
    return [
        [layer, ", ".join(f"{array} {_shape(shape)}" for array, shape in arrays.items()),
         f"{sum(map(math.prod, arrays.values())):,}"] for layer, arrays in layers.items()
    ]  # fmt: skip


def _time_validation(run: setup.Setup, loop_state: multi_step.LoopState) -> tuple[float, float, int]:
    """Validates one batch twice; returns the seconds of both, and the number of batches of a validation."""
    size = run.config.validation.size or len(run.dataset.validation.labels)
    batch, seconds = min(size, run.config.validation.batch_size), []
    for _ in range(2):
        started = time.perf_counter()
        evaluator.Evaluator(run, batch).evaluate(loop_state.train_state)
        seconds.append(time.perf_counter() - started)
    return seconds[0], min(seconds), -(-size // batch)


def _num_bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"

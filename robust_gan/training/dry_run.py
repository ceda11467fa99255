"""What a run will be, before it is one: shapes, parameters, memory and time, by playing a few steps in memory."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from robust_gan import adversaries, checkpoint, data, networks, parallel
from robust_gan import game as game_lib
from robust_gan.config import Config, validate
from robust_gan.reporting import tables
from robust_gan.storage import leaves
from robust_gan.training import evaluator, multi_step, nonfinite, setup
from robust_gan.types import PyTree

_ENOUGH_SECONDS = 3.0
_ENOUGH_STEPS = 20


class Player(NamedTuple):
    """A network of the game.

    Attributes:
        role: `classifier` or `generator`.
        network: Its name.
        takes: Shape of what it takes, of one device.
        gives: Shape of what it gives.
        params: Its parameters.
    """

    role: str
    network: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    params: PyTree


class Forecast(NamedTuple):
    """What `of` found out.

    Attributes:
        data: Name, shape of an image, number of classes.
        sizes: Images for training, validation and test.
        batch_size: Images in a minibatch, over all devices.
        num_devices: How many.
        players: The networks.
        memory: Bytes on each device, by what takes them, while a step runs; validation is left out.
        num_steps: Steps of the run.
        step_seconds: Of a step.
        validations: How many.
        validation_seconds: Of one.
        compile_seconds: Of what is compiled once.
    """

    data: checkpoint.DataInfo
    sizes: tuple[int, int, int]
    batch_size: int
    num_devices: int
    players: list[Player]
    memory: dict[str, int]
    num_steps: int
    step_seconds: float
    validations: int
    validation_seconds: float
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """Of the whole run; the checkpoints, which are written meanwhile, are left out."""
        return (
            self.compile_seconds
            + self.num_steps * self.step_seconds
            + self.validations * self.validation_seconds
        )  # fmt: skip


def of(config: Config, devices: Sequence[jax.Device]) -> Forecast:
    """Plays some steps and validates a batch, and says what a run of a configuration takes; no run is written.

    Args:
        config: The run.
        devices: Where.

    Raises:
        UserError: As `training.train`.
    """
    validate(config)
    parallel.check_batch_size(config.batch_size, devices)
    setup.check_networks(config)
    dataset = setup.load_data(config)
    info, game, state = setup.build(config, dataset)
    arrays = {"images": dataset.train.images, "labels": dataset.train.labels}
    memory = {"both players, with what their optimisers remember": _bytes(state), "training images": _bytes(arrays)}
    players = _players(config, info, state, config.batch_size // len(devices))

    carried, arrays = parallel.replicate((multi_step.LoopState(state, nonfinite.begin()), arrays), devices)
    most = multi_step.steps_per_call(config, devices[0].platform)
    orders = functools.partial(multi_step.orders, config, most=most, num_images=len(arrays["labels"]), devices=devices)
    began = time.perf_counter()
    play = parallel.compile_step(
        functools.partial(multi_step.run_steps, game, config, "stop"), devices, carried, arrays, orders(step=0, count=1)
    )
    compile_seconds = time.perf_counter() - began
    if (analysis := play.memory_analysis()) is not None:  # Not every backend has one.
        memory["work of a step"] = analysis.temp_size_in_bytes
    carried, _ = jax.block_until_ready(play(carried, arrays, orders(step=0, count=1)))
    taken, began = 0, time.perf_counter()
    while taken < _ENOUGH_STEPS and time.perf_counter() - began < _ENOUGH_SECONDS:
        carried, _ = jax.block_until_ready(play(carried, arrays, orders(step=1 + taken, count=most)))
        taken += most
    step_seconds = (time.perf_counter() - began) / taken
    first, again, batches = _validate(config, dataset, carried.state, info, devices)
    return Forecast(
        data=info,
        sizes=(len(dataset.train.labels), len(dataset.validation.labels), len(dataset.test.labels)),
        batch_size=config.batch_size,
        num_devices=len(devices),
        players=players,
        memory=memory,
        num_steps=config.num_steps,
        step_seconds=step_seconds,
        validations=-(-config.num_steps // config.validation.every),
        validation_seconds=again * batches,
        compile_seconds=compile_seconds + first - again,
    )


def told(forecast: Forecast) -> str:
    """Returns a forecast as text."""
    info, parts = forecast.data, []
    training, held_out, test = forecast.sizes
    share = forecast.batch_size // forecast.num_devices
    parts.append(
        f"{info.name}: images {_shape(info.image_shape)} of {info.num_classes} classes, {training:,} for training, "
        f"{held_out:,} for validation, {test:,} for test; minibatches of {forecast.batch_size}"
        + (f", {share} on each of {forecast.num_devices} devices" if forecast.num_devices > 1 else "")
    )
    for player in forecast.players:
        parts.append(
            f"{player.role} {player.network}: {_shape(player.takes)} -> {_shape(player.gives)}, "
            f"{networks.count_params(player.params):,} parameters\n"
            f"{tables.markdown(['layer', 'arrays', 'parameters'], _layers(player.params))}"
        )
    lines = [f"  {size / 1e6:10.1f} MB  {what}" for what, size in forecast.memory.items()]
    lines.append(f"  {sum(forecast.memory.values()) / 1e6:10.1f} MB  in all, validation left out")
    parts.append("\n".join(["memory of each device:", *lines]))
    parts.append(
        f"time: {forecast.compile_seconds:.0f} s to compile, {forecast.num_steps:,} steps of "
        f"{1000 * forecast.step_seconds:.3g} ms, {forecast.validations} validations of "
        f"{forecast.validation_seconds:.2g} s: about {_duration(forecast.seconds)} where the machine "
        "is as busy as now"
    )
    return "\n\n".join(parts)


def _players(config: Config, info: checkpoint.DataInfo, state: game_lib.TrainState, batch: int) -> list[Player]:
    images, generator = (batch, *info.image_shape), config.adversary.generator
    players = [
        Player("classifier", config.classifier.network, images, (batch, info.num_classes), state.classifier.params)
    ]
    if config.adversary.name == "generator":
        seen = adversaries.get_design(generator).channels(info.image_shape[-1], info.num_classes)
        players.append(Player("generator", generator.network, (*images[:-1], seen), images, state.adversary.params))
    return players


def _layers(params: PyTree) -> list[list[str]]:
    """Returns a row for each layer; `nn.tabulate` wants a flax module, and a network may be any pair of functions."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, leaf in leaves.named(params).items():
        layer, _, array = name.rpartition("/")
        layers.setdefault(layer, {})[array] = leaf.shape
    return [
        [layer, ", ".join(f"{array} {_shape(shape)}" for array, shape in arrays.items()),
         f"{sum(map(math.prod, arrays.values())):,}"] for layer, arrays in layers.items()
    ]  # fmt: skip


def _validate(
    config: Config, dataset: data.Dataset, state: game_lib.TrainState, info: checkpoint.DataInfo, devices: Sequence[Any]
) -> tuple[float, float, int]:
    """Validates one batch twice; returns the seconds of both, and of how many batches a validation is."""
    size = config.validation.size or len(dataset.validation.labels)
    batch = min(size, config.validation.batch_size)
    once = dataclasses.replace(config, validation=dataclasses.replace(config.validation, size=batch))
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        evaluator.validate(once, dataset, state, info, devices)
        seconds.append(time.perf_counter() - began)
    return seconds[0], min(seconds), -(-size // batch)


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _duration(seconds: float) -> str:
    """Writes a time as a person would.

    >>> _duration(42.3), _duration(600), _duration(30_000), _duration(400_000)
    ('42 s', '10 min', '8.3 h', '4.6 days')
    """
    for size, unit in ((86400, "days"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"

"""The start of a run: its data, its frozen ensemble members, and the state at step 0."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import adversaries, checkpoint, data, evaluation, networks, parallel, prng
from robust_gan import game as game_lib
from robust_gan.config import Config, check_epsilon, imports, validate
from robust_gan.config.imports import is_function_name
from robust_gan.errors import DataError, UserError, one_line
from robust_gan.game import Game, TrainState
from robust_gan.training import multi_step
from robust_gan.types import LogitsFn

_PIXELS_PER_CORE = 25_000
"""Of a batch: two cores were faster than one with 50,000 pixels each, and slower with 2,000 (docs/performance.md)."""


class Setup(NamedTuple):
    """A run before its first step.

    Attributes:
        config: The configuration.
        devices: The devices of all processes.
        dataset: The data.
        info: Name, shapes and classes of the data.
        game: The game.
        state: The state at step 0.
    """

    config: Config
    devices: Sequence[jax.Device]
    dataset: data.Dataset
    info: checkpoint.DataInfo
    game: Game
    state: TrainState

    @property
    def arrays(self) -> dict[str, Any]:
        """The training split: `multi_step.PackedImages` and int32 `labels` `[N]`; empty where it is `streamed`."""
        images, labels = self.dataset.train.images, self.dataset.train.labels
        if isinstance(images, data.StreamedImages):
            return {}
        return {"images": multi_step.PackedImages(images.reshape(len(images), -1), images.shape[1:]), "labels": labels}

    @property
    def streamed(self) -> data.Split | None:
        """The training split where its images are read from a file batch by batch; otherwise None."""
        return self.dataset.train if isinstance(self.dataset.train.images, data.StreamedImages) else None


def check(config: Config, devices: Sequence[jax.Device] | None) -> None:
    """Checks a configuration before its data are loaded; without devices, not whether they can share a batch.

    Raises:
        UserError: A field is invalid, a network is unknown, or the devices cannot share a batch evenly.
    """
    validate(config)
    get_validation_attacks(config)
    if devices is not None:
        parallel.check_batch_size(config.batch_size, devices)
    names = {"adversary": config.adversary.name, "classifier": config.classifier.network}
    if config.adversary.name == "generator":
        names["generator"] = config.adversary.generator.network
    for kind, name in names.items():
        if is_function_name(name):
            imports.import_function(name, kind)
        elif kind == "classifier":  # The numbers of classes and channels are not known yet.
            networks.build_classifier(name, 1)
        elif kind == "generator":
            networks.build_generator(name, 1)


def get_validation_attacks(config: Config) -> tuple[str, ...]:
    """Returns the names of `validation.attacks`.

    Raises:
        UserError: An attack is unknown, named twice, or not made on the classifier alone.

    >>> from robust_gan.config import ValidationConfig
    >>> get_validation_attacks(Config(validation=ValidationConfig(attacks="margin_pgd10,square500")))
    ('margin_pgd10', 'square500')
    """
    names = evaluation.attack_names(config.validation.attacks)
    if trained := [name for name in names if "generator" in name]:
        raise UserError(f"validation.attacks must be made on the classifier alone, which {trained[0]} is not")
    return names


def check_functions(config: Config, game: Game, info: checkpoint.DataInfo) -> None:
    """Traces the networks and the adversary that are functions of the user's.

    Raises:
        UserError: One of them fails on the images of this run, or returns something else.
    """
    network, generator = config.classifier.network, config.adversary.generator
    if is_function_name(network):
        networks.external.check(network, game.classifier, info.image_shape, (info.num_classes,))
    if config.adversary.name == "generator" and is_function_name(generator.network):
        *size, channels = info.image_shape
        inputs = (*size, adversaries.get_design(generator).channels(channels, info.num_classes))
        built = networks.build_generator(generator.network, channels, config.precision, remat=generator.remat)
        networks.external.check(generator.network, built, inputs, info.image_shape)
    if not is_function_name(config.adversary.name):
        return
    if config.penalty.coefficient and game.adversary.response is None:
        raise UserError(
            f"penalty.coefficient is {config.penalty.coefficient}, but the adversary {config.adversary.name} has no "
            "function response: set it to 0"
        )

    def classifier_fn(images: jax.Array) -> jax.Array:
        params, batch_stats = game.classifier.init(prng.make_key(0), images)
        return game.classifier.apply(params, batch_stats, images, train=False)[0]

    adversaries.external.check(config.adversary.name, game.adversary, classifier_fn, info.image_shape)


def keep_busy(devices: Sequence[jax.Device], batch_size: int, image_shape: Sequence[int]) -> Sequence[jax.Device]:
    """Returns all accelerators, but of the cores of a CPU only as many as a batch keeps busy and can be split over.

    Args:
        devices: The devices of all processes.
        batch_size: Images of a batch, over all devices.
        image_shape: `(H, W, C)`.

    >>> cores = parallel.find_devices("cpu")[:2]
    >>> len(keep_busy(cores, 64, (8, 8, 1))), len(keep_busy(cores, 128, (32, 32, 3))) == len(cores)
    (1, True)
    """
    if devices[0].platform != "cpu":
        return devices
    processes = jax.process_count()
    each = len(devices) // processes
    most = min(each, batch_size * math.prod(image_shape[:2]) // (processes * _PIXELS_PER_CORE))
    count = next((n for n in range(most, 1, -1) if batch_size % (n * processes) == 0), 1)
    return [device for first in range(0, len(devices), each) for device in devices[first : first + count]]


def build(config: Config, devices: Sequence[jax.Device] | None = None, platform: str = "") -> Setup:
    """Loads the data and initializes the game, in all processes.

    Args:
        config: The configuration.
        devices: The devices of all processes; None for those of a platform that `keep_busy` chooses.
        platform: As `parallel.find_devices`; where devices are given, it is not used.

    Raises:
        UserError: The configuration, the data or an ensemble member is invalid, or processes read different data.
    """
    parallel.run_on_all_processes(lambda: check(config, devices))
    found = parallel.find_devices(platform) if devices is None else devices
    dataset = parallel.run_on_all_processes(lambda: load_data(config))
    sums = data.checksums(dataset)
    parallel.assert_equal_across_processes({"data": sums})
    shape = dataset.train.images.shape[1:]
    if devices is None:
        found = keep_busy(found, config.batch_size, shape)
        parallel.run_on_all_processes(lambda: parallel.check_batch_size(config.batch_size, found))
    if found[0].platform == "cpu" and isinstance(dataset.train.images, np.ndarray):
        dataset = dataset._replace(train=dataset.train._replace(images=parallel.aligned(dataset.train.images)))
    info = checkpoint.DataInfo(dataset.name, shape, dataset.num_classes, tuple(dataset.label_names), data.digest(sums))
    sources = load_sources(config, info)
    game = game_lib.from_config(config, num_classes=info.num_classes, channels=shape[-1], sources=sources)
    check_functions(config, game, info)
    start = Setup(config, found, dataset, info, game, initial_state(config, game, shape))
    if game.memory is None:
        return start
    if start.streamed:
        raise UserError(
            "adversary.generator.start must not be 'memory' where the training images are read batch by batch: a "
            "perturbation of each of them would be in the device's memory"
        )
    memory = game_lib.memory.init(shape, len(dataset.train.labels))
    return start._replace(state=start.state._replace(memory=memory))


def load_data(config: Config) -> data.Dataset:
    """Loads and checks the data of a configuration.

    Raises:
        DataError: They are not prepared, are damaged, or do not fit the configuration.
    """
    dataset = data.from_config(config.data)
    for split in (dataset.train, dataset.validation, dataset.test):
        evaluation.check_images(split.images, split.labels, dataset.num_classes)
    shape = dataset.train.images.shape[1:]
    check_epsilon(config.threat.epsilon, "threat.epsilon", config.threat.norm, image_shape=shape)
    if config.validation.size > len(dataset.validation.labels):
        raise DataError(
            f"validation.size is {config.validation.size}, but data.validation_size holds out only "
            f"{len(dataset.validation.labels)} images: lower the one or raise the other"
        )
    return dataset


def load_sources(config: Config, info: checkpoint.DataInfo) -> list[LogitsFn]:
    """Loads the frozen classifiers attacked by the adversary `ensemble`.

    Args:
        config: The run.
        info: Its data.

    Returns:
        One classifier for each of `adversary.ensemble.sources`; none for other adversaries.

    Raises:
        UserError: A source is missing, damaged, or was trained on other images or classes.
    """
    if config.adversary.name != "ensemble":
        return []
    records = [checkpoint.read_record(*checkpoint.parse_location(text)) for text in config.adversary.ensemble.sources]
    for text, record in zip(config.adversary.ensemble.sources, records, strict=True):
        if record.data[:3] != info[:3]:
            raise UserError(
                f"the source {text} was trained on {_describe(record.data)}, but this run is on {_describe(info)}: "
                "give sources of the same data"
            )
    return [checkpoint.get_classifier(record) for record in records]


def _describe(info: checkpoint.DataInfo) -> str:
    return f"{info.name}, images {info.image_shape}, {info.num_classes} classes"


def initial_state(config: Config, game: Game, image_shape: Sequence[int]) -> TrainState:
    """Returns the state of a game at step 0.

    Raises:
        UserError: The networks do not accept images of this shape.
    """
    images = jnp.zeros((2, *image_shape), jnp.float32)
    try:
        return jax.jit(functools.partial(game_lib.init, game))(prng.make_key(config.seed), images)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the networks {config.classifier.network} and {config.adversary.generator.network} do not accept images "
            f"of shape {tuple(image_shape)}: {one_line(error)}"
        ) from error

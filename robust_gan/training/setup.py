"""What a run starts from: its data, the frozen classifiers it was given, and the state at step 0."""

import functools
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import checkpoint, data, evaluation, networks, prng
from robust_gan import game as game_lib
from robust_gan.config import Config, check_epsilon
from robust_gan.errors import DataError, UserError, one_line
from robust_gan.game import Game, TrainState
from robust_gan.types import LogitsFn


def check_networks(config: Config) -> None:
    """Refuses names of networks that there are not; how many classes and channels they have is not known yet."""
    networks.build_classifier(config.classifier.network, 1)
    if config.adversary.name == "generator":
        networks.build_generator(config.adversary.generator.network, 1)


def load_data(config: Config) -> data.Dataset:
    """Loads and checks the data of a configuration.

    Raises:
        DataError: They are not prepared, damaged, or do not fit the configuration.
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


def fingerprint(dataset: data.Dataset) -> dict[str, int]:
    """Returns a checksum of each part of the data, by which processes tell that they read the same."""
    splits = {"train": dataset.train, "validation": dataset.validation}
    return {
        name: zlib.crc32(np.ascontiguousarray(split.labels).data, zlib.crc32(np.ascontiguousarray(split.images).data))
        for name, split in splits.items()
    }


def load_sources(config: Config, info: checkpoint.DataInfo) -> list[LogitsFn]:
    """Loads the frozen classifiers that an ensemble attacks.

    Args:
        config: The run.
        info: Its data.

    Returns:
        One for each of `adversary.ensemble.sources`; none where the adversary is another one.

    Raises:
        UserError: A source is missing, damaged, or of other images or classes.
    """
    if config.adversary.name != "ensemble":
        return []
    records = [checkpoint.read_record(*checkpoint.parse_location(text)) for text in config.adversary.ensemble.sources]
    for text, record in zip(config.adversary.ensemble.sources, records, strict=True):
        there = record.data
        if (there.name, there.image_shape, there.num_classes) != (info.name, info.image_shape, info.num_classes):
            raise UserError(
                f"the source {text} was trained on {there.name}, images {there.image_shape}, {there.num_classes} "
                f"classes, but this run is on {info.name}, {info.image_shape}, {info.num_classes}: give sources of the "
                "same data"
            )
    return [checkpoint.get_classifier(record) for record in records]


def initial_state(config: Config, game: Game, image_shape: Sequence[int]) -> TrainState:
    """Starts the game of a configuration at step 0.

    Raises:
        UserError: The networks cannot take images of this shape.
    """
    images = jnp.zeros((2, *image_shape), jnp.float32)
    try:
        return jax.jit(functools.partial(game_lib.init, game))(prng.make_key(config.seed), images)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the networks {config.classifier.network} and {config.adversary.generator.network} cannot take images of "
            f"shape {tuple(image_shape)}: {one_line(error)}"
        ) from error


def build(config: Config, dataset: data.Dataset) -> tuple[checkpoint.DataInfo, Game, TrainState]:
    """Returns what the networks know of the data, the game, and its state at step 0.

    Raises:
        UserError: As for `load_sources` and `initial_state`.
    """
    shape = dataset.train.images.shape[1:]
    info = checkpoint.DataInfo(dataset.name, shape, dataset.num_classes, tuple(dataset.label_names))
    sources = load_sources(config, info)
    game = game_lib.from_config(config, num_classes=info.num_classes, channels=shape[-1], sources=sources)
    return info, game, initial_state(config, game, shape)

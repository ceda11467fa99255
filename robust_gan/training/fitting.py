"""Fits a built-in config to images that it was not made for: networks, held-out images, and steps."""

import copy
from collections.abc import Collection, Sequence

from robust_gan import data, networks
from robust_gan.config import Config
from robust_gan.data import own
from robust_gan.errors import UserError

EPOCHS = 30
"""Of the config `own`."""
_FEWEST_STEPS = 800
_VALIDATION_SHARE, _MAX_VALIDATION = 10, 5_000


def choose_classifier(image_shape: Sequence[int]) -> str:
    """Returns the name of the classifier for images of a shape `(H, W, C)`, of any size.

    >>> choose_classifier((8, 8, 1)), choose_classifier((28, 28, 1)), choose_classifier((16, 16, 3))
    ('digits_cnn', 'mnist_cnn_strided', 'resnet20')
    """
    size = max(image_shape[:2])
    if size <= 12:
        return "digits_cnn"
    return "mnist_cnn_strided" if size <= 40 and image_shape[-1] == 1 else "resnet20"


def fit(
    config: Config, name: str, *, image_size: int = 0, fixed: Collection[str] = (), adapts: bool = True
) -> tuple[Config, str]:
    """Returns a config that trains on other data.

    Held out for validation is a tenth of the images, at most 5,000. The config `own` trains for 30 epochs, but at least
    800 steps.

    Args:
        config: A built-in config.
        name: A data set, or files of the user's own, see `data.own.locate`.
        image_size: See `config.DataConfig`.
        fixed: Names of fields that stay as they are, such as `classifier.network`.
        adapts: Whether to change more than the data.

    Returns:
        The config, and a sentence on what was chosen.

    Raises:
        DataError: The data cannot be read.

    >>> from robust_gan.config import DataConfig
    >>> config = Config(data=DataConfig(data_dir=str(getfixture("tmp_path"))))
    >>> fit(config, "digits")[1]
    'digits: 1,437 images of 8x8x1 to train on, 143 of them held out for validation; classifier digits_cnn, generator \
digits_generator, 1,000 steps of 64, linf epsilon 0.15'
    """
    config = copy.deepcopy(config)
    follows_steps = config.data.name == ""
    config.data.name = own.locate(name) or name
    config.data.image_size = image_size or config.data.image_size
    if not adapts:
        return config, ""
    image_shape, total = data.describe(config.data)
    changes = _networks(config, image_shape) | _sizes(config, total)
    if follows_steps and not config.data.train_size:
        steps = max(_FEWEST_STEPS, -(-EPOCHS * total // config.batch_size))
        steps = config.num_steps if "num_steps" in fixed else steps
        changes |= {
            "num_steps": steps,
            "classifier.optimizer.schedule_steps": steps,
            "validation.every": max(1, steps // 10),
        }
    for path, value in changes.items():
        if path not in fixed:
            *groups, field = path.split(".")
            node = config
            for group in groups:
                node = getattr(node, group)
            setattr(node, field, value)
    return config, _describe(config, name, image_shape, total)


def _networks(config: Config, image_shape: Sequence[int]) -> dict[str, object]:
    changes: dict[str, object] = {"classifier.network": choose_classifier(image_shape)}
    try:
        changes["adversary.generator.network"] = networks.generator_for(image_shape)
    except UserError:
        if config.adversary.name == "generator":
            raise
    return changes


def _sizes(config: Config, total: int) -> dict[str, object]:
    held_out = max(1, min(total // _VALIDATION_SHARE, _MAX_VALIDATION))
    if config.data.train_size:  # Of the budget `debug`.
        held_out = min(held_out, config.data.validation_size)
    return {
        "data.validation_size": held_out,
        "data.train_size": min(config.data.train_size, total - held_out),
        "data.extra_size": 0,
        "validation.size": min(config.validation.size, held_out),
    }


def _describe(config: Config, name: str, image_shape: Sequence[int], total: int) -> str:
    generator = ""
    if config.adversary.name == "generator":
        generator = f", generator {config.adversary.generator.network}"
    return (
        f"{name}: {total:,} images of {'x'.join(map(str, image_shape))} to train on, "
        f"{config.data.validation_size:,} of them held out for validation; classifier {config.classifier.network}"
        f"{generator}, {config.num_steps:,} steps of {config.batch_size}, {config.threat.norm} epsilon "
        f"{config.threat.epsilon:.4g}"
    )

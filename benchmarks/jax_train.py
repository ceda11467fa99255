"""Serves a training step of `robust_gan` to `train.py`."""

import argparse

from robust_gan.cli import memory, xla_flags

if __name__ == "__main__":
    memory.use_large_pages()
xla_flags.set_flags(spread=True)

import jax_step
import serving
import train
from robust_gan.config import Config, DataConfig, OptimizerConfig, PenaltyConfig, methods


def read_config(given: argparse.Namespace) -> Config:
    """Returns the config of a method in the schedule of `configs/cifar10_resnet18.py`, in float32."""
    config, _, _ = methods.build(
        given.method,
        data=DataConfig(name="cifar10", validation_size=1_000, augmentation="crop_flip", padding=4),
        epsilon=train.RADIUS,
        classifier=given.classifier,
        classifier_optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=5e-4),
        generator_optimizer=OptimizerConfig(name="adam", learning_rate=0.0005, b1=0.5, weight_decay=1e-5),
        penalty=PenaltyConfig(),
        batch_size=given.batch,
        num_steps=10_000,
        generator="resnet_generator_light",
    )
    config.classifier.attack_bn_mode = given.statistics
    return config


if __name__ == "__main__":
    given = train.arguments(argparse.ArgumentParser(description=__doc__)).parse_args()
    serving.serve(lambda: jax_step.compiled_step(read_config(given), given.steps))

"""A config of seconds: digits, and the networks of `tiny_networks.py`; for tests, and for commands of their own."""

import pathlib
import sys

from robust_gan.config import (
    AdversaryConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    GeneratorConfig,
    PGDConfig,
    ValidationConfig,
)


def make(name="generator", **settings):
    """Returns the config against an adversary, with other fields in place of its own."""
    fields = {
        "data": DataConfig(train_size=100, validation_size=40, augmentation="crop", padding=1),
        "classifier": ClassifierConfig(network="tiny"),
        "adversary": AdversaryConfig(
            name=name,
            pgd=PGDConfig(num_steps=1),
            generator=GeneratorConfig(network="tiny", steps=1, batches_per_step=2),
        ),
        "validation": ValidationConfig(every=3, pgd_steps=1),
    }
    return Config(**{**fields, "batch_size": 16, "num_steps": 6, "log_every": 2, **settings})


def get_config(name="generator"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import tiny_networks

    tiny_networks.register()
    return make(name)

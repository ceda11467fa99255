"""The smallest run with both players and a validation, for scripts that need many; seconds on a core."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

import tiny_config  # noqa: E402
import tiny_networks  # noqa: E402

from robust_gan.config import (  # noqa: E402
    AdversaryConfig,
    ClassifierConfig,
    DataConfig,
    GeneratorConfig,
    ValidationConfig,
)

tiny_networks.register()


def config(adversary="generator", **settings):
    """Returns it; the networks are those of the tests."""
    fields = {
        "data": DataConfig(train_size=64, validation_size=32, augmentation="crop", padding=1),
        "classifier": ClassifierConfig(network="tiny", ema_decay=0.9),
        "adversary": AdversaryConfig(name=adversary, generator=GeneratorConfig(network="tiny", steps=1)),
        "validation": ValidationConfig(every=10, pgd_steps=1),
    }
    return tiny_config.make(**{**fields, "batch_size": 8, "num_steps": 60, "log_every": 5, **settings})


def report(name, figures):
    """Prints what came out, a line each."""
    print(f"{name}:", *(f"  {what}: {value}" for what, value in figures.items()), sep="\n", flush=True)

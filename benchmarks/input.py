"""Times what brings images to a step: on the device as the step does it, or by NumPy on the host.

    python benchmarks/input.py --batch 64

A step of the CIFAR-10 game takes seconds on a CPU and some milliseconds on a GPU: beside that the rows are to be read.
"""

import argparse

from robust_gan.cli import xla_flags

xla_flags.set_flags()

import jax
import numpy as np

import measuring
from robust_gan import game
from robust_gan.data import augmentation, order

NUM_IMAGES, PADDING = 50_000, 2


def on_device(images, positions, key):
    """Returns a batch in [0, 1], fetched, cropped and flipped where the data lie; `positions` is int32 `[B]`."""
    chosen = augmentation.to_unit(images[positions])
    return augmentation.augment("crop_flip", game.image_keys(key, positions.shape[0]), chosen, PADDING)


def on_host(images: np.ndarray, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a batch as NumPy makes it: the same distribution from another generator."""
    count, height, width, _ = (len(positions), *images.shape[1:])
    padded = np.pad(images[positions], ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    rows = rng.integers(0, 2 * PADDING + 1, (count, 1)) + np.arange(height)
    columns = np.where(rng.random((count, 1)) < 0.5, np.arange(width), np.arange(width)[::-1])
    columns = rng.integers(0, 2 * PADDING + 1, (count, 1)) + columns
    cropped = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped.astype(np.float32) / np.float32(255)


def main() -> None:
    """Times each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="a JSON file")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, 32, 32, 3), np.uint8)
    placed, key = jax.device_put(images), jax.random.key(0)
    fetched = jax.jit(on_device)
    step = 0

    def positions():
        nonlocal step
        step += 1
        return order.batch_indices(0, step, given.batch, NUM_IMAGES)

    ways = {
        "the order of the images": lambda: positions(),
        "fetched and augmented on the device": lambda: fetched(placed, positions(), key).block_until_ready(),
        "augmented by NumPy": lambda: on_host(images, positions(), rng),
        "augmented by NumPy and copied": lambda: jax.device_put(on_host(images, positions(), rng)).block_until_ready(),
    }
    report = measuring.Report(given.output, f"input of {given.batch} images of 32x32")
    rounds = {name: [] for name in ways}
    for index in range(given.rounds + 1):
        for name, way in ways.items():
            times = measuring.timed(lambda way=way: [way() for _ in range(given.repeats)], given.repeats)
            if index:
                rounds[name].append(times)
    for name, given_times in rounds.items():
        report.add(
            name, **{key: measuring.spread([times[key] for times in given_times]) for key in ("seconds", "cpu_seconds")}
        )


if __name__ == "__main__":
    main()

"""What watching every step for NaN and infinity costs: training steps with and without it, in turn.

python tests/faults/guard_cost.py [--config=digits:pgd] [--rounds=30] [--steps=20]
"""

import argparse
import functools
import pathlib
import runpy
import statistics
import time

import jax

from robust_gan import game as game_lib
from robust_gan import parallel
from robust_gan.training import multi_step, nonfinite, setup

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="digits:generator")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    config_file, _, method = arguments.config.partition(":")
    config = runpy.run_path(str(ROOT / "configs" / f"{config_file}.py"))["get_config"](method)
    dataset, devices = setup.load_data(config), parallel.find_devices(num_devices=1)
    shape = dataset.train.images.shape[1:]
    game = game_lib.from_config(config, num_classes=dataset.num_classes, channels=shape[-1])
    arrays = parallel.replicate({"images": dataset.train.images, "labels": dataset.train.labels}, devices)
    guard, plays = nonfinite.select, {}
    for name in ("watched", "bare"):
        nonfinite.select = guard if name == "watched" else lambda before, after, metrics, counts, **_: (after, counts)
        play = parallel.map_step(functools.partial(multi_step.run_steps, game, config, "stop"), devices)
        loop_state = multi_step.LoopState(setup.initial_state(config, game, shape), nonfinite.init_state())
        plays[name] = [play, parallel.replicate(loop_state, devices)]
        run(plays[name], config, arrays, devices, 2)  # Compiles while its guard is in place.
    seconds = {name: [] for name in plays}
    for index in range(arguments.rounds):
        for name in (tuple(plays), tuple(plays)[::-1])[index % 2]:
            seconds[name].append(run(plays[name], config, arrays, devices, arguments.steps))
    watched, bare = (min(seconds[name]) / arguments.steps for name in ("watched", "bare"))
    pairs = statistics.median(a / b for a, b in zip(seconds["watched"], seconds["bare"], strict=True))
    print(f"{arguments.config}: {bare * 1e3:.3f} ms a step, watched {watched * 1e3:.3f} ms (fastest of "
          f"{arguments.rounds} rounds of {arguments.steps} steps); the median pair {pairs - 1:+.2%}")  # fmt: skip


def run(play, config, arrays, devices, steps):
    indices = multi_step.batch_indices(config, 0, 1, 1, len(arrays["labels"]), devices)
    began = time.process_time()
    for _ in range(steps):
        play[1], _ = play[0](play[1], arrays, indices)
    jax.block_until_ready(play[1])
    return time.process_time() - began


if __name__ == "__main__":
    main()

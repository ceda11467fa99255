"""What several devices cost: the time that a mapped step adds, and what they send to each other.

    python benchmarks/scaling.py --devices 4          # fake devices on the cores of this machine, the game on digits
    python benchmarks/scaling.py --volume             # what a step of the CIFAR-10 game sends; nothing is run

The same global batch is computed on one device and on several. They share the cores here, so the difference is what the
mapping, the all-reduces and the smaller shares cost; it says nothing of how fast real devices would be.
"""

import argparse
import functools
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from robust_gan.cli import xla_flags

_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
_parser.add_argument("--devices", type=int, default=4)
_parser.add_argument("--batch", type=int, default=64)
_parser.add_argument("--steps", type=int, default=50, help="timed at a time, each in a call of its own")
_parser.add_argument("--rounds", type=int, default=5)
_parser.add_argument("--volume", action="store_true")
_parser.add_argument("--no_penalty", action="store_true", help="with --volume")
_parser.add_argument("--output", help="a JSON file")
GIVEN = _parser.parse_args()
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags.SPREAD}={GIVEN.devices}".strip()
xla_flags.set_flags()

import jax
import numpy as np

import jax_step
import measuring
from robust_gan import game as game_lib
from robust_gan import parallel
from robust_gan.config import AdversaryConfig, Config, GeneratorConfig
from robust_gan.parallel import topology
from robust_gan.training import multi_step
from robust_gan.types import Batch


def longest_chain(jaxpr: Any, before: Sequence[int]) -> list[int]:
    """Returns of each output how many sums over the devices it needs, one after the other; a loop's body counts once.

    No compiler can join the sums of a chain.

    Args:
        jaxpr: A program.
        before: The same of its inputs.
    """
    counts = dict(zip(jaxpr.invars, before, strict=True))
    for equation in jaxpr.eqns:
        inputs = [0 if hasattr(variable, "val") else counts.get(variable, 0) for variable in equation.invars]
        body = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if body is not None:
            outputs = longest_chain(getattr(body, "jaxpr", body), inputs)
        else:
            outputs = [max(inputs, default=0) + equation.primitive.name.startswith("psum")] * len(equation.outvars)
        counts.update(zip(equation.outvars, outputs, strict=True))
    return [0 if hasattr(variable, "val") else counts.get(variable, 0) for variable in jaxpr.outvars]


def volume(config: Config, shape: tuple[int, int, int]) -> dict[str, float]:
    """Returns the bytes of a step's all-reduces, gradients and statistics of BatchNorm, and their longest chain.

    Args:
        config: The run.
        shape: Of an image.
    """
    game = game_lib.from_config(config, num_classes=10, channels=shape[-1])
    images = jax.ShapeDtypeStruct((2, *shape), np.float32)
    state = jax.eval_shape(functools.partial(game_lib.init, game), jax.random.key(0), images)

    def size(tree) -> int:
        return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    steps = config.adversary.generator.steps
    theta, phi = size(state.classifier.params), size(state.adversary.params)
    of_d, of_g = size(state.classifier.batch_stats), size(state.adversary.batch_stats)
    penalty = config.penalty.coefficient != 0
    # Forward a layer sends its mean and then its variance, backward the gradients in both: as many numbers again.
    statistics = steps * 2 * (of_g + of_d) + (1 + penalty) * of_g + 2 * 2 * of_d
    step = functools.partial(game_lib.train_step, game, axis_name=parallel.AXIS)
    batch = Batch(images, jax.ShapeDtypeStruct((2,), np.int32))
    program = jax.make_jaxpr(step, axis_env=[(parallel.AXIS, GIVEN.devices)])(state, batch).jaxpr
    return {
        "longest_chain_loops_once": max(longest_chain(program, [0] * len(program.invars))),
        "gradients_of_the_generator": steps * phi + penalty * phi,
        "gradient_of_the_classifier": theta,
        "statistics": statistics,
        "all": steps * phi + penalty * phi + theta + statistics,
    }


def cifar10() -> Config:
    """Returns the sizes and passes of `configs/cifar10.py`."""
    generator = GeneratorConfig(network="resnet_generator", steps=5)
    config = Config(adversary=AdversaryConfig(name="generator", generator=generator))
    config.classifier.network, config.penalty.coefficient = "resnet20", 0.01 * (not GIVEN.no_penalty)
    return config


def prepare(count: int):
    """Compiles the step of digits on some devices; returns it and its compiled text."""
    config = Config(batch_size=GIVEN.batch, adversary=AdversaryConfig(name="generator"))
    devices = parallel.find_devices(num_devices=count)
    play, loop_state, arrays = jax_step.start(config, (8, 8, 1), devices)
    indices = multi_step.batch_indices(config, 0, 1, 1, jax_step.NUM_IMAGES, devices)
    compiled = parallel.compile_step(play, devices, loop_state, arrays, indices)

    def run():
        nonlocal loop_state
        dispatch = 0.0
        for _ in range(GIVEN.steps):
            began = time.perf_counter()
            loop_state, output = compiled(loop_state, arrays, indices)
            dispatch += time.perf_counter() - began
            jax.block_until_ready(output)  # Fake devices must not run ahead.
        return dispatch / GIVEN.steps

    return run, compiled.as_text()


def main() -> None:
    """Reports the volume, or times one device and several alternately."""
    report = measuring.Report(GIVEN.output, "several devices")
    if GIVEN.volume:
        report.add("bytes of a step of the CIFAR-10 game", **volume(cifar10(), (32, 32, 3)))
        return
    made = {count: prepare(count) for count in (1, GIVEN.devices)}
    rounds = {count: [] for count in made}
    for index in range(GIVEN.rounds + 1):
        for count, (run, _) in made.items():
            dispatch = []
            times = measuring.timed(lambda run=run, dispatch=dispatch: dispatch.append(run()), GIVEN.steps)
            if index:
                rounds[count].append(times | {"dispatch_seconds": dispatch[0]})
    for count, (_, text) in made.items():
        sent = {kind: sizes for kind, *sizes in topology.count_collectives(text)}
        number, size = sent.get("all-reduce", (0, 0))
        spreads = {key: measuring.spread([times[key] for times in rounds[count]]) for key in rounds[count][0]}
        report.add(f"digits, {count} devices", **spreads, all_reduces=number, all_reduce_bytes=size)
    pairs = list(zip(*rounds.values(), strict=True))
    for key in ("seconds", "cpu_seconds", "dispatch_seconds"):
        report.add(f"more {key} on {GIVEN.devices}", of_a_step=measuring.spread([b[key] - a[key] for a, b in pairs]))


if __name__ == "__main__":
    sys.exit(main())

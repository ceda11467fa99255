"""Serves the step of `robust_gan` to `step.py` and `gpu.py`: compiles it, says what it costs, times it when asked."""

import argparse
import functools
import time

from robust_gan.cli import memory, xla_flags

if __name__ == "__main__":
    memory.use_large_pages()
xla_flags.set_flags(spread=True)

import jax
import jax.numpy as jnp
import numpy as np

import counting
import measuring
import serving
import step
from robust_gan import game as game_lib
from robust_gan import parallel
from robust_gan.config import Config, DataConfig, OptimizerConfig, PenaltyConfig, methods
from robust_gan.training import multi_step, nonfinite, setup

NUM_IMAGES = 50_000


def read_config(given: argparse.Namespace) -> Config:
    """Returns the config of `configs/cifar10.py` with what was given."""
    form = "exact" if given.penalty == "none" else given.penalty
    config, _, _ = methods.build(
        "generator",
        data=DataConfig(name="cifar10", validation_size=1_000, augmentation="crop_flip", padding=2),
        epsilon=8 / 256,
        classifier=given.classifier,
        classifier_optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-5, decay_steps=(100_000,)
        ),
        generator_optimizer=OptimizerConfig(name="adam", learning_rate=0.002, b1=0.5, b2=0.999, weight_decay=1e-5),
        penalty=PenaltyConfig(coefficient=0.0 if given.penalty == "none" else 0.01, form=form, step=0.01),
        batch_size=given.batch,
        num_steps=200_000,
    )
    config.precision = given.precision
    config.adversary.generator.steps = given.generator_steps
    config.adversary.generator.remat = given.remat
    return config


def initial_state(game: game_lib.Game, image_shape: tuple[int, int, int] = (32, 32, 3)) -> game_lib.TrainState:
    """Returns the state at step 0 with weights from NumPy: compiling their initialisation takes as long as the step."""
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    shapes = jax.eval_shape(functools.partial(game_lib.init, game), jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        names = jax.tree_util.keystr(path)
        if ".opt_state" not in names and names.endswith("['kernel']"):
            return rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype(leaf.dtype)
        ones = ".opt_state" not in names and names.endswith(("['scale']", "['var']"))
        return (np.ones if ones else np.zeros)(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def start(config: Config, image_shape: tuple[int, int, int], devices: list[jax.Device]):
    """Returns the step of a run on random images, its loop state, and the images, placed."""
    game = game_lib.from_config(config, num_classes=10, channels=image_shape[-1])
    rng = np.random.default_rng(0)
    arrays = {
        "images": parallel.aligned(rng.integers(0, 256, (NUM_IMAGES, *image_shape), np.uint8)),
        "labels": rng.integers(0, 10, NUM_IMAGES).astype(np.int32),
    }
    loop_state = multi_step.LoopState(initial_state(game, image_shape), nonfinite.init_state())
    return functools.partial(multi_step.run_steps, game, config, "stop"), *parallel.replicate(
        (loop_state, arrays), devices
    )


def unrolled(
    game: game_lib.Game,
    config: Config,
    loop_state: multi_step.LoopState,
    arrays: dict,
    indices: multi_step.BatchIndices,
):
    """Runs one step as `multi_step.run_steps` does, without a loop."""
    looped = jax.lax.scan
    jax.lax.scan = functools.partial(looped, unroll=True)
    try:
        state, metrics = multi_step.training_step(game, config, loop_state.train_state, arrays, indices.positions[0])
    finally:
        jax.lax.scan = looped
    return multi_step.LoopState(
        *nonfinite.select(loop_state.train_state, state, metrics, loop_state.nonfinite, policy="stop")
    ), metrics


def prepare(given: argparse.Namespace):
    """Compiles the game's step; see `compiled_step`."""
    flops = counting.step(given.classifier, given.batch, generator_steps=given.generator_steps, penalty=given.penalty)
    return compiled_step(read_config(given), given.steps, unroll=given.unrolled, flops=flops)


def compiled_step(config: Config, steps: int, *, unroll: bool = False, **facts: float):
    """Compiles the step of a run; returns the facts, with those that are given, and the function that times."""
    memory.return_after_compiling()
    devices = setup.keep_busy(parallel.find_devices(), config.batch_size, (32, 32, 3))
    if devices[0].platform != "cpu":
        devices = devices[:1]
    play, loop_state, arrays = start(config, (32, 32, 3), devices)

    def indices(count: int) -> multi_step.BatchIndices:
        return multi_step.batch_indices(config, 0, count, steps, NUM_IMAGES, devices)

    began, cpu = time.perf_counter(), time.process_time()
    if unroll:
        play = functools.partial(unrolled, game_lib.from_config(config, num_classes=10, channels=3), config)
    compiled = parallel.compile_step(play, devices, loop_state, arrays, indices(1))
    compile_seconds, compile_cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    analysis, text = compiled.memory_analysis(), compiled.as_text()
    convolutions = [line for line in text.splitlines() if " convolution(" in line]
    facts |= {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "compile_seconds": compile_seconds,
        "compile_cpu_seconds": compile_cpu_seconds,
        # A loop's body counts once here, however often it runs.
        "xla_flops": compiled.cost_analysis()["flops"],
        # On a CPU all must be in the form that is fast in loops, see robust_gan/networks/convolution.py.
        "convolutions": len(convolutions),
        "of_slow_form": sum("b01f_01io->b01f" not in line or "rhs_reversal" in line for line in convolutions),
        "argument_bytes": analysis.argument_size_in_bytes,
        "temporary_bytes": analysis.temp_size_in_bytes,
        "peak_bytes_with_compiler": measuring.peak_host_bytes(),
        "matmul_flops_per_second": measuring.jax_matmul_rate(dtype=config.precision),
    }
    del text, convolutions
    memory.return_freed()  # Of the text, which a run does not ask for.
    measuring.forget_peak()

    def measure(count: int = 0, matmul: bool = False) -> dict[str, float]:
        """Times `count` calls of one step each; 0 for one call of all steps; or a matrix product."""
        if matmul:
            return {"flops_per_second": measuring.jax_matmul_rate(dtype=config.precision)}
        share, calls = (indices(steps), 1) if count == 0 else (indices(1), count)

        def run():
            nonlocal loop_state
            for _ in range(calls):
                loop_state, output = compiled(loop_state, arrays, share)
            jax.block_until_ready(output)

        times = measuring.timed(run, steps if count == 0 else count)
        peak = (devices[0].memory_stats() or {}).get("peak_bytes_in_use", measuring.peak_host_bytes())
        return times | {"peak_bytes": peak}

    return facts, measure


if __name__ == "__main__":
    parser = step.arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--unrolled", action="store_true")
    arguments = parser.parse_args()
    serving.serve(lambda: prepare(arguments))

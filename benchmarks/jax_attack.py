"""Serves an attack of `robust_gan` to `attack.py`, with a device of each core of a CPU, as `robust-gan-evaluate`."""

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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import attack
import measuring
import serving
from robust_gan import attacks, networks, parallel
from robust_gan.networks import inference
from robust_gan.parallel.devices import jit_batch
from robust_gan.threat_model import LinfThreat


def get_classifier(name: str) -> tuple[dict, dict]:
    """Returns weights and running statistics, nested dictionaries of NumPy arrays."""
    shapes = jax.eval_shape(
        networks.build_classifier(name, 10).init, jax.random.key(0), jnp.zeros((1, *attack.CLASSIFIERS[name]))
    )
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        last = path[-1].key
        if last == "kernel":
            return rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape).astype(np.float32)
        return (np.ones if last in ("scale", "var") else np.zeros)(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def images_of(name: str, count: int) -> np.ndarray:
    """Returns images `[B, H, W, C]` for a classifier."""
    return np.random.default_rng(1).random((count, *attack.CLASSIFIERS[name]), np.float32)


def prepare(given: argparse.Namespace):
    """Compiles; returns the facts and the function that times."""
    params, batch_stats = jax.tree.map(jnp.asarray, get_classifier(given.classifier))
    classify = inference.classify(given.classifier, 10)
    images = jnp.asarray(images_of(given.classifier, given.images))
    labels = jnp.argmax(jax.jit(classify)(params, batch_stats, images), -1)
    made = attacks.by_name(given.attack)
    devices = parallel.find_devices()
    while given.images % len(devices):
        devices.pop()

    def run(weights, batch):
        return made(functools.partial(classify, *weights), *batch, LinfThreat(attack.RADIUS))

    keys = jax.random.split(jax.random.key(0), given.images)
    mesh = Mesh(np.asarray(devices), (parallel.AXIS,))
    batch = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), (keys, images, labels))
    arguments = (
        parallel.replicate((params, batch_stats), devices),
        jax.device_put(batch, NamedSharding(mesh, PartitionSpec(parallel.AXIS))),
    )
    began = time.perf_counter()
    compiled = jit_batch(run, mesh).lower(*arguments).compile()
    facts = {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "compile_seconds": time.perf_counter() - began,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "matmul_flops_per_second": measuring.jax_matmul_rate(),
    }
    return facts, lambda: measuring.timed(lambda: jax.block_until_ready(compiled(*arguments)))


if __name__ == "__main__":
    given = attack.arguments(argparse.ArgumentParser(description=__doc__)).parse_args()
    serving.serve(lambda: prepare(given))

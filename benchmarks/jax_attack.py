"""Serves an attack of `robust_gan` to `attack.py`."""

import argparse
import functools
import time

from robust_gan.cli import memory, xla_flags

if __name__ == "__main__":
    memory.use_large_pages()
xla_flags.set_flags()

import jax
import jax.numpy as jnp
import numpy as np

import attack
import measuring
import serving
from robust_gan import attacks, networks
from robust_gan.networks import inference
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

    def run(params, batch_stats, key, images, labels):
        logits_fn = functools.partial(classify, params, batch_stats)
        return made(logits_fn, key, images, labels, LinfThreat(attack.RADIUS))

    arguments = (params, batch_stats, jax.random.key(0), images, labels)
    began = time.perf_counter()
    compiled = jax.jit(run).lower(*arguments).compile()
    facts = {
        "device": jax.devices()[0].device_kind,
        "compile_seconds": time.perf_counter() - began,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "matmul_flops_per_second": measuring.jax_matmul_rate(),
    }
    return facts, lambda: measuring.timed(lambda: jax.block_until_ready(compiled(*arguments)))


if __name__ == "__main__":
    given = attack.arguments(argparse.ArgumentParser(description=__doc__)).parse_args()
    serving.serve(lambda: prepare(given))

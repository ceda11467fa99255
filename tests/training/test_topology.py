"""A step is compiled for TPUs that are not there, or one sentence says why not."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import LinfThreat, attacks, networks
from robust_gan.config import Config, DataConfig
from robust_gan.errors import UserError
from robust_gan.networks.convolution import convolution, transposed_convolution
from robust_gan.training import topology

NO_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs XLA's compiler for TPUs: pip install libtpu"
)


def flops(function, *arguments):
    return topology.count_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_flops_are_those_of_convolutions_and_of_both_gradients():
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    forward = 2 * 2 * 8 * 8 * 3 * 3 * 3 * 5
    assert flops(convolution, images, kernel) == forward
    for argument in (0, 1):
        gradient = jax.grad(lambda images, kernel: jnp.sum(convolution(images, kernel) ** 2), argument)
        assert flops(gradient, images, kernel) == 2 * forward
    # Each pixel meets each of the nine weights once.
    assert flops(transposed_convolution, images, kernel) == forward


def test_flops_of_loops_count_in_full_and_of_branches_the_dearest():
    a = jnp.ones((4, 4))
    product = 2 * 4**3
    assert flops(lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=7)[0], a) == 7 * product
    assert flops(jax.jit(lambda a: jax.lax.fori_loop(0, 5, lambda _, c: c @ a, a)), a) == 5 * product
    assert flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a, a), a) == 2 * product


def test_collectives_are_counted_by_kind():
    text = """
  %all-reduce.1 = f32[16]{0} all-reduce(%a), replica_groups={{0,1}}
  %all-reduce-start = (f32[5,16]{1,0}, bf16[2]{0}) all-reduce-start(%b, %c), channel_id=1
  %all-reduce-done = f32[5,16]{1,0} all-reduce-done(%all-reduce-start)
  %all-gather.2 = s32[]{} all-gather(%d)
"""
    assert topology.count_collectives(text) == (("all-gather", 1, 4), ("all-reduce", 2, 64 + 320 + 4))


def test_what_cannot_be_compiled_is_told(monkeypatch):
    with pytest.raises(UserError, match="unknown topology 'v9:2x2': give a chip of v4, v5e, v5p, v6e and a grid"):
        topology.find_topology("v9:2x2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs libtpu: pip install"):
        topology.find_topology("v5e:2x2")


def test_a_topology_is_for_a_dry_run(launch):
    ended = launch("train", "--config=configs/digits.py", "--topology=v5e:2x2")
    assert (ended.code, ended.out) == (2, "")
    assert "give --dry_run with it" in ended.err


def test_what_was_compiled_is_told_by_its_bound():
    found = topology.Compiled(
        "v5e:2x2", 4, 64, int(1e9), int(2e9), 197e9, 8.19e6, (("all-reduce", 3, 4_000_000),), 5, 60.0
    )
    text = topology.format_compiled(found)
    assert "13000.0 MB  left of 16 GB of HBM: the batch fits" in text
    assert "3 all-reduce, 4.00 MB" in text
    assert "time of a step by the roofline: 1 ms, bound by the peak" in text
    full = topology.format_compiled(found._replace(temporaries=int(16e9), bytes_accessed=8.19e9))
    assert "the batch does not fit" in full
    assert "10 ms, bound by the bandwidth" in full


@NO_LIBTPU
@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_step_compiles_for_tpus(name):
    config = Config()
    if name == "mnist":
        config = Config(data=DataConfig(name="mnist", validation_size=1_000))
        config.classifier.network, config.adversary.generator.network = "mnist_cnn", "mnist_generator"
    found = topology.compile_step(config, "v5e:2x2")
    assert found.fits
    assert found.num_devices == 4
    assert dict((kind, count) for kind, count, _ in found.collectives)["all-reduce"] < 100
    assert 0 < found.seconds < 0.1


@NO_LIBTPU
@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgd10", "apgd_ce5", "square20"])
def test_an_attack_compiles_for_tpus(name):
    network = networks.build_classifier("digits_cnn", 10)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))

    def run(weights, images, labels):
        attack = attacks.by_name(name)
        return attack(lambda x: network.apply(*weights, x, train=False)[0], jax.random.key(0), images, labels,
                      LinfThreat(0.1))  # fmt: skip

    images = jax.ShapeDtypeStruct((16, 8, 8, 1), np.float32)
    found = topology.compile_function(run, "v5e:2x2", shapes, images, jax.ShapeDtypeStruct((16,), np.int32))
    assert found.fits
    assert found.flops > 0
    assert found.collectives == ()

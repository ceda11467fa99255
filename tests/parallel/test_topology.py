"""Steps and attacks are compiled for TPUs that are not there, or one sentence says why not."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import networks
from robust_gan.config import Config, DataConfig
from robust_gan.errors import UserError
from robust_gan.evaluation.config import EvaluationConfig
from robust_gan.evaluation.models import EvaluatedModel, EvaluationData, Model
from robust_gan.evaluation.plan import plan_attacks
from robust_gan.evaluation.subject import get_threat, prepare
from robust_gan.evaluation.topology import compile_attacks
from robust_gan.networks import inference
from robust_gan.networks.convolution import convolution, transposed_convolution
from robust_gan.parallel import topology
from robust_gan.training import multi_step
from robust_gan.training.topology import compile_step

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


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_convolutions_of_lax_have_as_many_flops(strides):
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

    def plain(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def ours(images, kernel):
        return convolution(images, kernel, strides)

    assert flops(plain, images, kernel) == flops(ours, images, kernel) > 0
    for argument in (0, 1):
        gradients = [jax.grad(lambda *both, f=f: jnp.sum(f(*both) ** 2), argument) for f in (plain, ours)]
        assert flops(gradients[0], images, kernel) == flops(gradients[1], images, kernel)


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
    ended = launch("evaluate", "--checkpoint=runs/none", "--dry_run")
    assert (ended.code, ended.out) == (2, "")
    assert "give both --dry_run and --topology" in ended.err


def test_what_was_compiled_is_told_by_its_bound():
    found = topology.Compiled(
        "v5e:2x2",
        "a step",
        4,
        64,
        int(0.6e9),
        int(0.4e9),
        int(2e9),
        197e9,
        8.19e6,
        (("all-reduce", 3, 4_000_000),),
        5,
        60,
    )
    text = topology.format_compiled(found)
    assert "13000.0 MB  left of 16 GB of HBM: the batch fits" in text
    assert "400.0 MB  training images, a copy on each chip" in text
    assert "3 all-reduce, 4.00 MB" in text
    assert "time of a step by the roofline: 1 ms, bound by the peak" in text
    full = topology.format_compiled(found._replace(temporaries=int(16e9), bytes_accessed=8.19e9))
    assert "the batch does not fit" in full
    assert "10 ms, bound by the bandwidth" in full


@NO_LIBTPU
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "grid", "num_devices"), [("digits", "v5e:2x2", 4), ("digits", "v5e:4x4", 16), ("mnist", "v5e:2x2", 4)]
)
def test_a_step_compiles_for_tpus(name, grid, num_devices):
    config = Config()
    if name == "mnist":
        config = Config(data=DataConfig(name="mnist", validation_size=1_000))
        config.classifier.network, config.adversary.generator.network = "mnist_cnn", "mnist_generator"
    found = compile_step(config, grid)
    assert found.fits
    assert found.num_devices == num_devices
    assert dict((kind, count) for kind, count, _ in found.collectives)["all-reduce"] < 100
    assert 0 < found.seconds < 0.1


@NO_LIBTPU
@pytest.mark.slow
def test_a_tpu_gathers_from_the_training_images_without_a_copy_of_them():
    devices = topology.find_topology("v5e:2x2")
    rows = jax.ShapeDtypeStruct((49_000, 32 * 32 * 3), jnp.uint8)
    gather = jax.pmap(lambda images, at: images[at].astype(jnp.float32), in_axes=(None, 0), devices=devices)
    images, at = multi_step.PackedImages(rows, (32, 32, 3)), jax.ShapeDtypeStruct((4, 16), jnp.int32)
    found = topology.Compiled("v5e:2x2", "a gather", 4, 64)
    for _ in range(2):  # The second time there is a program in the cache, which cannot be loaded without a TPU.
        assert topology.compile_program(found, gather, images, at).temporaries < 1e6


def subject(function, names, *arguments):
    data = EvaluationData.from_arrays(np.zeros((20, 8, 8, 1), np.float32), np.arange(20) % 10)
    config = EvaluationConfig(epsilon=0.1, attacks=names)
    model = EvaluatedModel(Model("mine", jax.tree_util.Partial(function, *arguments)), {})
    threat = get_threat("linf", 0.1)
    return prepare([model], 1, data, threat, plan_attacks(config, {}), 16, jax.devices()[:1])


def test_the_program_of_an_attack_is_compiled_for_all_devices(monkeypatch):
    monkeypatch.setattr(topology, "find_topology", lambda name: jax.devices())
    weights = jnp.ones((64, 10))
    tried = subject(
        lambda weights, images: images.reshape(len(images), -1) @ weights, "fgsm,retrained_generator", weights
    )
    (found,) = compile_attacks(tried, 14, "v5e:2x2")
    assert (found.program, found.num_devices, found.batch_size) == ("fgsm on mine", 4, 16)
    # The logits and their gradient on the 4 images of a device, the logits again to see whether they are fooled.
    assert found.flops in [passes * 2 * 4 * 64 * 10 for passes in (2, 3)]
    assert found.arguments >= weights.nbytes
    assert (found.collectives, found.training_images) == ((), 0)


@NO_LIBTPU
@pytest.mark.slow
def test_attacks_compile_for_tpus():
    network = networks.build_classifier("digits_cnn", 10)
    weights = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    tried = subject(inference.classify("digits_cnn", 10), "pgd10,apgd_ce5,square20", *weights)
    compiled = list(compile_attacks(tried, 16, "v5e:2x2"))
    assert [found.program for found in compiled] == ["pgd10 on mine", "apgd_ce5 on mine", "square20 on mine"]
    for found in compiled:
        assert found.fits
        assert found.flops > 0
        assert found.collectives == ()

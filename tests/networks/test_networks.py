"""The networks have the paper's sizes and keep the promises of the `Network` protocol."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_networks

from robust_gan import checkpoint, networks
from robust_gan.errors import UserError
from robust_gan.networks import CLASSIFIERS, GENERATORS, build_classifier, build_generator, count_params, layers

IMAGE_SHAPES = {
    "resnet20": (32, 32, 3),
    "resnet20_wide": (32, 32, 3),
    "resnet18": (32, 32, 3),
    "resnet20_svhn": (32, 32, 3),
    "mnist_cnn": (28, 28, 1),
    "mnist_cnn_strided": (28, 28, 1),
    "certifiable_cnn": (28, 28, 1),
    "certifiable_cnn_light": (8, 8, 1),
    "digits_cnn": (8, 8, 1),
    "resnet_generator": (32, 32, 3),
    "resnet_generator_svhn": (32, 32, 3),
    "mnist_generator": (28, 28, 1),
    "resnet_generator_small": (32, 32, 3),
    "resnet_generator_light": (32, 32, 3),
    "mnist_generator_light": (28, 28, 1),
    "digits_generator": (8, 8, 1),
}


def random_images(name, batch, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(size=(batch, *IMAGE_SHAPES[name])), jnp.float32)


def build(name, **settings):
    channels = IMAGE_SHAPES[name][-1]
    return (build_classifier(name, 10, **settings) if name in CLASSIFIERS
            else build_generator(name, channels, **settings))  # fmt: skip


def initialised(name):
    network = build(name)
    return network, *jax.jit(network.init)(jax.random.key(0), random_images(name, 1))


def assert_close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 272_762),
        ("resnet20_wide", 26_800_154),
        # As in https://github.com/kuangliu/pytorch-cifar, which robust training is compared on.
        ("resnet18", 11_173_962),
        ("resnet20_svhn", 272_858),
        ("mnist_cnn", 83_466),
        # 4*4*1*16+16 + 4*4*16*32+32 + 1568*100+100 + 100*10+10: that of Wong et al.
        ("mnist_cnn_strided", 166_406),
        # 1*16+16 + 16*8+8 + 4*4*8*32+32 + 4*4*32*64+64 + 3136*256+256 + 256*10+10.
        ("certifiable_cnn", 842_770),
        # 4*4*1*16+16 + 4*4*16*32+32 + 128*100+100 + 100*10+10.
        ("certifiable_cnn_light", 22_406),
        ("digits_cnn", 56_554),
        ("resnet_generator", 7_892_099),
        ("resnet_generator_svhn", 7_892_099),
        ("mnist_generator", 413_504),
        ("digits_generator", 111_681),
        # 27*16+32, one block of 2*(144*16+32), 144*3+3.
        ("resnet_generator_small", 5_571),
        # 27*32+64, 288*64+128, two blocks of 2*(576*64+128), 576*32+64, 288*3+3.
        ("resnet_generator_light", 186_819),
    ],
)
def test_parameter_counts(name, count):
    params, _ = jax.eval_shape(build(name).init, jax.random.key(0), random_images(name, 1))
    assert count_params(params) == count


def test_every_name_is_tested():
    assert set(IMAGE_SHAPES) == {*CLASSIFIERS, *GENERATORS}


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("train", [False, True])
def test_logits_have_one_column_per_class(name, train):
    network, images = build_classifier(name, 100), random_images(name, 2)
    params, batch_stats = jax.eval_shape(network.init, jax.random.key(0), images)
    logits, new = jax.eval_shape(lambda p, s, x: network.apply(p, s, x, train=train), params, batch_stats, images)
    assert logits.shape == (2, 100)
    assert logits.dtype == jnp.float32
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, batch_stats)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("size", [(8, 12), (16, 4)])
def test_noise_is_of_the_shape_of_the_images(name, size):
    network, images = build_generator(name, 3), jnp.zeros((2, *size, 3))
    params, batch_stats = jax.eval_shape(network.init, jax.random.key(0), images)
    noise, _ = jax.eval_shape(lambda p, s, x: network.apply(p, s, x, train=True), params, batch_stats, images)
    assert noise.shape == images.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_generator", "digits_generator"])
def test_noise_is_in_range_and_of_the_shape_of_the_images(name):
    network, params, batch_stats = initialised(name)
    params = jax.tree.map(lambda leaf: 100 * leaf, params)
    noise, _ = jax.jit(network.apply, static_argnames="train")(params, batch_stats, random_images(name, 4), train=True)
    assert noise.shape == (4, *IMAGE_SHAPES[name])
    assert noise.dtype == jnp.float32
    assert 0.5 < float(jnp.max(jnp.abs(noise))) <= 1


@pytest.mark.parametrize("name", ["digits_cnn", "digits_generator"])
def test_eval_output_does_not_depend_on_the_batch(name):
    network, params, batch_stats = initialised(name)
    images = random_images(name, 4)
    apply = jax.jit(network.apply, static_argnames="train")
    outputs, after = apply(params, batch_stats, images, train=False)
    alone, _ = apply(params, batch_stats, jnp.concatenate([images[:1], images[:3] * 0]), train=False)
    assert_close(outputs[0], alone[0])
    jax.tree.map(np.testing.assert_array_equal, after, batch_stats)

    trained, updated = apply(params, batch_stats, images, train=True)
    other, _ = apply(params, batch_stats, jnp.concatenate([images[:1], images[:3] * 0]), train=True)
    assert np.max(np.abs(trained[0] - other[0])) > 1e-4
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), updated, batch_stats)))
    assert jax.tree.structure(updated) == jax.tree.structure(batch_stats)


def test_running_statistics_keep_their_share_of_the_old():
    assert layers.batch_norm(train=True, axis_name=None)().momentum == 0.997
    kept = 0.99
    network, params, batch_stats = initialised("mnist_generator")
    images = random_images("mnist_generator", 4)
    update = jax.jit(lambda stats: network.apply(params, stats, images, train=True)[1])
    once = update(batch_stats)
    twice = update(once)
    batch = jax.tree.map(lambda new, old: (new - kept * old) / (1 - kept), once, batch_stats)
    assert_close(twice, jax.tree.map(lambda old, b: kept * old + (1 - kept) * b, once, batch), 1e-6)


def test_without_batch_norm_there_are_no_statistics():
    network, params, batch_stats = initialised("mnist_cnn")
    assert batch_stats == {}
    apply = jax.jit(network.apply, static_argnames="train")
    outputs = [apply(params, {}, random_images("mnist_cnn", 2), train=train) for train in (False, True)]
    assert [stats for _, stats in outputs] == [{}, {}]
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])


@pytest.mark.parametrize(
    "name",
    [
        "tiny_classifier",
        "tiny_generator",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("digits_cnn", "digits_generator")),
    ],
)
def test_statistics_are_global_over_the_axis(name):
    # Far from zero mean, where a variance in float32 is least exact.
    images = 0.9 + 0.1 * random_images("digits_cnn", 16)
    network = {"tiny_classifier": tiny_networks.build_classifier, "tiny_generator": tiny_networks.build_generator}.get(
        name, functools.partial(build, name)
    )()
    params, batch_stats = jax.jit(network.init)(jax.random.key(0), images[:1])

    def loss(params, images, axis_name):
        outputs, stats = network.apply(params, batch_stats, images, train=True, axis_name=axis_name)
        return jnp.mean(jnp.sin(3 * outputs)), (outputs, stats)

    def gradient(images, axis_name=None):
        grads, aux = jax.grad(loss, has_aux=True)(params, images, axis_name)
        return (jax.lax.pmean(grads, axis_name) if axis_name else grads), *aux

    grads, outputs, stats = jax.jit(gradient)(images)
    split = jax.jit(jax.vmap(lambda x: gradient(x, "batch"), axis_name="batch", out_axes=(None, 0, None)))
    mapped = split(images.reshape(4, 4, *images.shape[1:]))
    assert_close(mapped[1].reshape(outputs.shape), outputs)
    assert_close(mapped[2], stats)
    assert_close(mapped[0], grads, 1e-4)


def test_eval_ignores_the_axis():
    network, params, batch_stats = initialised("digits_cnn")
    images = random_images("digits_cnn", 2)
    apply = jax.jit(network.apply, static_argnames=("train", "axis_name"))
    outputs, _ = apply(params, batch_stats, images, train=False, axis_name="no such axis")
    np.testing.assert_array_equal(outputs, apply(params, batch_stats, images, train=False)[0])


def test_pixels_are_mapped_to_minus_one_to_one():
    # At 1/2 the input of the network is zero, and with biases at their initial zero so is the output.
    network, params, _ = initialised("mnist_cnn")
    grey = jnp.full((1, 28, 28, 1), 0.5)
    logits, _ = network.apply(params, {}, grey, train=False)
    np.testing.assert_array_equal(logits, jnp.zeros((1, 10)))
    shifted, _ = network.apply(params, {}, jnp.ones((1, 28, 28, 1)), train=False)
    assert float(jnp.max(jnp.abs(shifted))) > 0.1


def test_biases_before_batch_norm_have_no_gradient():
    network, params, batch_stats = initialised("mnist_generator")
    images = random_images("mnist_generator", 4)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, batch_stats, images, train=True)[0] ** 2)))(params)
    assert float(jnp.max(jnp.abs(grads["bias_0"]))) == 0
    assert float(jnp.max(jnp.abs(grads["bias_1"]))) == 0
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(grads) if leaf.ndim == 4)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_generator"])
def test_only_output_layers_have_a_bias(name):
    _, params, _ = initialised(name)
    biased = [module for module in params if "bias" in params[module] and "BatchNorm" not in module]
    assert len(biased) == 1


def test_same_arguments_give_the_same_network():
    assert build_classifier("resnet20", 10) is build_classifier("resnet20", 10)
    assert build_generator("resnet_generator", 3) is build_generator("resnet_generator", 3)


def test_penalty_through_pooling():
    """The pooling of the MNIST classifier has the second derivatives of the gradient penalty, in both modes."""
    network, params, _ = initialised("mnist_cnn")
    images = random_images("mnist_cnn", 2)
    tangent = jnp.ones_like(images)

    def loss(params, images):
        return jnp.sum(jax.nn.log_softmax(network.apply(params, {}, images, train=True)[0])[:, 0])

    @jax.jit
    def both(params, images):
        _, forward = jax.jvp(lambda x: jax.grad(loss)(params, x), (images,), (tangent,))
        reverse = jax.grad(lambda p: jnp.vdot(jax.grad(loss, 1)(p, images), tangent))(params)
        return forward, reverse

    assert_close(*both(params, images), 1e-3)


@pytest.mark.parametrize(
    ("kernel_init", "low", "high"), [(layers.keeps_interval_width, 0.6, 1.6), (layers.he_normal, 1e3, np.inf)]
)
def test_intervals_keep_their_width_at_the_start(kernel_init, low, high):
    """Against interval arithmetic in float64: the mean width after six layers, in units of the image's."""
    rng = np.random.default_rng(0)
    centre, radius = rng.uniform(-1, 1, 300), np.full(300, 0.2)
    for key in jax.random.split(jax.random.key(0), 6):
        kernel = np.float64(kernel_init(key, (300, 300), jnp.float32))
        centre, radius = centre @ kernel, radius @ abs(kernel)
        lower, upper = np.maximum(centre - radius, 0), np.maximum(centre + radius, 0)
        centre, radius = (upper + lower) / 2, (upper - lower) / 2
    assert low < radius.mean() / 0.2 < high


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"'resnet17'.*resnet20, resnet20_wide.*digits_cnn"):
        build_classifier("resnet17", 10)
    with pytest.raises(UserError, match=r"'gan'.*resnet_generator.*digits_generator"):
        build_generator("gan", 3)
    with pytest.raises(UserError, match="got 0"):
        build_classifier("resnet20", 0)
    with pytest.raises(UserError, match="got 0"):
        build_generator("resnet_generator", 0)


def test_wrong_images_are_refused():
    generator = build_generator("digits_generator", 1)
    with pytest.raises(UserError, match=r"divisible by 4.*\(1, 6, 8, 1\)"):
        generator.init(jax.random.key(0), jnp.zeros((1, 6, 8, 1)))
    with pytest.raises(UserError, match="uint8"):
        generator.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.uint8))
    with pytest.raises(UserError, match=r"\(8, 8, 1\)"):
        generator.init(jax.random.key(0), jnp.zeros((8, 8, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_cnn_strided", "digits_cnn", "mnist_generator", "mnist_generator_light"])
def test_bfloat16_is_inside_alone(name):
    """Parameters, statistics, gradients and outputs are float32, and no perturbation is rounded away at the border."""
    network, params, batch_stats = initialised(name)
    rounded = build(name, dtype="bfloat16")
    assert jax.tree.map(jnp.shape, rounded.init(jax.random.key(0), random_images(name, 1))) == jax.tree.map(
        jnp.shape, (params, batch_stats)
    )
    images = 0.5 + 0.5 * random_images(name, 8)

    def loss(network, params, images):
        outputs, stats = network.apply(params, batch_stats, images, train=True)
        return jnp.mean(jnp.sin(outputs)), (outputs, stats)

    def gradients(network, images):
        return jax.jit(jax.grad(functools.partial(loss, network), argnums=(0, 1), has_aux=True))(params, images)

    (_, images_exact), (outputs, _) = gradients(network, images)
    (inexact, images_inexact), (outputs_16, stats_16) = gradients(rounded, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((inexact, images_inexact, outputs_16, stats_16))} == {
        jnp.dtype(jnp.float32)
    }
    assert not np.array_equal(outputs, outputs_16)
    np.testing.assert_allclose(outputs_16, outputs, atol=0.1 * float(jnp.max(jnp.abs(outputs))))
    angle = jnp.vdot(images_exact, images_inexact) / (jnp.linalg.norm(images_exact) * jnp.linalg.norm(images_inexact))
    assert angle > 0.95
    # A step of 1/1000 near 1.0 is a quarter of the distance of two neighbours in bfloat16.
    outputs_there, _ = rounded.apply(params, batch_stats, images * 0 + 1.0, train=False)
    assert np.any(rounded.apply(params, batch_stats, images * 0 + 0.999, train=False)[0] != outputs_there)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist_generator", "digits_generator"])
def test_what_is_computed_anew_is_the_same(name):
    network, params, batch_stats = initialised(name)
    again = build_generator(name, IMAGE_SHAPES[name][-1], remat=True)
    images = random_images(name, 4)
    started = jax.jit(again.init)(jax.random.key(0), images)
    chex.assert_trees_all_close(started, (params, batch_stats))

    def loss(network, params):
        noise, stats = network.apply(params, batch_stats, images, train=True)
        return jnp.mean(jnp.sin(3 * noise)), stats

    gradients = [jax.grad(functools.partial(loss, network), has_aux=True) for network in (network, again)]
    (gradient, stats), (gradient_again, stats_again) = (jax.jit(function)(params) for function in gradients)
    assert_close(gradient_again, gradient)
    assert_close(stats_again, stats)
    assert ["remat" in str(jax.make_jaxpr(function)(params)) for function in gradients] == [False, True]


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="unknown precision 'float16'; choose from float32, bfloat16"):
        build_classifier("digits_cnn", 10, dtype="float16")


@pytest.mark.parametrize("shape", [(3, 8, 6, 2), (2, 7, 5, 3), (1, 1, 1, 1)])
def test_max_pool_is_that_of_flax(shape):
    def pooled(function, x, cotangent):
        return jax.vjp(function, x)[0], jax.vjp(function, x)[1](cotangent)[0]

    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    flax = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2), padding="SAME")
    cotangent = jnp.cos(jnp.arange(flax(x).size, dtype=jnp.float32)).reshape(flax(x).shape)
    for ours, theirs in zip(pooled(layers.max_pool, x, cotangent), pooled(flax, x, cotangent), strict=True):
        assert np.array_equal(ours, theirs)


CONFIG = """
import flax.linen as nn
from robust_gan import networks
from robust_gan.config import *


class Linear(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


networks.register_classifier("linear", lambda *, num_classes, train, axis_name, dtype: Linear(num_classes))


def get_config(method="pgd"):
    return Config(
        data=DataConfig(train_size=64, validation_size=32), classifier=ClassifierConfig(network="linear"),
        adversary=AdversaryConfig(name=method, pgd=PGDConfig(num_steps=1)), batch_size=16, num_steps=4,
        validation=ValidationConfig(every=4, pgd_steps=1),
    )
"""


@pytest.mark.slow
def test_a_config_trains_a_network_of_its_own_and_whoever_registers_it_loads_it(tmp_path, launch):
    (tmp_path / "config.py").write_text(CONFIG)
    try:
        ended = launch("train", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run", "--num_devices=1")
        assert ended.code == 0, ended.err
        logits_fn = checkpoint.load_classifier(tmp_path / "run")
        assert logits_fn(jnp.zeros((3, 8, 8, 1))).shape == (3, 10)
    finally:
        networks.classifiers.MODULES.pop("linear", None)
        networks.classifiers.build_classifier.cache_clear()
        networks.inference.classify.cache_clear()
    ended = launch("evaluate", f"--checkpoint={tmp_path}/run")
    assert (ended.code, ended.out) == (2, "")
    assert "unknown classifier 'linear'; choose from resnet20, " in ended.err


def test_a_registered_network_replaces_its_namesake_and_no_network_of_the_package():
    def module(features):
        return lambda *, num_classes, train, axis_name, dtype: nn.Dense(features)

    try:
        for features in (3, 4):
            networks.register_classifier("mine", module(features))
            params, _ = build_classifier("mine", 10).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
            assert params["kernel"].shape == (1, features)
    finally:
        networks.classifiers.MODULES.pop("mine")
    with pytest.raises(UserError, match="there is a classifier 'resnet20' already: choose another name"):
        networks.register_classifier("resnet20", module(3))

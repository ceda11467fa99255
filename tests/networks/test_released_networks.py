"""The paper's networks start from the weights of the released code and pad as it does, by references in float64."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from robust_gan.networks import build_classifier, build_generator, classifiers, generators

SEEDS = 20
CIFAR, MNIST = (32, 32, 3), (28, 28, 1)
PAIRS = {
    "resnet20": CIFAR,
    "resnet_generator": CIFAR,
    "resnet20_svhn": CIFAR,
    "resnet_generator_svhn": CIFAR,
    "mnist_cnn": MNIST,
    "mnist_generator": MNIST,
    "resnet20_wide": CIFAR,
}
NAMES = [pytest.param(name, marks=() if name == "mnist_cnn" else pytest.mark.slow) for name in PAIRS]


def truncated(deviation):
    """What TensorFlow's truncated_normal draws from."""
    return stats.truncnorm(-2, 2, scale=deviation)


def scaled(scale, fan_in):
    """What TensorFlow's variance_scaling_initializer draws from: the deviation is the one before truncation."""
    return truncated(math.sqrt(scale / fan_in) / 0.87962566103423978)


def released(name, path, shape):
    """What the released code draws a kernel from, which flax stores as [h, w, C, features] or [C, features]."""
    field, inputs, outputs = math.prod(shape[:-2]), *shape[-2:]
    if "svhn" in name:
        return truncated(0.02)
    if name == "mnist_cnn":
        limit = math.sqrt(6 / (field * (inputs + outputs)))
        return stats.uniform(-limit, 2 * limit)
    if name == "mnist_generator":
        return scaled(2, field * (outputs if "TransposedConv" in path else inputs))
    if name == "resnet_generator" and ("TransposedConv" in path or outputs == 3):
        return truncated(0.02)
    return scaled(1, field * inputs)


@functools.partial(jax.jit, static_argnames="init")
def moments(init, keys, images):
    """Returns the first, second and fourth moment and the extremes of every leaf, by seed."""

    def of_seed(key):
        params, _ = init(key, images)
        measure = lambda w: jnp.stack([jnp.mean(w), jnp.mean(w**2), jnp.mean(w**4), jnp.min(w), jnp.max(w)])  # noqa: E731
        return jax.tree.map(measure, params)

    return jax.lax.map(of_seed, keys)


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_are_those_of_the_released_networks(name):
    network = build_classifier(name, 10) if name in classifiers.CLASSIFIERS else build_generator(name, PAIRS[name][-1])
    images = jax.ShapeDtypeStruct((1, *PAIRS[name]), jnp.float32)
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0), images)
    measured = moments(network.init, jax.random.split(jax.random.key(7), SEEDS), jnp.zeros(images.shape))
    leaves = zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(measured), strict=True)
    for (keys, leaf), by_seed in leaves:
        path, by_seed = jax.tree_util.keystr(keys), np.float64(by_seed)
        if "kernel" not in path:
            expected = 1.0 if "scale" in path else 0.0
            np.testing.assert_array_equal(by_seed[:, :2], expected, err_msg=path)
            continue
        expected, count = released(name, path, leaf.shape), SEEDS * math.prod(leaf.shape)
        mean, second, fourth = by_seed[:, :3].mean(0)
        low, high = expected.support()
        # Five deviations of each estimate.
        assert abs(mean) < 5 * expected.std() / math.sqrt(count), path
        for order, value in ((2, second), (4, fourth)):
            spread = math.sqrt(expected.moment(2 * order) - expected.moment(order) ** 2)
            assert value == pytest.approx(expected.moment(order), abs=5 * spread / math.sqrt(count), rel=1e-5), path
        assert low * (1 + 1e-6) <= by_seed[:, 3].min() < 0.97 * low, path
        assert 0.97 * high < by_seed[:, 4].max() <= high * (1 + 1e-6), path


def convolved(images, kernel, stride, padding):
    """The cross-correlation, in float64, of images padded by (low, high) on both axes."""
    size, padded = kernel.shape[0], np.pad(images, ((0, 0), padding, padding, (0, 0)))
    rows, columns = ((extent - size) // stride + 1 for extent in padded.shape[1:3])
    output = np.zeros((len(images), rows, columns, kernel.shape[3]))
    for i in range(size):
        for j in range(size):
            window = padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            output += window @ kernel[i, j]
    return output


def spread_out(images, kernel):
    """TensorFlow's transposed convolution of stride 2, "same": the transpose of the one that takes its output here."""
    count, rows, columns, _ = images.shape
    size, low = kernel.shape[0], (kernel.shape[0] - 2) // 2
    output = np.zeros((count, 2 * rows + size, 2 * columns + size, kernel.shape[3]))
    for i in range(size):
        for j in range(size):
            # flax stores the kernel flipped.
            output[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] += images @ kernel[size - 1 - i, size - 1 - j]
    return output[:, low : low + 2 * rows, low : low + 2 * columns]


def expected_response(name, images, kernel, strides):
    size, stride = kernel.shape[0], strides[0]
    if size == 1:
        return convolved(images, kernel, stride, (0, 0))
    if "mnist" in name and stride == 2:
        return convolved(images, kernel, stride, (1, 2))  # "same", for 5x5 and an even size.
    return convolved(images, kernel, stride, (size // 2, size // 2))


@pytest.mark.parametrize("name", NAMES)
def test_strided_convolutions_pad_as_the_released_networks_do(name):
    """Every convolution inside a network answers impulses, at the corners and in the middle, as the reference does."""
    known = classifiers.MODULES if name in classifiers.CLASSIFIERS else generators.MODULES
    size = {"num_classes": 10} if name in classifiers.CLASSIFIERS else {"channels": PAIRS[name][-1]}
    module = known[name](train=False, axis_name=None, **size)
    images = jnp.zeros((3, *PAIRS[name]))
    variables = jax.jit(module.init)(jax.random.key(0), images)
    answers = {}

    def with_impulses(call, args, kwargs, context):
        layer = context.module
        if context.method_name != "__call__" or not isinstance(layer, nn.Conv | generators.TransposedConv):
            return call(*args, **kwargs)
        height, width = args[0].shape[1:3]
        places = jnp.array([[0, 0], [height - 1, width - 1], [height // 2, width // 2 - 1]])
        impulses = jnp.zeros_like(args[0]).at[jnp.arange(3), places[:, 0], places[:, 1], 0].set(1.0)
        output = call(impulses, **kwargs)
        answers["/".join(layer.path)] = impulses, layer.variables["params"], output
        return output

    @jax.jit
    def respond(variables):
        with nn.intercept_methods(with_impulses):
            module.apply(variables, images)
        return dict(answers)

    strided = 0
    for path, (impulses, params, output) in respond(variables).items():
        kernel, impulses = np.float64(params["kernel"]), np.float64(impulses)
        if "TransposedConv" in path:
            expected = spread_out(impulses, kernel)
        else:
            stride = impulses.shape[1] // output.shape[1]
            strided += stride == 2 and kernel.shape[0] > 1
            expected = expected_response(name, impulses, kernel, (stride, stride))
        np.testing.assert_allclose(output, expected, atol=1e-6 * np.abs(kernel).max(), err_msg=path)
        if kernel.shape[0] > 1:  # A projection of stride 2 skips the odd pixels.
            assert np.any(expected != 0, axis=(1, 2, 3)).all(), path
    assert strided == {"mnist_cnn": 0}.get(name, 2)


@pytest.mark.parametrize("name", [*NAMES, "digits_generator"])
def test_batch_norm_adds_the_released_epsilon(name):
    """Before training the running variance is 1, so that BatchNorm divides by sqrt(1 + epsilon)."""
    known = classifiers.MODULES if name in classifiers.CLASSIFIERS else generators.MODULES
    size = {"num_classes": 10} if name in classifiers.CLASSIFIERS else {"channels": 1}
    module = known[name](train=False, axis_name=None, **size)
    images, factors = jnp.ones((1, 8, 8, 1)), []
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, float("bias" not in str(path) and "mean" not in str(path))), variables
    )

    def with_ones(call, args, kwargs, context):
        if context.method_name != "__call__" or "BatchNorm" not in type(context.module).__name__:
            return call(*args, **kwargs)
        output = call(jnp.ones_like(args[0]), **kwargs)
        factors.append(output[0, 0, 0, 0])
        return output

    @jax.jit
    def respond(variables):
        with nn.intercept_methods(with_ones):
            module.apply(variables, images)
        return list(factors)

    epsilon = 1e-3 if name == "mnist_generator" else 1e-5
    measured = np.float64(respond(variables))
    assert len(measured) == {"mnist_cnn": 0, "mnist_generator": 3}.get(name, len(measured))
    np.testing.assert_allclose(measured, 1 / math.sqrt(1 + epsilon), rtol=2e-7)

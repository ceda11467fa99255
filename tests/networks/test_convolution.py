"""The convolutions equal those of lax in value and in every derivative, and compile to the fast layout on CPU."""

import functools
import math
import os
import re
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from robust_gan.networks import build_classifier, build_generator
from robust_gan.networks.convolution import convolution, transposed_convolution

LAYOUT = ("NHWC", "HWIO", "NHWC")
plain_convolution = functools.partial(lax.conv_general_dilated, dimension_numbers=LAYOUT)


def arrays(size, kernel_size, batch=2, channels=3, features=4):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, size, size, channels))
    kernel = rng.normal(size=(kernel_size, kernel_size, channels, features)) / kernel_size
    return jnp.asarray(images, jnp.float32), jnp.asarray(kernel, jnp.float32)


def derivatives(conv, images, kernel):
    """Returns value, gradient, Hessian product forward over reverse and reverse over reverse."""

    def loss(images, kernel):
        return jnp.sum(jnp.sin(conv(images, kernel)))

    gradient = jax.grad(loss, (0, 1))

    def squared_norm(images, kernel):
        return sum(jnp.vdot(leaf, leaf) for leaf in gradient(images, kernel))

    tangents = (jnp.cos(images), jnp.cos(kernel))
    return (
        conv(images, kernel),
        gradient(images, kernel),
        jax.jvp(gradient, (images, kernel), tangents)[1],
        jax.grad(squared_norm, (0, 1))(images, kernel),
    )


def assert_same_derivatives(ours, plain, images, kernel):
    ours, plain = jax.jit(
        lambda images, kernel: (derivatives(ours, images, kernel), derivatives(plain, images, kernel))
    )(images, kernel)
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * (1e-6 + np.max(np.abs(expected))))


# (size, kernel, stride): all that the networks use, at a smaller batch and fewer channels.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "kernel_size", "stride"),
    [(32, 3, 1), (32, 3, 2), (32, 1, 1), (32, 1, 2), (8, 3, 1), (8, 3, 2), (4, 3, 1), (14, 5, 1), (28, 5, 2)],
)
def test_value_and_derivatives_are_those_of_lax(size, kernel_size, stride):
    def conv(operation):
        return lambda images, kernel: operation(images, kernel, (stride, stride), "SAME")

    assert_same_derivatives(conv(convolution), conv(plain_convolution), *arrays(size, kernel_size))


@pytest.mark.parametrize(("size", "kernel_size"), [(8, 3), (4, 3), (7, 5)])
def test_transposed_value_and_derivatives_are_those_of_lax(size, kernel_size):
    def plain(images, kernel):
        return lax.conv_transpose(images, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT)

    assert_same_derivatives(transposed_convolution, plain, *arrays(size, kernel_size))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("kernel_size", [1, 2, 5])
@pytest.mark.parametrize("stride", [1, 3])
def test_transposed_pads_as_lax(kernel_size, stride, padding):
    images, kernel = arrays(4, kernel_size)
    expected = lax.conv_transpose(images, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)
    actual = transposed_convolution(images, kernel, (stride, stride), padding)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@hypothesis.given(
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    kernel_size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    image_dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    kernel_dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from(["SAME", "VALID", ((0, 3), (2, 1)), ((-1, 2), (4, 0))]),
)
@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
def test_any_convolution_agrees_with_lax(size, kernel_size, strides, image_dilation, kernel_dilation, padding):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*kernel_size, 3, 2)), jnp.float32)

    if isinstance(padding, str):
        image_dilation = (1, 1)

    def conv(operation):
        return lambda images, kernel: operation(
            images, kernel, strides, padding, lhs_dilation=image_dilation, rhs_dilation=kernel_dilation
        )

    expected = jax.eval_shape(conv(plain_convolution), images, kernel)
    hypothesis.assume(0 not in expected.shape)
    assert_same_derivatives(conv(convolution), conv(plain_convolution), images, kernel)


@pytest.mark.parametrize("in_axes", [(0, None), (0, 0), (3, None)])
def test_vmap_agrees_with_a_loop(in_axes):
    images, kernel = arrays(6, 3, channels=4)
    stacks = [
        array if axis is None else jnp.stack([array * (i + 1) for i in range(4)], axis)
        for array, axis in zip((images, kernel), in_axes, strict=True)
    ]

    def gradient(images, kernel):
        return jax.grad(lambda i, k: jnp.sum(jnp.sin(convolution(i, k))), (0, 1))(images, kernel)

    mapped = jax.vmap(gradient, in_axes)(*stacks)
    grad_of_map = jax.grad(lambda i, k: jnp.sum(jnp.sin(jax.vmap(convolution, in_axes)(i, k))), (0, 1))(*stacks)
    for n in range(4):
        one = [s if axis is None else jnp.take(s, n, axis) for s, axis in zip(stacks, in_axes, strict=True)]
        for actual, expected in zip(mapped, gradient(*one), strict=True):
            np.testing.assert_allclose(actual[n], expected, rtol=1e-4, atol=1e-4)
    for whole, parts, axis in zip(grad_of_map, mapped, in_axes, strict=True):
        expected = jnp.sum(parts, 0) if axis is None else jnp.moveaxis(parts, 0, axis)
        np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-4)


def test_other_platforms_get_what_jax_would_write():
    images, kernel = arrays(8, 3)

    def gradient(conv):
        return jax.jit(jax.grad(lambda i, k: jnp.sum(jnp.sin(conv(i, k, (2, 2), "SAME"))), (0, 1)))

    def convolutions(conv):
        module = jax.export.export(gradient(conv), platforms=["cuda"])(images, kernel).mlir_module()
        return sorted(re.findall(r"= stablehlo.convolution\(.*?\) (dim_numbers = .*?) loc", module))

    assert convolutions(convolution) == convolutions(plain_convolution)
    assert len(convolutions(convolution)) == 3


def scanned_step(step, length=2):
    return lambda state: lax.scan(lambda carry, _: (step(carry), None), state, length=length)[0]


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the layout is for XLA:CPU")
@pytest.mark.parametrize(
    ("names", "shape", "order"),
    [
        (("resnet20", "digits_generator"), (32, 32, 3), "gradient"),
        (("mnist_cnn", "mnist_generator"), (28, 28, 1), "penalty"),
        (("digits_cnn", "digits_generator"), (8, 8, 1), "penalty"),
    ],
)
def test_scanned_gradient_compiles_to_canonical_convolutions(names, shape, order):
    """A generator's step through the classifier, and the product with the mixed second derivative, in a loop body."""
    classifier, generator = build_classifier(names[0], 10), build_generator(names[1], shape[-1])
    images = jnp.linspace(0, 1, 2 * math.prod(shape)).reshape(2, *shape)
    theta, theta_stats = jax.eval_shape(classifier.init, jax.random.key(0), images)
    phi, phi_stats = jax.eval_shape(generator.init, jax.random.key(0), images)
    theta_stats, phi_stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), (theta_stats, phi_stats))

    def loss(theta, phi):
        noise, _ = generator.apply(phi, phi_stats, images, train=True)
        logits, _ = classifier.apply(theta, theta_stats, images + 0.03 * noise, train=True)
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    def step(players):
        theta, phi = players
        v = jax.grad(loss, 1)(theta, phi)
        if order == "gradient":
            return jax.tree.map(jnp.subtract, theta, jax.grad(loss, 0)(theta, phi)), jax.tree.map(jnp.add, phi, v)
        _, product = jax.jvp(lambda phi: jax.grad(loss, 0)(theta, phi), (phi,), (v,))
        return jax.tree.map(jnp.subtract, theta, product), phi

    text = jax.jit(scanned_step(step)).lower((theta, phi)).compile().as_text()
    lines = [line for line in text.splitlines() if " convolution(" in line]
    assert len(lines) > 15
    assert [line for line in lines if "dim_labels=b01f_01io->b01f" not in line or "rhs_reversal" in line] == []


def test_empty_batch_and_mixed_types():
    images, kernel = arrays(8, 3)
    assert convolution(images[:0], kernel).shape == (0, 8, 8, 4)
    gradient = jax.grad(lambda k: jnp.sum(convolution(images[:0], k)))(kernel)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(kernel))
    assert convolution(images.astype(jnp.bfloat16), kernel).dtype == jnp.float32


def test_what_is_not_supported_is_refused():
    images, kernel = arrays(8, 3)
    with pytest.raises(ValueError, match=r"got \(2, 8, 8, 3\) and \(3, 3, 4, 3\)"):
        convolution(images, kernel.swapaxes(2, 3))
    with pytest.raises(ValueError, match="groups"):
        convolution(images, kernel, feature_group_count=3)
    with pytest.raises(ValueError, match="layout"):
        convolution(images, kernel, dimension_numbers=("NCHW", "OIHW", "NCHW"))
    with pytest.raises(ValueError, match="'CIRCULAR'"):
        transposed_convolution(images, kernel, padding="CIRCULAR")


def test_without_the_primitive_they_are_those_of_lax():
    """In a process of its own, because a primitive that is there stays there."""
    program = """
import sys
import jax, jax.numpy as jnp
from jax import lax
from robust_gan.networks import build_classifier
from robust_gan.networks.convolution import convolution, transposed_convolution
assert "robust_gan.networks._contraction" not in sys.modules
x, k = jnp.arange(2 * 6 * 6 * 3.0).reshape(2, 6, 6, 3), jnp.arange(3 * 3 * 3 * 4.0).reshape(3, 3, 3, 4)
layout = ("NHWC", "HWIO", "NHWC")
plain = lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=layout)
assert (convolution(x, k, (2, 2)) == plain).all()
assert (transposed_convolution(x, k) == lax.conv_transpose(x, k, (2, 2), "SAME", dimension_numbers=layout)).all()
text = str(jax.make_jaxpr(jax.grad(lambda k: convolution(x, k).sum()))(k))
assert "conv_general_dilated" in text and "convolution_contraction" not in text
"""
    environment = {**os.environ, "ROBUST_GAN_PLAIN_CONVOLUTIONS": "1"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr

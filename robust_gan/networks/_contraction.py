"""The primitive behind `convolution.py`, which keeps the fast kernel of XLA:CPU, forward and backward, in loops too.

XLA:CPU has a fast kernel for convolutions written NHWC x HWIO -> NHWC without a reversed window, and rewrites others to
that form only in the entry computation. JAX writes the gradients of a convolution in other layouts, so that in the body
of a `scan`, `fori_loop` or `cond` they fall to a naive loop: 7 to 17 times slower for the images, 50 to 65 times for
the kernel. The kernel gradient of `lax.conv_transpose` is slow everywhere.

A convolution is a form with three slots, linear in each: `sum(output * conv(images, kernel))`. One primitive contracts
any two of the slots and returns the third; its derivatives are the primitive again, with other slots. So forward mode,
reverse mode and every nesting of them stay within it, and one lowering per slot writes all of them in the fast layout.
On other platforms the lowering is JAX's own, for which their libraries are tuned.

References:
    The JAX authors, "JAX Internals: primitives", https://docs.jax.dev/en/latest/jax-primitives.html
    jax-ml/jax issue 12868, "Convolution gradients are slow within loops on CPU".
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Pair = tuple[int, int]
LAYOUT = ("NHWC", "HWIO", "NHWC")

_SLOTS = ("images", "kernel", "output")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The static side of a convolution; all fields are pairs (height, width)."""

    image_size: Pair
    kernel_size: Pair
    output_size: Pair
    strides: Pair
    padding: tuple[Pair, Pair]
    image_dilation: Pair
    kernel_dilation: Pair
    precision: Any


def bind(images: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns the convolution of images `[B, H, W, C]` with a kernel of the same dtype."""
    return _contraction_p.bind(images, kernel, result="output", geometry=geometry)


def pair(values: Sequence[int]) -> Pair:
    first, second = values
    return int(first), int(second)


def dilated(sizes: Sequence[int], dilations: Sequence[int]) -> Pair:
    return pair([(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)])


def _canonical(first: jax.Array, second: jax.Array, *, result: str, geometry: Geometry) -> jax.Array:
    """Contracts two slots by one convolution NHWC x HWIO -> NHWC, the layout that XLA:CPU is fast in."""
    strides, image_dilation, kernel_dilation = geometry.strides, geometry.image_dilation, geometry.kernel_dilation
    lows = [low for low, _ in geometry.padding]
    images = dilated(geometry.image_size, image_dilation)
    kernels = dilated(geometry.kernel_size, kernel_dilation)
    outputs = dilated(geometry.output_size, strides)
    conv = functools.partial(lax.conv_general_dilated, dimension_numbers=LAYOUT, precision=geometry.precision)
    if result == "output":
        return conv(first, second, strides, geometry.padding, lhs_dilation=image_dilation, rhs_dilation=kernel_dilation)
    if result == "images":
        kernel, output = first, second
        # Flip first, then transpose: a flip next to the convolution would be folded into a reversed window.
        kernel = lax.transpose(lax.rev(kernel, (0, 1)), (0, 1, 3, 2))
        lows = [k - 1 - low for k, low in zip(kernels, lows, strict=True)]
        highs = [i - 1 + k - o - low for i, k, o, low in zip(images, kernels, outputs, lows, strict=True)]
        pads = list(zip(lows, highs, strict=True))
        return conv(output, kernel, image_dilation, pads, lhs_dilation=strides, rhs_dilation=kernel_dilation)
    # The channels play the batch and the batch plays the channels; the other slot is a kernel as large as an image. It
    # must not be the larger one, or the compiler swaps the two and reverses the window; swapped, the result is flipped.
    images_, output = first, second
    if math.prod(geometry.output_size) > math.prod(geometry.image_size):
        lows = [k - 1 - low for k, low in zip(kernels, lows, strict=True)]
        highs = [k - 1 + i - o - low for i, k, o, low in zip(images, kernels, outputs, lows, strict=True)]
        pads = list(zip(lows, highs, strict=True))
        lhs, rhs = lax.transpose(output, (3, 1, 2, 0)), lax.transpose(images_, (1, 2, 0, 3))
        kernel = conv(lhs, rhs, kernel_dilation, pads, lhs_dilation=strides, rhs_dilation=image_dilation)
        return lax.rev(lax.transpose(kernel, (1, 2, 3, 0)), (0, 1))
    highs = [k - 1 + o - i - low for i, k, o, low in zip(images, kernels, outputs, lows, strict=True)]
    pads = list(zip(lows, highs, strict=True))
    lhs, rhs = lax.transpose(images_, (3, 1, 2, 0)), lax.transpose(output, (1, 2, 0, 3))
    kernel = conv(lhs, rhs, kernel_dilation, pads, lhs_dilation=image_dilation, rhs_dilation=strides)
    return lax.transpose(kernel, (1, 2, 0, 3))


def _on_cpu(first: jax.Array, second: jax.Array, *, result: str, geometry: Geometry) -> jax.Array:
    """Contracts two slots by `_canonical`; those of a kernel's gradient are brought into order by themselves.

    XLA:CPU fuses a transposition with all that its operand is computed from, back to the last convolutions, and so
    computes that anew in an order that is bad for the cache. A function that is not inlined takes its operands from
    memory, where they are anyway.
    """
    contract = functools.partial(_canonical, result=result, geometry=geometry)
    if result != "kernel":
        return contract(first, second)
    with set_xla_metadata(inlineable="false"):
        return jax.jit(contract)(first, second)


def _native(first: jax.Array, second: jax.Array, *, result: str, geometry: Geometry) -> jax.Array:
    """Contracts two slots as JAX itself writes a convolution and its gradients."""

    def conv(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return _canonical(images, kernel, result="output", geometry=geometry)

    if result == "output":
        return conv(first, second)
    like = jax.ShapeDtypeStruct(_shape(first, second, result, geometry), first.dtype)
    if result == "images":
        return jax.linear_transpose(lambda images: conv(images, first), like)(second)[0]
    return jax.linear_transpose(lambda kernel: conv(first, kernel), like)(second)[0]


def _shape(first: Any, second: Any, result: str, geometry: Geometry) -> tuple[int, ...]:
    if result == "output":
        return (first.shape[0], *geometry.output_size, second.shape[3])
    if result == "images":
        return (second.shape[0], *geometry.image_size, first.shape[2])
    return (*geometry.kernel_size, first.shape[3], second.shape[3])


def _operands(result: str) -> tuple[str, str]:
    first, second = (slot for slot in _SLOTS if slot != result)
    return first, second


def _contract(operands: dict[str, jax.Array], result: str, geometry: Geometry) -> jax.Array:
    first, second = _operands(result)
    return _contraction_p.bind(operands[first], operands[second], result=result, geometry=geometry)


def _transpose_first(cotangent: jax.Array, _: Any, second: jax.Array, *, result: str, geometry: Geometry) -> jax.Array:
    slots = _operands(result)
    return _contract({result: cotangent, slots[1]: second}, slots[0], geometry)


def _transpose_second(cotangent: jax.Array, first: jax.Array, _: Any, *, result: str, geometry: Geometry) -> jax.Array:
    slots = _operands(result)
    return _contract({result: cotangent, slots[0]: first}, slots[1], geometry)


def _batch(arrays: Sequence[jax.Array], axes: Sequence[Any], *, result: str, geometry: Geometry) -> Any:
    slots = _operands(result)
    if "kernel" in slots and axes[slots.index("kernel")] is None:
        # One kernel for all: the mapped axis joins the batch, and the result is this primitive again.
        operands = dict(zip(slots, arrays, strict=True))
        (mapped,) = (slot for slot in slots if slot != "kernel")
        stacked = jnp.moveaxis(operands[mapped], axes[slots.index(mapped)], 0)
        operands[mapped] = lax.collapse(stacked, 0, 2)
        flat = _contract(operands, result, geometry)
        return flat.reshape(*stacked.shape[:2], *flat.shape[1:]), 0
    contract = functools.partial(_canonical, result=result, geometry=geometry)
    return jax.vmap(contract, in_axes=tuple(axes))(*arrays), 0


_contraction_p = Primitive("convolution_contraction")


@functools.partial(jax.jit, static_argnames=("result", "geometry"))
def _evaluate(first: jax.Array, second: jax.Array, *, result: str, geometry: Geometry) -> jax.Array:
    return _contraction_p.bind(first, second, result=result, geometry=geometry)


def _abstract(first: Any, second: Any, *, result: str, geometry: Geometry) -> jax.core.ShapedArray:
    return jax.core.ShapedArray(_shape(first, second, result, geometry), first.dtype)


_contraction_p.def_impl(_evaluate)
_contraction_p.def_abstract_eval(_abstract)
ad.defbilinear(_contraction_p, _transpose_first, _transpose_second)
batching.primitive_batchers[_contraction_p] = _batch
mlir.register_lowering(_contraction_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
mlir.register_lowering(_contraction_p, mlir.lower_fun(_native, multiple_results=False))

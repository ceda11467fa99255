"""Convolutions in the layout NHWC x HWIO, as `flax.linen.Conv` calls them, with a fast gradient on CPUs.

They use a primitive of our own (`_contraction.py`), for which JAX promises the least. The environment variable
`ROBUST_GAN_PLAIN_CONVOLUTIONS=1` leaves it out: then they are those of `jax.lax`, as fast on a GPU or TPU, and up to 65
times slower in the loops of a CPU.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

PLAIN = os.environ.get("ROBUST_GAN_PLAIN_CONVOLUTIONS", "") not in ("", "0")
if not PLAIN:
    from robust_gan.networks import _contraction

Pair = tuple[int, int]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(
    lhs: ArrayLike,
    rhs: ArrayLike,
    window_strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """Returns the 2-D convolution of images with a kernel, like `lax.conv_general_dilated` in the layout NHWC x HWIO.

    The arguments are those of `lax.conv_general_dilated`, so that `flax.linen.Conv(conv_general_dilated=convolution)`
    works and keeps its parameters. Groups are not supported.

    Args:
        lhs: Images `[B, H, W, C]`.
        rhs: Kernel `[kernel height, kernel width, C, features]`.
        window_strides: Strides (height, width).
        padding: "SAME" (as TensorFlow pads: the odd pixel at the end), "VALID", or ((low, high), (low, high)).
        lhs_dilation: Dilation of the images; `None` is none.
        rhs_dilation: Dilation of the kernel; `None` is none.
        dimension_numbers: `None`, or the numbers that stand for NHWC x HWIO -> NHWC.
        feature_group_count: 1.
        batch_group_count: 1.
        precision: As in `lax.conv_general_dilated`.

    Returns:
        `[B, H', W', features]`.

    Raises:
        ValueError: An array's shape, groups, another layout, or a padding in words for dilated images.

    Guarantees:
        test_value_and_derivatives_are_those_of_lax
        test_any_convolution_agrees_with_lax
        test_scanned_gradient_compiles_to_canonical_convolutions

    >>> import jax.numpy as jnp
    >>> convolution(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16)), (2, 2)).shape
    (2, 4, 4, 16)
    """
    images, kernel = jnp.asarray(lhs), jnp.asarray(rhs)
    _check_arguments(images, kernel, dimension_numbers, feature_group_count, batch_group_count)
    image_dilation, kernel_dilation = _pair(lhs_dilation or (1, 1)), _pair(rhs_dilation or (1, 1))
    strides = _pair(window_strides)
    image_size, kernel_size = _pair(images.shape[1:3]), _pair(kernel.shape[:2])
    image_extents = _dilated(image_size, image_dilation)
    kernel_extents = _dilated(kernel_size, kernel_dilation)
    low_high = _pad_widths(padding, image_dilation, image_extents, kernel_extents, strides)
    if kernel_size == (1, 1) and image_dilation == (1, 1) and low_high == ((0, 0), (0, 0)):
        # A 1x1 kernel never sees what the strides skip; without it all three convolutions are dense.
        images = lax.slice(images, (0, 0, 0, 0), images.shape, (1, *strides, 1))
        image_size = image_extents = _pair(images.shape[1:3])
        strides = (1, 1)
    sizes = zip(image_extents, kernel_extents, strides, low_high, strict=True)
    output_size = _pair([max(0, (size + sum(pads) - window) // stride + 1) for size, window, stride, pads in sizes])
    precision = lax.Precision(precision) if isinstance(precision, str) else precision
    dtype = jnp.promote_types(images.dtype, kernel.dtype)
    images, kernel = images.astype(dtype), kernel.astype(dtype)
    if PLAIN:
        return lax.conv_general_dilated(
            images, kernel, strides, low_high, image_dilation, kernel_dilation, _LAYOUT, precision=precision
        )
    geometry = _contraction.Geometry(
        image_size, kernel_size, output_size, strides, low_high, image_dilation, kernel_dilation, precision
    )
    return _contraction.bind(images, kernel, geometry)


def transposed_convolution(
    images: ArrayLike, kernel: ArrayLike, strides: Sequence[int] = (2, 2), padding: str = "SAME"
) -> jax.Array:
    """Returns the 2-D transposed convolution of images with a kernel, like `lax.conv_transpose` in NHWC x HWIO.

    Args:
        images: `[B, H, W, C]`.
        kernel: `[kernel height, kernel width, C, features]`, not flipped (`transpose_kernel=False`).
        strides: The factors (height, width) by which the image grows.
        padding: "SAME" (output H * stride) or "VALID".

    Returns:
        `[B, H * stride, W * stride, features]` with "SAME".

    Raises:
        ValueError: If the padding is another word, and as `convolution` does.

    Guarantees:
        test_transposed_value_and_derivatives_are_those_of_lax

    >>> import jax.numpy as jnp
    >>> transposed_convolution(jnp.ones((2, 4, 4, 16)), jnp.ones((3, 3, 16, 3))).shape
    (2, 8, 8, 3)
    """
    if padding not in ("SAME", "VALID"):
        raise ValueError(f'padding must be "SAME" or "VALID", got {padding!r}')
    pads = []
    for size, stride in zip(jnp.shape(kernel)[:2], strides, strict=True):
        if padding == "SAME":
            total = size + stride - 2
            low = size - 1 if stride > size - 1 else -(-total // 2)
        else:
            total = size + stride - 2 + max(size - stride, 0)
            low = size - 1
        pads.append((low, total - low))
    return convolution(images, kernel, (1, 1), pads, lhs_dilation=strides)


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return int(first), int(second)


def _dilated(sizes: Sequence[int], dilations: Sequence[int]) -> Pair:
    return _pair([(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)])


def _check_arguments(
    images: jax.Array, kernel: jax.Array, dimension_numbers: Any, feature_group_count: int, batch_group_count: int
) -> None:
    if images.ndim != 4 or kernel.ndim != 4 or images.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"expected images [B, H, W, C] and a kernel [h, w, C, features], got {images.shape} and {kernel.shape}"
        )
    if feature_group_count != 1 or batch_group_count != 1:
        raise ValueError(f"groups are not supported, got {feature_group_count=} and {batch_group_count=}")
    canonical = lax.conv_dimension_numbers(images.shape, kernel.shape, _LAYOUT)
    if dimension_numbers is not None:
        asked = lax.conv_dimension_numbers(images.shape, kernel.shape, dimension_numbers)
        if asked != canonical:
            raise ValueError(f"the only layout is NHWC x HWIO -> NHWC, got {dimension_numbers}")


def _pad_widths(
    padding: str | Sequence[Sequence[int]],
    image_dilation: Pair,
    image_extents: Pair,
    kernel_extents: Pair,
    strides: Pair,
) -> tuple[Pair, Pair]:
    """Returns the padding in numbers: ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        if image_dilation != (1, 1):
            raise ValueError(f"dilated images need a padding in numbers, got {padding!r}; see transposed_convolution")
        padding = lax.padtype_to_pads(image_extents, kernel_extents, strides, padding)
    top_bottom, left_right = padding
    return _pair(top_bottom), _pair(left_right)

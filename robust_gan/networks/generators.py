"""The generators: images in [0, 1] to noise in [-1, 1] of the same shape.

References:
    Huaxia Wang, Chun-Nam Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019,
        https://openreview.net/forum?id=S1lIMn05F7, experiments.
    Justin Johnson, Alexandre Alahi, Li Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution",
        supplementary material (the shape of the residual generator).
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from robust_gan.config.imports import is_function_name
from robust_gan.errors import UserError
from robust_gan.networks import external
from robust_gan.networks.layers import (
    Conv,
    Dtype,
    Initializer,
    ResidualBlock,
    TransposedConv,
    as_network,
    batch_norm,
    he_normal,
    he_normal_transposed,
    inner_dtype,
    lecun_normal,
    saving_memory,
    small_normal,
)
from robust_gan.types import Network


class ResNetGenerator(nn.Module):
    """Convolutions down, residual blocks, transposed convolutions up, and tanh.

    Attributes:
        channels: Channels of the images and of the noise, C.
        train: Whether BatchNorm uses the statistics of the batch.
        axis_name: The mapped axis of the devices, or `None`.
        dtype: In which all but the first and the last layer are computed; None for float32.
        remat: Whether a backward pass computes the inside of each layer and block anew, to save memory.
        widths: Channels at full size, at half, and so on; one stride-2 convolution less than widths.
        num_blocks: Number of residual blocks, at the smallest size.
        project_first: Whether the first residual block has a projection.
        momentum: Share of the old running statistics that a BatchNorm update keeps.
        kernel_init: Initialiser of the kernels but the transposed and the last ones, which are `small_normal`.
        padding: Of the 3x3 convolutions on the way down and in the blocks, see `ResidualBlock`.

    >>> import jax, jax.numpy as jnp
    >>> net = ResNetGenerator(channels=3, train=False, axis_name=None)
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))[0].shape
    (2, 32, 32, 3)
    """

    channels: int
    train: bool
    axis_name: str | None
    dtype: Dtype | None = None
    remat: bool = False
    widths: tuple[int, ...] = (64, 128, 256)
    num_blocks: int = 6
    project_first: bool = True
    momentum: float = 0.997
    kernel_init: Initializer = lecun_normal
    padding: int | str = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns noise `[B, H, W, C]` in [-1, 1] for pixels `[B, H, W, C]` in [-1, 1]."""
        norm = batch_norm(train=self.train, axis_name=self.axis_name, momentum=self.momentum, dtype=self.dtype)
        keep = saving_memory(self, remat=self.remat)
        down = functools.partial(Conv, kernel_init=self.kernel_init, padding=self.padding)
        inner = functools.partial(ResidualBlock, kernel_init=self.kernel_init, padding=self.padding, dtype=self.dtype)
        for level, width in enumerate(self.widths):
            strides, dtype = ((1, 1), None) if level == 0 else ((2, 2), self.dtype)
            x = keep(lambda _, x: nn.relu(norm()(down(width, (3, 3), strides, dtype=dtype)(x))), x)  # noqa: B023
        for block in range(self.num_blocks):
            # The first block projects though the shape does not need it: the released parameter count does.
            project = self.project_first and block == 0
            x = keep(lambda _, x: inner(self.widths[-1], norm, project=project)(x), x)  # noqa: B023
        for width in reversed(self.widths[:-1]):
            x = keep(lambda _, x: nn.relu(norm()(TransposedConv(width, dtype=self.dtype)(x))), x)  # noqa: B023
        x = x.astype(jnp.float32)
        return nn.tanh(Conv(self.channels, (3, 3), use_bias=True, kernel_init=small_normal)(x))


class MnistGenerator(nn.Module):
    """Two 5x5 convolutions of stride 2, two transposed ones, and tanh.

    Its BatchNorm has the constants that TensorFlow has where none are given, as the released code gives none.

    Attributes:
        channels: Channels of the images and of the noise, C.
        train: Whether BatchNorm uses the statistics of the batch.
        axis_name: The mapped axis of the devices, or `None`.
        dtype: In which all but the first and the last layer are computed; None for float32.
        remat: Whether a backward pass computes the inside of each layer and block anew, to save memory.

    >>> import jax, jax.numpy as jnp
    >>> net = MnistGenerator(channels=1, train=False, axis_name=None)
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, 28, 28, 1)))[0].shape
    (2, 28, 28, 1)
    """

    channels: int
    train: bool
    axis_name: str | None
    dtype: Dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns noise `[B, H, W, C]` in [-1, 1] for pixels `[B, H, W, C]` in [-1, 1]."""
        norm = batch_norm(
            train=self.train, axis_name=self.axis_name, momentum=0.99, epsilon=1e-3, dtype=self.dtype
        )  # fmt: skip
        up = functools.partial(TransposedConv, kernel_size=(5, 5), kernel_init=he_normal_transposed)
        keep = saving_memory(self, remat=self.remat)
        for level, features in enumerate((64, 128)):
            # These biases are in the released parameter count. BatchNorm takes them out again, so their gradient is
            # zero but for rounding; stopping it makes it zero, and the optimiser leaves them alone.
            bias = lax.stop_gradient(self.param(f"bias_{level}", nn.initializers.zeros_init(), (features,)))
            conv = functools.partial(Conv, features, (5, 5), (2, 2), dtype=self.dtype if level else None)
            x = keep(lambda _, x: nn.relu(norm()(conv()(x) + bias.astype(x.dtype))), x)  # noqa: B023
        x = keep(lambda _, x: nn.relu(norm()(up(64, dtype=self.dtype)(x))), x).astype(jnp.float32)
        return nn.tanh(up(self.channels)(x))


# Not of the paper: the released initial weights and padding are not for them. Their runs are some hundred or thousand
# steps long: a momentum of 0.997 would leave the running statistics near their start.
_OURS = functools.partial(
    ResNetGenerator, project_first=False, momentum=0.95, kernel_init=he_normal, padding="SAME"
)  # fmt: skip

MODULES: dict[str, Callable[..., nn.Module]] = {
    "resnet_generator": ResNetGenerator,
    "resnet_generator_svhn": functools.partial(ResNetGenerator, kernel_init=small_normal),
    "mnist_generator": MnistGenerator,
    # A 150th, an eighth and a quarter of the work of the released ones.
    "resnet_generator_small": functools.partial(_OURS, widths=(16,), num_blocks=1),
    "resnet_generator_light": functools.partial(_OURS, widths=(32, 64), num_blocks=2),
    "mnist_generator_light": functools.partial(_OURS, widths=(16, 32), num_blocks=1),
    "digits_generator": functools.partial(_OURS, widths=(32, 64), num_blocks=1),
}
"""Modules by name; `registry.py` adds to them."""

GENERATORS = tuple(MODULES)
"""The names that `build_generator` knows."""


@external.cached_by_name
def build_generator(name: str, channels: int, dtype: str = "float32", *, remat: bool = False) -> Network:
    """Returns a generator: images `[B, H, W, C]` in [0, 1] to noise `[B, H, W, C]` in [-1, 1].

    The same arguments return the same object, so that compiled functions are reused. Height and width of the
    images must be divisible by 4.

    Args:
        name: One of `GENERATORS`. "resnet_generator" is the released one for CIFAR, "resnet_generator_svhn" for SVHN
            (which starts from other weights), "mnist_generator" for MNIST, "resnet_generator_small",
            "resnet_generator_light" and "mnist_generator_light" are ones with less work, "digits_generator" a small one
            for 8x8 images. Or `package.module:function`, a function that takes any of `channels`, `dtype` and `remat`
            and returns a `Network`.
        channels: Channels of the images, C.
        dtype: `float32`, or `bfloat16`: parameters, statistics, the first and the last layer stay float32, so that the
            noise is not rounded.
        remat: Whether a backward pass computes the inside of each layer and block anew, to save memory.

    Raises:
        UserError: If the name is unknown, the function cannot be used, or the number of channels is not positive; and,
            from the network, if the images do not have a height and width divisible by 4.

    Guarantees:
        test_parameter_counts
        test_initial_weights_are_those_of_the_released_networks
        test_strided_convolutions_pad_as_the_released_networks_do
        test_noise_is_in_range_and_of_the_shape_of_the_images

    >>> import jax, jax.numpy as jnp
    >>> generator = build_generator("digits_generator", 1)
    >>> images = jnp.full((2, 8, 8, 1), 0.5)
    >>> params, batch_stats = generator.init(jax.random.key(0), images)
    >>> noise, batch_stats = generator.apply(params, batch_stats, images, train=True)
    >>> noise.shape
    (2, 8, 8, 1)
    """
    if is_function_name(name):
        return external.load(name, "generator", channels=channels, dtype=dtype, remat=remat)
    if name not in MODULES:
        raise UserError(f"unknown generator {name!r}; choose from {', '.join(MODULES)}")
    if channels < 1:
        raise UserError(f"channels must be at least 1, got {channels}")
    return as_network(
        functools.partial(MODULES[name], channels=channels, dtype=inner_dtype(dtype), remat=remat), size_multiple=4
    )


def generator_for(image_shape: Sequence[int]) -> str:
    """Returns the name of the generator that is made for images of a shape.

    Args:
        image_shape: `(H, W, C)`.

    Raises:
        UserError: Height or width cannot be halved twice.

    >>> generator_for((8, 8, 1)), generator_for((28, 28, 1)), generator_for((32, 32, 3))
    ('digits_generator', 'mnist_generator', 'resnet_generator')
    """
    height, width, channels = image_shape
    if height % 4 or width % 4:
        raise UserError(f"a generator needs images whose height and width are divisible by 4, not {height} x {width}")
    if max(height, width) <= 16:
        return "digits_generator"
    return "mnist_generator" if channels == 1 else "resnet_generator"

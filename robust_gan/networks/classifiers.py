"""The classifiers (the released code's discriminators): images in [0, 1] to logits.

References:
    Huaxia Wang, Chun-Nam Yu, "A Direct Approach to Robust Deep Learning Using Adversarial Networks", ICLR 2019,
        https://openreview.net/forum?id=S1lIMn05F7, experiments.
    Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Deep Residual Learning for Image Recognition", section 4.2.
    Eric Wong, Leslie Rice, J. Zico Kolter, "Fast is Better than Free: Revisiting Adversarial Training", ICLR 2020,
        https://github.com/locuslab/fast_adversarial, `MNIST/mnist_net.py` (the strided network).
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_gan.config.imports import is_function_name
from robust_gan.errors import UserError
from robust_gan.networks import external
from robust_gan.networks.layers import (
    Conv,
    Dtype,
    Initializer,
    ResidualBlock,
    as_network,
    batch_norm,
    glorot_uniform,
    he_normal,
    inner_dtype,
    keeps_interval_width,
    lecun_normal,
    max_pool,
    small_normal,
)
from robust_gan.types import Network


class ResNet(nn.Module):
    """A convolution, stages of residual blocks, the mean over the image, and a dense layer; by default ResNet-20.

    In the released networks the first block of every stage has a projection, also where the shape does not need one,
    and the first convolution has 16 channels at every width: their parameter counts fix both.

    Attributes:
        num_classes: Number of classes, K.
        train: Whether BatchNorm uses the statistics of the batch.
        axis_name: The mapped axis of the devices, or `None`.
        dtype: In which all but the first and the last layer are computed; None for float32.
        stem: Channels of the first convolution.
        widths: Channels of the stages; each but the first halves height and width.
        blocks: Residual blocks in each stage.
        project_first: Whether the first stage has a projection too.
        norm_first: BatchNorm and ReLU after the first convolution (CIFAR-10) or after the last block (SVHN).
        kernel_init: Initialiser of all kernels.
        padding: Of the 3x3 convolutions, see `ResidualBlock`.

    >>> import jax, jax.numpy as jnp
    >>> net = ResNet(num_classes=10, train=False, axis_name=None)
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))[0].shape
    (2, 10)
    """

    num_classes: int
    train: bool
    axis_name: str | None
    dtype: Dtype | None = None
    stem: int = 16
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: int = 3
    project_first: bool = True
    norm_first: bool = True
    kernel_init: Initializer = lecun_normal
    padding: int | str = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits `[B, K]` for pixels `[B, H, W, C]` in [-1, 1]."""
        norm = batch_norm(train=self.train, axis_name=self.axis_name, dtype=self.dtype)
        x = Conv(self.stem, (3, 3), kernel_init=self.kernel_init)(x)
        if self.norm_first:
            x = nn.relu(norm()(x))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                project = block == 0 and (stage > 0 or self.project_first)
                x = ResidualBlock(
                    width, norm, stride, project, kernel_init=self.kernel_init, padding=self.padding, dtype=self.dtype
                )(x)
        if not self.norm_first:
            x = nn.relu(norm()(x))
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=self.kernel_init)(x)


class MnistCNN(nn.Module):
    """Two 5x5 convolutions with bias, ReLU and pooling, and a dense layer; no BatchNorm.

    Attributes:
        num_classes: Number of classes, K.
        train: Has no effect.
        axis_name: Has no effect.
        dtype: In which all but the first and the last layer are computed; None for float32.

    >>> import jax, jax.numpy as jnp
    >>> net = MnistCNN(num_classes=10, train=False, axis_name=None)
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, 28, 28, 1)))[0].shape
    (2, 10)
    """

    num_classes: int
    train: bool
    axis_name: str | None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits `[B, K]` for pixels `[B, H, W, C]` in [-1, 1]."""
        for features, dtype in ((32, None), (64, self.dtype)):
            x = nn.relu(Conv(features, (5, 5), use_bias=True, kernel_init=glorot_uniform, dtype=dtype)(x))
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=glorot_uniform)(x)


class StridedCNN(nn.Module):
    """Convolutions, some of them strided, with bias and ReLU, and two dense layers; no BatchNorm.

    By default a twentieth of the work of `MnistCNN`, with which Wong et al. reach the same robustness on MNIST.

    Attributes:
        num_classes: Number of classes, K.
        train: Has no effect.
        axis_name: Has no effect.
        dtype: In which all but the first and the last layer are computed; None for float32.
        convolutions: Features, kernel size and stride of each convolution.
        hidden: Size of the hidden dense layer.
        kernel_init: Initialiser of all kernels.

    >>> import jax, jax.numpy as jnp
    >>> net = StridedCNN(num_classes=10, train=False, axis_name=None)
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, 28, 28, 1)))[0].shape
    (2, 10)
    """

    num_classes: int
    train: bool
    axis_name: str | None
    dtype: Dtype | None = None
    convolutions: tuple[tuple[int, int, int], ...] = ((16, 4, 2), (32, 4, 2))
    hidden: int = 100
    kernel_init: Callable[..., jax.Array] = he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits `[B, K]` for pixels `[B, H, W, C]` in [-1, 1]."""
        conv = functools.partial(Conv, use_bias=True, kernel_init=self.kernel_init)
        for index, (features, size, stride) in enumerate(self.convolutions):
            x = nn.relu(conv(features, (size, size), (stride, stride), dtype=self.dtype if index else None)(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype)(x)).astype(jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=self.kernel_init)(x)


class DigitsCNN(nn.Module):
    """Three 3x3 convolutions with BatchNorm and ReLU, the mean over the image, and a dense layer, for 8x8 images.

    Attributes:
        num_classes: Number of classes, K.
        train: Whether BatchNorm uses the statistics of the batch.
        axis_name: The mapped axis of the devices, or `None`.
        dtype: In which all but the first and the last layer are computed; None for float32.

    >>> import jax, jax.numpy as jnp
    >>> net = DigitsCNN(num_classes=10, train=False, axis_name=None)
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, 8, 8, 1)))[0].shape
    (2, 10)
    """

    num_classes: int
    train: bool
    axis_name: str | None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits `[B, K]` for pixels `[B, H, W, C]` in [-1, 1]."""
        # Runs on digits are a few hundred steps long: 0.997 would leave the running statistics near their start.
        norm = batch_norm(train=self.train, axis_name=self.axis_name, momentum=0.95, dtype=self.dtype)
        for features, stride, dtype in ((32, 1, None), (64, 2, self.dtype), (64, 1, self.dtype)):
            x = nn.relu(norm()(Conv(features, (3, 3), (stride, stride), dtype=dtype)(x)))
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=he_normal)(x)


MODULES: dict[str, Callable[..., nn.Module]] = {
    "resnet20": ResNet,
    "resnet20_wide": functools.partial(ResNet, widths=(160, 320, 640)),
    "resnet20_svhn": functools.partial(ResNet, norm_first=False, kernel_init=small_normal),
    # Not of the paper: the released initial weights and padding are not for it.
    "resnet18": functools.partial(
        ResNet,
        stem=64,
        widths=(64, 128, 256, 512),
        blocks=2,
        project_first=False,
        kernel_init=he_normal,
        padding="SAME",
    ),
    "mnist_cnn": MnistCNN,
    "mnist_cnn_strided": StridedCNN,
    "certifiable_cnn": functools.partial(
        StridedCNN,
        # Two layers on single pixels can learn a threshold, which leaves nothing of the noise on black and white.
        convolutions=((16, 1, 1), (8, 1, 1), (32, 4, 2), (64, 4, 2)),
        hidden=256,
        kernel_init=keeps_interval_width,
    ),
    "certifiable_cnn_light": functools.partial(StridedCNN, kernel_init=keeps_interval_width),
    "digits_cnn": DigitsCNN,
}
"""Modules by name; `registry.py` adds to them."""

CLASSIFIERS = tuple(MODULES)
"""The names that `build_classifier` knows."""


@external.cached_by_name
def build_classifier(name: str, num_classes: int, dtype: str = "float32") -> Network:
    """Returns a classifier: images `[B, H, W, C]` in [0, 1] to float32 logits `[B, K]`.

    The same arguments return the same object, so that compiled functions are reused.

    Args:
        name: One of `CLASSIFIERS`. "resnet20" is the released network for CIFAR-10 ("resnet18_2" there),
            "resnet20_wide" ten times as wide, "resnet18" the one that later work compares on, "resnet20_svhn" and
            "mnist_cnn" the released one for SVHN and MNIST, "mnist_cnn_strided" a light one for MNIST, and
            "certifiable_cnn" and "certifiable_cnn_light" are for the loss `ibp` (these four fix the size of the images
            when they are initialised), "digits_cnn" a small one for 8x8 images. Or `package.module:function`, taking
            any of `num_classes` and `dtype` and returning a `Network`.
        num_classes: Number of classes, K.
        dtype: `float32`, or `bfloat16`: parameters, statistics, the first and the last layer stay float32, so that no
            perturbation is rounded away and the losses are exact.

    Raises:
        UserError: If the name is unknown, the function cannot be used, or the number of classes is not positive.

    Guarantees:
        test_parameter_counts
        test_initial_weights_are_those_of_the_released_networks
        test_strided_convolutions_pad_as_the_released_networks_do
        test_eval_output_does_not_depend_on_the_batch
        test_statistics_are_global_over_the_axis

    >>> import jax, jax.numpy as jnp
    >>> classifier = build_classifier("digits_cnn", 10)
    >>> images = jnp.full((2, 8, 8, 1), 0.5)
    >>> params, batch_stats = classifier.init(jax.random.key(0), images)
    >>> logits, batch_stats = classifier.apply(params, batch_stats, images, train=False)
    >>> logits.shape
    (2, 10)
    """
    if is_function_name(name):
        return external.load(name, "classifier", num_classes=num_classes, dtype=dtype)
    if name not in MODULES:
        raise UserError(f"unknown classifier {name!r}; choose from {', '.join(MODULES)}")
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, got {num_classes}")
    return as_network(functools.partial(MODULES[name], num_classes=num_classes, dtype=inner_dtype(dtype)))

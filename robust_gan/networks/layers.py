"""Layers of the networks: convolutions, BatchNorm and the residual block; and `as_network`.

References:
    Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Deep Residual Learning for Image Recognition", section 3.3;
        "Delving Deep into Rectifiers", section 2.2 (initialisation).
    Xavier Glorot, Yoshua Bengio, "Understanding the Difficulty of Training Deep Feedforward Neural Networks", section
        4.2.1 (initialisation, uniform).
    Yann LeCun, Leon Bottou, Genevieve Orr, Klaus-Robert Mueller, "Efficient BackProp", section 4.6 (initialisation).
    Sergey Ioffe, Christian Szegedy, "Batch Normalization", section 3.
    Zhouxing Shi et al., "Fast Certified Robust Training with Short Warmup", NeurIPS 2021, section 3.2 (initialisation
        for interval bounds).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from robust_gan.errors import UserError
from robust_gan.networks.batch_norm import MOMENTUM, BatchNorm
from robust_gan.networks.convolution import convolution, transposed_convolution
from robust_gan.types import BatchStats, Network, Params

Initializer = jax.nn.initializers.Initializer
Dtype = jax.typing.DTypeLike

# Normal distributions are truncated at two deviations, which leaves 0.88 of the deviation. Variance scaling makes up
# for it, in flax as in TensorFlow, so that the kernels have the deviation of its formula; `small_normal` does not, in
# either: its kernels have the deviation 0.0176.
he_normal: Initializer = nn.initializers.he_normal()
lecun_normal: Initializer = nn.initializers.lecun_normal()
glorot_uniform: Initializer = nn.initializers.glorot_uniform()
small_normal: Initializer = nn.initializers.truncated_normal(stddev=0.02)
# TensorFlow keeps the kernel of a transposed convolution as [h, w, features, C], and takes what is in the place of the
# inputs for its fan in: h * w * features.
he_normal_transposed: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def keeps_interval_width(key: jax.Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> jax.Array:
    """Draws a kernel after which interval bounds are as wide, on average, as before it and a ReLU.

    A sum of n products widens intervals n E|w| times, and a ReLU halves them: the kernel is normal of the deviation
    sqrt(2 pi) / n, at which E|w| is 2 / n. He's deviation, sqrt(2 / n), would widen them about sqrt(n) / 2 times.

    Args:
        key: A JAX random key.
        shape: Of the kernel; all axes but the last are summed over, which makes n.
        dtype: Of the kernel.

    >>> kernel = keeps_interval_width(jax.random.key(0), (100, 500))
    >>> round(float(100 * abs(kernel).mean() / 2), 2)
    1.0
    """
    return math.sqrt(2 * math.pi) / math.prod(shape[:-1]) * jax.random.normal(key, shape, dtype)


# A bias before BatchNorm has no gradient but rounding noise, which Adam turns into full steps that differ from one
# number of devices to another: convolutions have none unless asked.
Conv = functools.partial(nn.Conv, use_bias=False, conv_general_dilated=convolution, kernel_init=he_normal)


class TransposedConv(nn.Module):
    """A transposed convolution that doubles height and width, without bias.

    Attributes:
        features: Channels of the output.
        kernel_size: (height, width).
        kernel_init: Initialiser of the kernel `[height, width, C, features]`.
        dtype: In which it is computed; None for that of its arguments.

    >>> import jax, jax.numpy as jnp
    >>> output, _ = TransposedConv(3).init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 16)))
    >>> output.shape
    (2, 8, 8, 3)
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    kernel_init: Initializer = small_normal
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, 2H, 2W, features]` for `[B, H, W, C]`."""
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        return transposed_convolution(*promote_dtype(x, kernel, dtype=self.dtype))


def max_pool(x: jax.Array) -> jax.Array:
    """Returns the largest of each 2x2 pixels; an odd last row or column is pooled by itself.

    What `nn.max_pool` with padding "SAME" returns. The gradient of that is a scatter, for which XLA:CPU has a naive
    loop, 9 to 18 times as slow as that of two maxima. Where pixels are equal, this one divides it among them.

    Args:
        x: `[B, H, W, C]`.

    Returns:
        `[B, ceil(H / 2), ceil(W / 2), C]`.

    Guarantees:
        `test_max_pool_is_that_of_flax`.

    >>> max_pool(jnp.arange(6.0).reshape(1, 2, 3, 1)).ravel().tolist()
    [4.0, 5.0]
    """
    height, width = x.shape[1] % 2, x.shape[2] % 2
    x = jnp.pad(x, ((0, 0), (0, height), (0, width), (0, 0)), constant_values=-jnp.inf) if height or width else x
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def batch_norm(
    *, train: bool, axis_name: str | None, momentum: float = 0.997, epsilon: float = 1e-5, dtype: Dtype | None = None
) -> Callable[..., BatchNorm]:
    """Returns a constructor of BatchNorm layers whose statistics are those of the batch over all of `axis_name`.

    Args:
        train: Whether to normalise with the statistics of the batch (and update the running ones) or the running ones.
        axis_name: The mapped axis of the devices, or `None`.
        momentum: Share of the old running statistics that an update keeps.
        epsilon: Added to the variance.
        dtype: Of the output; the statistics are float32 whatever it is.

    >>> batch_norm(train=True, axis_name=None)().momentum
    0.997
    """
    return functools.partial(
        BatchNorm,
        use_running_average=not train,
        axis_name=axis_name,
        momentum=momentum,
        epsilon=epsilon,
        dtype=dtype,
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, a shortcut around them, and ReLU.

    Attributes:
        features: Channels of the output.
        norm: Constructor of BatchNorm layers; see `batch_norm`.
        stride: Stride of the first convolution and of the shortcut.
        project: Whether the shortcut is a 1x1 convolution with BatchNorm, or the identity.
        kernel_init: Initialiser of the kernels.
        padding: Of the 3x3 convolutions: 1 is one pixel on every side, at stride 2 too; "SAME" is, at stride 2 and an
            even size, one pixel at the end alone.
        dtype: In which the convolutions are computed; None for that of their arguments.

    >>> import jax, jax.numpy as jnp
    >>> block = ResidualBlock(32, batch_norm(train=True, axis_name=None), stride=2, project=True)
    >>> block.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 16)))[0].shape
    (2, 4, 4, 32)
    """

    features: int
    norm: Callable[..., BatchNorm]
    stride: int = 1
    project: bool = False
    kernel_init: Initializer = he_normal
    padding: int | str = "SAME"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, H / stride, W / stride, features]` for `[B, H, W, C]`."""
        strides = (self.stride, self.stride)
        conv = functools.partial(Conv, self.features, kernel_init=self.kernel_init, dtype=self.dtype)
        y = conv((3, 3), strides, padding=self.padding)(x)
        y = nn.relu(self.norm()(y))
        y = conv((3, 3), padding=self.padding)(y)
        y = self.norm()(y)
        if self.project:
            x = conv((1, 1), strides, name="projection")(x)
            x = self.norm(name="projection_norm")(x)
        return nn.relu(x + y)


def saving_memory(module: nn.Module, *, remat: bool) -> Callable[..., jax.Array]:
    """Returns how a network calls its layers: `(layer, x) -> layer(module, x)`.

    Args:
        module: The network; the names of its parameters stay what they are.
        remat: Whether a backward pass computes the inside of the layer anew, instead of keeping it from the forward
            pass.

    >>> saving_memory(None, remat=False)(lambda module, x: 2 * x, 3)
    6
    """
    return lambda layer, x: (nn.remat(layer) if remat else layer)(module, x)


PRECISIONS = ("float32", "bfloat16")
"""In what the layers between the first and the last can be computed."""


def inner_dtype(name: str) -> Dtype | None:
    """Returns the dtype of that name; None for float32, which is that of the parameters.

    Raises:
        UserError: The name is none of `PRECISIONS`.

    >>> inner_dtype("bfloat16"), inner_dtype("float32")
    (<class 'jax.numpy.bfloat16'>, None)
    """
    if name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}; choose from {', '.join(PRECISIONS)}")
    return jnp.bfloat16 if name == "bfloat16" else None


def as_network(module: Callable[..., nn.Module], *, size_multiple: int = 1) -> Network:
    """Returns the network of a flax module, which maps pixels from [0, 1] to [-1, 1] first.

    Args:
        module: Constructor with the arguments `train` and `axis_name`.
        size_multiple: What the height and width of the images must be divisible by.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> class Sum(nn.Module):
    ...     train: bool
    ...     axis_name: str | None
    ...     def __call__(self, x):
    ...         return x.sum(axis=(1, 2, 3))
    >>> network = as_network(Sum)
    >>> params, batch_stats = network.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    >>> network.apply(params, batch_stats, jnp.ones((1, 2, 2, 1)), train=False)[0]
    Array([4.], dtype=float32)
    """

    def prepare(images: jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"images must be floats [B, H, W, C] in [0, 1], got {images.dtype} {images.shape}")
        if images.shape[1] % size_multiple or images.shape[2] % size_multiple:
            raise UserError(f"height and width must be divisible by {size_multiple}, got images {images.shape}")
        return images * 2 - 1

    def init(key: jax.Array, images: jax.Array) -> tuple[Params, BatchStats]:
        variables = module(train=False, axis_name=None).init(key, prepare(images))
        return variables.get("params", {}), variables.get("batch_stats", {})

    def apply(
        params: Params, batch_stats: BatchStats, images: jax.Array, *, train: bool, axis_name: str | None = None
    ) -> tuple[jax.Array, BatchStats]:
        variables = {"params": params, "batch_stats": batch_stats}
        net = module(train=train, axis_name=axis_name if train else None)
        if not train:
            return jnp.asarray(net.apply(variables, prepare(images))), batch_stats
        outputs, updates = net.apply(variables, prepare(images), mutable=["batch_stats"])
        return jnp.asarray(outputs), updates.get("batch_stats", {})

    def apply_both(
        params: Params, batch_stats: BatchStats, first: jax.Array, second: jax.Array, *, axis_name: str | None = None
    ) -> tuple[tuple[jax.Array, jax.Array], BatchStats]:
        def train(images: jax.Array) -> Any:
            variables = {"params": params, "batch_stats": batch_stats}
            net = module(train=True, axis_name=axis_name)
            return net.apply(variables, prepare(images), mutable=["batch_stats", MOMENTUM])

        outputs, updates = jax.vmap(train)(jnp.stack([first, second]))
        momenta = updates.get(MOMENTUM, {})
        if str(jax.tree.structure(momenta)) != str(jax.tree.structure(batch_stats)):  # Of layers that are not ours.
            logits, batch_stats = apply(params, batch_stats, first, train=True, axis_name=axis_name)
            others, batch_stats = apply(params, batch_stats, second, train=True, axis_name=axis_name)
            return (logits, others), batch_stats

        def later(old: jax.Array, new: jax.Array, momentum: jax.Array) -> jax.Array:
            """The second pass's update of what the first pass made of the old statistics."""
            return new[1] + momentum[0] * (new[0] - old)

        return (outputs[0], outputs[1]), jax.tree.map(later, batch_stats, updates.get("batch_stats", {}), momenta)

    return Network(init, apply, apply_both)

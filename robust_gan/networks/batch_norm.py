"""BatchNorm with statistics of the global batch, computed in one pass over the images and one all-reduce.

References:
    Sergey Ioffe, Christian Szegedy, "Batch Normalization", section 3.
    Tony F. Chan, Gene H. Golub, Randall J. LeVeque, "Algorithms for Computing the Sample Variance: Analysis and
        Recommendations", The American Statistician 37, 1983 (the shift; merging parts).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from robust_gan.types import get_compute_dtype

MOMENTUM = "momentum"
"""Collection in which a layer tells, if it is mutable, the momentum of each of its running statistics."""


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last, with the parameters and statistics of `flax.linen.BatchNorm`.

    The mean of the squares minus the square of the mean cancels in float32 where the mean is large beside the
    deviation. Here both moments are taken after a shift by the mean of the first image, whose distance from the mean
    is at most sqrt(B) deviations whatever the images are: so one pass is as exact as two.

    Attributes:
        use_running_average: Whether to normalise with the running statistics, or with those of the batch, which then
            update the running ones.
        axis_name: The mapped axis of the devices, or `None`.
        momentum: Share of the old running statistics that an update keeps.
        epsilon: Added to the variance.
        dtype: Of the output; None for the dtype of the arguments. The statistics are always float32.

    Guarantees:
        `test_batch_norm_is_exact_however_far_the_mean_is`, `test_batch_norm_has_the_derivatives_of_two_passes`,
        `test_batch_norm_sends_one_all_reduce_each_way`.

    >>> import jax, jax.numpy as jnp
    >>> norm = BatchNorm(use_running_average=False)
    >>> x = jnp.array([[1001.0], [1003.0]])
    >>> y, variables = norm.init_with_output(jax.random.key(0), x)
    >>> y.round(4).ravel().tolist(), sorted(variables)
    ([-1.0, 1.0], ['batch_stats', 'params'])
    """

    use_running_average: bool
    axis_name: str | None = None
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the normalised `x` `[..., C]`."""
        compute_dtype = get_compute_dtype(x.dtype)
        shape = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(shape, jnp.float32))
        running_var = self.variable("batch_stats", "var", lambda: jnp.ones(shape, jnp.float32))
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        dtype = self.dtype or jnp.result_type(x, scale)
        x = x.astype(compute_dtype)
        if self.use_running_average:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            return ((x - running_mean.value) * factor + bias).astype(dtype)
        centre = lax.stop_gradient(running_mean.value)
        mean, var = _moments(x, centre, None if self.is_initializing() else self.axis_name)
        if not self.is_initializing():
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
            for name in ("mean", "var") if self.is_mutable_collection(MOMENTUM) else ():
                self.put_variable(MOMENTUM, name, jnp.float32(self.momentum))
        factor = scale * lax.rsqrt(var + self.epsilon)
        # One array less for the backward pass to keep than of x - mean; it rounds as x itself is rounded.
        return (x * factor + (bias - mean * factor)).astype(dtype)


def _moments(x: jax.Array, centre: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance of the global batch; the nearer `centre` is to the mean, the less is rounded."""
    axes = tuple(range(x.ndim - 1))
    shift = lax.stop_gradient(jnp.mean(x[:1], axes))
    shifted = x - shift
    beyond = jnp.mean(shifted, axes)
    var = jnp.mean(jnp.square(shifted), axes) - jnp.square(beyond)
    if axis_name is None:
        return shift + beyond, _not_negative(var)
    # The devices have shifts of their own. The variance of their means, too, must not cancel, though all go into one
    # sum: its leading 8 bits, whose squares float32 adds without rounding, are summed apart from the rest.
    offset = (shift - centre) + beyond
    leading = lax.stop_gradient(lax.reduce_precision(offset, 8, 7))
    rest = offset - leading
    parts = jnp.stack([leading, rest, jnp.square(leading), leading * rest, jnp.square(rest) + var])
    leading, rest, leading_squared, product, squared = lax.pmean(parts, axis_name)
    between = (leading_squared - jnp.square(leading)) + 2 * (product - leading * rest)
    var = between + (squared - jnp.square(rest))
    return centre + (leading + rest), _not_negative(var)


def _not_negative(var: jax.Array) -> jax.Array:
    """Clips rounding errors below 0, with gradient 1 at 0, where `jnp.maximum` has 1/2."""
    return jnp.where(var < 0, 0, var)

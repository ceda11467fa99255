"""The protocols everyone speaks.

Letters in shapes: B images in a batch, H height, W width, C channels, K classes.
Images are float arrays `[B, H, W, C]` in [0, 1]; labels are int32 `[B]` in 0..K-1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

PyTree = Any
Params = PyTree
BatchStats = PyTree

LogitsFn = Callable[[jax.Array], jax.Array]
"""Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`. Normalisation of the pixels lives inside."""

LossFn = Callable[..., jax.Array]
"""Logits `[B, K]`, labels `[B]` and the attack's `loss_args`, arrays `[B, ...]`, to unreduced losses `[B]`."""


def wide_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Returns the dtype in which values of a dtype are computed: itself where it is float32 or wider, else float32.

    `jnp.promote_types` answers the same, except under `jax_numpy_dtype_promotion=strict`, where it raises.

    >>> wide_dtype(jnp.bfloat16), wide_dtype(jnp.int32), wide_dtype(jnp.float64)
    (dtype('float32'), dtype('float32'), dtype('float64'))
    """
    floating = jnp.issubdtype(dtype, jnp.floating)
    return jnp.dtype(dtype) if floating and jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


class Batch(NamedTuple):
    """One minibatch (of one device, where there are several).

    Attributes:
        images: `[B, H, W, C]`, float32 in [0, 1].
        labels: `[B]`, int32 in 0..K-1.
    """

    images: jax.Array
    labels: jax.Array


class Network(NamedTuple):
    """A network as two pure functions, so that nothing but `networks/` knows which library it is written in.

    Attributes:
        init: `(key, images) -> (params, batch_stats)`. Only the shape of `images` matters.
        apply: `(params, batch_stats, images, *, train, axis_name=None) -> (outputs, batch_stats)`.
            With `train=True` BatchNorm normalises with the statistics of the batch (over all devices of `axis_name`)
            and the running ones are returned updated; with `train=False` it uses the running ones and returns them
            unchanged, so that the output for an image does not depend on its batch.
    """

    init: Callable[[jax.Array, jax.Array], tuple[Params, BatchStats]]
    apply: Callable[..., tuple[jax.Array, BatchStats]]


class ThreatModel(Protocol):
    """What the attacker may do: a ball of radius epsilon around each image, within the range of valid pixels."""

    @property
    def norm(self) -> str:
        """`linf` or `l2`."""
        ...

    @property
    def epsilon(self) -> float | jax.Array:
        """Radius of the ball, in units of the pixel range."""
        ...

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest valid pixel."""
        ...


class Attack(Protocol):
    """Makes adversarial images. Pure and jit-able; every source of randomness is the explicit key."""

    def __call__(
        self, logits_fn: LogitsFn, key: jax.Array, images: jax.Array, labels: jax.Array, threat: ThreatModel
    ) -> jax.Array:
        """Returns adversarial images of the shape of `images`, inside the ball and the range.

        Args:
            logits_fn: The classifier under attack.
            key: One key, or one key per image (`[B]` typed keys); see `robust_gan.prng.per_image_keys`.
            images: `[B, H, W, C]` in the range of the threat model.
            labels: `[B]`, the true labels.
            threat: The threat model.
        """
        ...


Metrics = dict[str, jax.Array]


class Adversary(NamedTuple):
    """The maximising player, as three pure functions; a new defence is a new one of these and a config.

    `classifier_fn` is the classifier as it stands, with its parameters closed over. `keys` holds one key per image.
    With `axis_name` the functions run per device of a mapped axis and average their gradients over it.

    Attributes:
        init: `(key, images) -> state`. The state is a pytree of arrays; `()` for an adversary that does not learn.
        improve: `(state, classifier_fn, batch, keys, *, axis_name=None) -> (state, metrics)`. Learns to raise the
            classifier's loss on the batch; the classifier stays as it is.
        perturb: `(state, classifier_fn, batch, keys, *, axis_name=None) -> images [B, H, W, C]`, inside the threat
            model.
        response: `(state, classifier_fn, batch, keys, *, axis_name=None) -> (params, images_fn)` where
            `images_fn(params)` is what `perturb` returns, differentiable in `params`; None for an adversary without
            parameters. The gradient penalty of the game needs it.
    """

    init: Callable[[jax.Array, jax.Array], PyTree]
    improve: Callable[..., tuple[PyTree, Metrics]]
    perturb: Callable[..., jax.Array]
    response: Callable[..., tuple[Params, Callable[[Params], jax.Array]]] | None = None


class PlayerState(NamedTuple):
    """What a player that is a network carries from step to step.

    Attributes:
        params: Its parameters.
        batch_stats: Running statistics of its BatchNorm layers; `{}` where it has none.
        opt_state: State of its optimiser.
    """

    params: Params
    batch_stats: BatchStats
    opt_state: PyTree

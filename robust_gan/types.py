"""Types and protocols of the library.

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
"""Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`. The classifier normalises the pixels itself."""

LossFn = Callable[..., jax.Array]
"""Logits `[B, K]`, labels `[B]` and the attack's `loss_args`, arrays `[B, ...]`, to unreduced losses `[B]`."""


def get_compute_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Returns the dtype in which values of a dtype are computed: at least float32.

    `jnp.promote_types` returns the same, except under `jax_numpy_dtype_promotion=strict`, where it raises.

    >>> [get_compute_dtype(dtype).name for dtype in (jnp.bfloat16, jnp.int32, jnp.float64)]
    ['float32', 'float32', 'float64']
    """
    floating = jnp.issubdtype(dtype, jnp.floating)
    return jnp.dtype(dtype) if floating and jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


class Batch(NamedTuple):
    """One batch, or one device's share of it.

    Attributes:
        images: `[B, H, W, C]`, float32 in [0, 1].
        labels: `[B]`, int32 in 0..K-1.
        start: `[B, H, W, C]`, perturbations in units of epsilon from which the adversary starts, or None.
    """

    images: jax.Array
    labels: jax.Array
    start: jax.Array | None = None


class Network(NamedTuple):
    """A network as two pure functions; only `networks/` knows the library in which it is written.

    Attributes:
        init: `(key, images) -> (params, batch_stats)`. Only the shape of `images` matters.
        apply: `(params, batch_stats, images, *, train, axis_name=None) -> (outputs, batch_stats)`.
            With `train=True` BatchNorm normalises with the statistics of the batch (over all devices of `axis_name`)
            and the running ones are returned updated; with `train=False` it uses the running ones and returns them
            unchanged, so that the output for an image does not depend on its batch.
        apply_both: `(params, batch_stats, first, second, *, axis_name=None) -> ((outputs, outputs), batch_stats)`: what
            `apply` with `train=True` returns for two batches, one after the other, in one pass with half the
            all-reduces; None for a network that has no such pass.
    """

    init: Callable[[jax.Array, jax.Array], tuple[Params, BatchStats]]
    apply: Callable[..., tuple[jax.Array, BatchStats]]
    apply_both: Callable[..., tuple[tuple[jax.Array, jax.Array], BatchStats]] | None = None


class ThreatModel(Protocol):
    """The allowed perturbations: a ball of radius epsilon around each image, within the range of valid pixels."""

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
    """An attack: a pure, jit-able function from images and true labels to adversarial images.

    These arguments are common to all attacks of `robust_gan.attacks`; further settings are keyword arguments, fixed
    with `functools.partial`.
    """

    def __call__(
        self, logits_fn: LogitsFn, key: jax.Array, images: jax.Array, labels: jax.Array, threat: ThreatModel
    ) -> jax.Array:
        """Computes adversarial images of the shape of `images`, inside the ball and the range.

        Args:
            logits_fn: The classifier under attack; differentiable for a white-box attack.
            key: The only source of randomness: one key, or one key per image (`[B]` typed keys), which makes the result
                independent of the batch size; see `robust_gan.prng.per_image_keys`.
            images: `[B, H, W, C]`, floats in the range of the threat model.
            labels: int32 `[B]`, the true labels.
            threat: The threat model.

        Returns:
            Adversarial images `[B, H, W, C]`.

        Raises:
            UserError: An argument has a wrong type or shape, or (outside compiled code) an invalid value.
        """
        ...


Metrics = dict[str, jax.Array]


class Adversary(NamedTuple):
    """The maximising player of the game, as three or four pure functions.

    `classifier_fn` is the current classifier, `LogitsFn`. `keys` holds one key per image. With `axis_name` the
    functions run per device of a mapped axis and average their gradients over it.

    Attributes:
        init: `(key, images) -> state`. The state is a pytree of arrays; `()` for an adversary that does not learn.
        improve: `(state, classifier_fn, batch, keys, *, axis_name=None) -> (state, metrics)`. Updates the
            adversary so that the classifier's loss on the batch rises.
        perturb: `(state, classifier_fn, batch, keys, *, axis_name=None) -> images [B, H, W, C]`, the adversarial
            images, inside the threat model.
        response: `(state, classifier_fn, batch, keys, *, axis_name=None) -> (params, images_fn)` where
            `images_fn(params)` returns what `perturb` returns and is differentiable in `params`; None for an adversary
            without parameters. The gradient penalty needs it.
    """

    init: Callable[[jax.Array, jax.Array], PyTree]
    improve: Callable[..., tuple[PyTree, Metrics]]
    perturb: Callable[..., jax.Array]
    response: Callable[..., tuple[Params, Callable[[Params], jax.Array]]] | None = None


class Variables(NamedTuple):
    """The arrays with which a network computes.

    Attributes:
        params: Its parameters.
        batch_stats: Running statistics of its BatchNorm layers; `{}` where it has none.
    """

    params: Params
    batch_stats: BatchStats


class PlayerState(NamedTuple):
    """State of a player that is a network: its variables and its optimizer's state.

    Attributes:
        params: As `Variables`.
        batch_stats: As `Variables`.
        opt_state: State of the optimizer.
    """

    params: Params
    batch_stats: BatchStats
    opt_state: PyTree

    @property
    def variables(self) -> Variables:
        """The parameters and the running statistics."""
        return Variables(self.params, self.batch_stats)

"""Randomised smoothing: certified L2 radii of the majority vote of a classifier on images with Gaussian noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan import prng
from robust_gan.certification.program import trace
from robust_gan.errors import UserError
from robust_gan.losses import has_class
from robust_gan.types import LogitsFn

ABSTAINED = -1
"""The prediction where the votes do not decide."""


class Smoothed(NamedTuple):
    """Predictions of the smoothed classifier.

    Attributes:
        predicted: int32 `[B]`, the class, or `ABSTAINED`.
        radius: float64 `[B]`, the L2 radius within which the smoothed classifier predicts this class, in units of the
            pixels; 0 where it abstains.
    """

    predicted: np.ndarray
    radius: np.ndarray


def smooth(
    logits_fn: LogitsFn,
    key: jax.Array,
    images: jax.Array,
    *,
    sigma: float,
    num_samples: int = 10_000,
    num_selection: int = 100,
    alpha: float = 0.001,
) -> Smoothed:
    """Predicts with the smoothed classifier and certifies an L2 radius for each image.

    The smoothed classifier returns the class that `logits_fn` predicts most often under Gaussian noise. Its bounds hold
    for each image with probability 1 - alpha over the noise that is drawn here; they say nothing about `logits_fn`
    itself. The noisy images are not clipped to valid pixels.

    Args:
        logits_fn: The base classifier; it should be trained on such noise.
        key: One key, or one for each image.
        images: `[B, H, W, C]`.
        sigma: Standard deviation of the noise, in units of the pixels.
        num_samples: Noisy images from which the probability of the class is bounded.
        num_selection: Further noisy images, which choose the class.
        alpha: Probability of a wrong certificate.

    Returns:
        Classes and radii; 10,000 samples certify at most 3.2 sigma with alpha 0.001.

    Raises:
        UserError: Sigma is not positive, a number of samples is below 1, alpha is not between 0 and 1, the images are
            no floats, or the classifier is randomised or no function of JAX.

    Guarantees:
        `test_the_radius_of_a_linear_classifier_is_its_distance`, `test_the_lower_bound_covers_the_probability`.

    References:
        Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, section 3.2
            (CERTIFY), https://arxiv.org/abs/1902.02918

    >>> logits_fn = lambda x: jnp.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], axis=-1)
    >>> found = smooth(logits_fn, jax.random.key(0), jnp.full((1, 1, 1, 1), 0.9), sigma=0.2, num_samples=1_000)
    >>> found.predicted.tolist(), 0.3 < found.radius.item() < 0.4
    ([0], True)
    """
    check_settings(sigma, num_samples, alpha, num_selection)
    if not jnp.issubdtype(jnp.result_type(images), jnp.floating):
        raise UserError(f"smoothing needs images of floats, such as pixels in [0, 1], not {jnp.result_type(images)}")
    trace(logits_fn, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))  # Raises where that is not possible.
    keys = prng.per_image_keys(key, images.shape[0])
    selection, votes = _count(jax.tree_util.Partial(logits_fn), keys, images, sigma, num_samples, num_selection)
    return decide(np.asarray(selection), np.asarray(votes), num_samples, sigma, alpha)


def check_settings(sigma: float, num_samples: int, alpha: float, num_selection: int = 100) -> None:
    """Refuses settings with which nothing can be smoothed.

    Args:
        sigma: Standard deviation of the noise, in units of the pixels.
        num_samples: Noisy images from which the probability of the class is bounded.
        alpha: Probability of a wrong certificate.
        num_selection: Noisy images which choose the class.

    Raises:
        UserError: Says which.

    >>> check_settings(0.25, 1_000, 0.001)
    """
    if not (np.isfinite(sigma) and sigma > 0):
        raise UserError(f"sigma, the standard deviation of the noise, must be above 0, not {sigma}")
    if min(num_samples, num_selection) < 1 or not 0 < alpha < 1:
        raise UserError(
            "smoothing needs at least 1 sample for each purpose and alpha between 0 and 1, not "
            f"{num_samples} and {num_selection} samples and alpha {alpha}"
        )


def count_votes(
    logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, sigma: float, num_samples: int, num_selection: int = 100
) -> tuple[jax.Array, jax.Array]:
    """Computes how often each class is predicted under noise; a NaN among the logits votes for none.

    Args:
        logits_fn: The base classifier.
        keys: Threefry keys `[B]`.
        images: `[B, H, W, C]`.
        sigma: Standard deviation of the noise.
        num_samples: Noisy images of the second result.
        num_selection: Noisy images of the first result.

    Returns:
        Two counts, int32 `[B, K]`, of independent noise: the first chooses the class, the second bounds its
        probability.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> [votes.tolist() for votes in count_votes(lambda x: x[:, 0, 0], keys, jnp.eye(2)[:, None, None], 0.1, 9, 5)]
    [[[5, 0], [0, 5]], [[9, 0], [0, 9]]]
    """

    def count(keys: jax.Array, num: int) -> jax.Array:
        def vote(index: jax.Array, votes: jax.Array) -> jax.Array:
            step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
            logits = logits_fn(images + sigma * prng.normal_per_image(step_keys, images.shape[1:]))
            classes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.int32)
            return votes + jnp.where(has_class(logits)[:, None], classes, 0)

        return jax.lax.fori_loop(0, num, vote, jnp.zeros(jax.eval_shape(logits_fn, images).shape, jnp.int32))

    first, second = prng.split_per_image(keys, 2)
    return count(first, num_selection), count(second, num_samples)


_count = jax.jit(count_votes, static_argnums=(4, 5))


def decide(selection: np.ndarray, votes: np.ndarray, num_samples: int, sigma: float, alpha: float) -> Smoothed:
    """Returns classes and radii of the two counts of `count_votes`.

    Args:
        selection: Integers `[B, K]`.
        votes: Integers `[B, K]`.
        num_samples: Noisy images of the second count.
        sigma: Standard deviation of the noise.
        alpha: Probability of a wrong certificate.

    >>> found = decide(np.array([[9, 1]]), np.array([[990, 10]]), 1_000, 0.5, 0.001)
    >>> found.predicted.tolist(), found.radius.round(2).tolist()
    ([0], [0.99])
    """
    import scipy.stats  # It takes half a second, which every import of the game would take too.

    chosen = np.argmax(selection, axis=-1)
    won = np.take_along_axis(votes, chosen[:, None], axis=-1)[:, 0]
    # The lower end of the Clopper-Pearson interval, one-sided.
    probability = np.where(won > 0, scipy.stats.beta.ppf(alpha, np.maximum(won, 1), num_samples - won + 1), 0.0)
    decided = probability > 0.5
    radius = np.where(decided, sigma * scipy.stats.norm.ppf(np.where(decided, probability, 0.5)), 0.0)
    return Smoothed(np.where(decided, chosen, ABSTAINED).astype(np.int32), radius)

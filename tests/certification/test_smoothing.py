"""Randomised smoothing against the closed form of linear classifiers, and the coverage of its bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from robust_gan.certification import smooth
from robust_gan.certification.smoothing import ABSTAINED
from robust_gan.errors import UserError

NORMAL = jnp.array([0.6, -0.8]).reshape(1, 2, 1)


def linear(x):
    """A linear classifier whose margin is the L2 distance from its boundary."""
    distance = (x * NORMAL).sum((1, 2, 3))
    return jnp.stack([distance, -distance], -1)


def test_the_radius_of_a_linear_classifier_is_its_distance():
    images = jnp.array([[0.9, 0.1], [0.5, 0.1], [0.2, 0.9]]).reshape(3, 1, 2, 1)
    distance = np.abs(np.asarray((images * NORMAL).sum((1, 2, 3))))
    found = smooth(linear, jax.random.key(0), images, sigma=0.5, num_samples=20_000)
    np.testing.assert_array_equal(found.predicted, [0, 0, 1])
    # A lower bound, and by at most what 20,000 samples leave open.
    assert (found.radius <= distance).all()
    assert (found.radius >= distance - 0.04).all()


def test_an_image_on_the_boundary_is_abstained_from():
    found = smooth(linear, jax.random.key(0), jnp.array([0.8, 0.6]).reshape(1, 1, 2, 1), sigma=0.5, num_samples=1_000)
    assert found.predicted.tolist() == [ABSTAINED]
    assert found.radius.tolist() == [0.0]


def test_the_lower_bound_covers_the_probability():
    # 500 copies of one image with keys of their own; the probability of its class is known.
    image = jnp.array([0.7, 0.3]).reshape(1, 1, 2, 1)
    distance = float((image * NORMAL).sum())
    found = smooth(linear, jax.random.key(1), jnp.tile(image, (500, 1, 1, 1)), sigma=0.5, num_samples=100, alpha=0.1)
    decided = found.predicted == 0
    wrong = (decided & (found.radius > distance)).sum()
    # A wrong bound has a probability of at most 0.1 for each image.
    assert wrong <= scipy.stats.binom.ppf(0.9999, 500, 0.1)
    assert wrong > 0  # The bound is not far wider than alpha asks for.


def test_an_image_does_not_depend_on_the_others():
    images = jax.random.uniform(jax.random.key(2), (4, 1, 2, 1))
    keys = jax.random.split(jax.random.key(3), 4)
    together = smooth(linear, keys, images, sigma=0.3, num_samples=200)
    alone = smooth(linear, keys[2:3], images[2:3], sigma=0.3, num_samples=200)
    assert together.radius[2] == alone.radius[0]


@pytest.mark.parametrize(
    "settings", [{"sigma": 0.0}, {"sigma": np.nan}, {"sigma": 0.1, "num_samples": 0}, {"sigma": 0.1, "alpha": 1.0}]
)
def test_what_cannot_be_smoothed_is_refused(settings):
    with pytest.raises(UserError, match=r"must be above 0, not|needs at least 1 sample"):
        smooth(linear, jax.random.key(0), jnp.zeros((1, 1, 2, 1)), **settings)


def test_a_randomised_classifier_and_bytes_are_refused():
    images = jnp.zeros((1, 1, 2, 1))
    with pytest.raises(UserError, match="a deterministic function of images alone"):
        smooth(lambda x, keys: linear(x), jax.random.key(0), images, sigma=0.1)
    with pytest.raises(UserError, match="smoothing needs images of floats"):
        smooth(linear, jax.random.key(0), images.astype(jnp.uint8), sigma=0.1)

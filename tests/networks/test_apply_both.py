"""One pass for clean and adversarial images: what two passes return, with half the all-reduces."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import networks, parallel
from robust_gan.networks import layers


def assert_near(actual, wanted, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * (1 + np.max(np.abs(other))))


class FlaxNorm(nn.Module):
    """A user's module, whose BatchNorm is flax's."""

    train: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train, momentum=0.9, axis_name=self.axis_name)(x)
        return x.mean((1, 2))


NETWORKS = {
    "digits_cnn": networks.build_classifier("digits_cnn", 10),
    "the user's": layers.as_network(FlaxNorm),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_two_batches_at_once_are_one_after_the_other(name):
    network = NETWORKS[name]
    first, second = jax.random.uniform(jax.random.key(0), (2, 4, 8, 8, 1))
    second = 0.3 * second
    params, stats = network.init(jax.random.key(1), first)

    def at_once(params):
        (one, other), after = network.apply_both(params, stats, first, second)
        return jnp.sum(jnp.sin(one) + jnp.cos(other)), (one, other, after)

    def in_turn(params):
        one, after = network.apply(params, stats, first, train=True)
        other, after = network.apply(params, after, second, train=True)
        return jnp.sum(jnp.sin(one) + jnp.cos(other)), (one, other, after)

    results = [jax.jit(jax.value_and_grad(each, has_aux=True))(params) for each in (at_once, in_turn)]
    assert_near(*results, tolerance=1e-4)


def test_two_batches_at_once_share_their_all_reduces():
    network, devices = NETWORKS["digits_cnn"], parallel.find_devices(num_devices=4)
    images = jnp.zeros((4, 2, 8, 8, 1))
    params, stats = network.init(jax.random.key(1), images[0])
    step = functools.partial(network.apply_both, params, stats, axis_name="axis")
    mapped = jax.pmap(step, axis_name="axis", devices=devices)
    assert mapped.lower(images, images).as_text().count("all_reduce") == 3

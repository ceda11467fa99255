"""Whoever gathers images gathers what belongs to them; and randomness is said, not guessed from a name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_problems import KEY, curved, flat, images_between, linear, predicted

from robust_gan import LinfThreat, adversaries, attacks, losses, networks, prng
from robust_gan.attacks._checks import checked_loss
from robust_gan.errors import UserError
from robust_gan.types import Batch

IMAGES = images_between(0.2, 0.8, count=70)  # More than are attacked at once.
LABELS = predicted(curved, IMAGES)
KEYS = jax.random.split(KEY, 70)
THREAT = LinfThreat(0.05)


def towards(logits, labels, targets):
    """What a targeted attack ascends."""
    return -losses.cross_entropy(logits, targets)


def divergence(logits, labels, reference_logits):
    return losses.kl(logits, reference_logits)


TARGETS = (LABELS + 1 + jnp.arange(70) % 4) % 5
CASES = {"targets": (towards, (TARGETS,)), "logits": (divergence, (linear(IMAGES),))}
ATTACKS = {
    "fgsm": attacks.fgsm,
    "pgd": functools.partial(attacks.pgd, num_steps=2),
    "pgd, restarts": functools.partial(attacks.pgd, num_steps=2, num_restarts=3),
    "apgd": functools.partial(attacks.apgd, num_steps=3),
    "apgd, restarts": functools.partial(attacks.apgd, num_steps=3, num_restarts=2),
    "spsa": functools.partial(attacks.spsa, num_steps=1, num_samples=4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_a_batch_is_that_on_each_image(name, case):
    loss_fn, loss_args = CASES[case]

    @jax.jit
    def attack(keys, images, labels, loss_args):
        return ATTACKS[name](curved, keys, images, labels, THREAT, loss_fn=loss_fn, loss_args=loss_args)

    found = attack(KEYS, IMAGES, LABELS, loss_args)
    for index in (0, 33, 69):
        one = [x[index : index + 1] for x in (KEYS, IMAGES, LABELS, *loss_args)]
        alone = attack(*one[:3], tuple(one[3:]))
        np.testing.assert_allclose(found[index], alone[0], atol=1e-5)


@pytest.mark.parametrize("num_restarts", [1, 3])
def test_a_targeted_attack_reaches_the_targets_of_a_linear_classifier(num_restarts):
    """In this ball descent on the cross-entropy towards the target reaches it for every image."""
    images = images_between(0.4, 0.6, count=70)
    labels = predicted(linear, images)
    targets = (labels + 1 + jnp.arange(70) % 3) % 5
    attack = functools.partial(attacks.pgd, linear, num_steps=20, num_restarts=num_restarts, loss_fn=towards)
    found = jax.jit(lambda: attack(KEY, images, labels, LinfThreat(0.4), loss_args=(targets,)))()
    np.testing.assert_array_equal(predicted(linear, found) != labels, True)
    if num_restarts == 1:  # A restart spares what is misclassified already, as any class.
        np.testing.assert_array_equal(predicted(linear, found), targets)


@pytest.mark.parametrize("count", [2, 48, 70])
@pytest.mark.parametrize("name", ["pgd, restarts", "apgd, restarts", "spsa"])
def test_a_loss_that_closes_over_a_batch_is_refused_where_images_are_gathered(name, count):
    images, labels, targets = IMAGES[:count], LABELS[:count], TARGETS[:count]
    onehot, reference = jax.nn.one_hot(targets, 5), curved(images)
    for closure in (
        lambda z, y: -losses.cross_entropy(z, targets),
        lambda z, y: losses.kl(z, reference),
        lambda z, y: jnp.sum(z * onehot, -1),
        lambda z, y: z[jnp.arange(count), targets],
        lambda z, y: jax.vmap(lambda row, target: row[target])(z, targets),
    ):
        with pytest.raises(UserError, match="must be given by loss_args"):
            ATTACKS[name](curved, KEY, images, labels, THREAT, loss_fn=closure)


def test_a_loss_that_closes_over_its_only_batch_is_taken_where_nothing_is_gathered():
    found = attacks.fgsm(curved, KEY, IMAGES, LABELS, THREAT, loss_fn=lambda z, y: -losses.cross_entropy(z, TARGETS))
    expected = attacks.fgsm(curved, KEY, IMAGES, LABELS, THREAT, loss_fn=towards, loss_args=(TARGETS,))
    np.testing.assert_array_equal(found, expected)


def test_what_belongs_to_images_must_be_as_many():
    with pytest.raises(UserError, match=r"loss_args must be arrays \[70, ...\], one row for each image, not \(3,\)"):
        attacks.pgd(curved, KEY, IMAGES, LABELS, THREAT, loss_fn=towards, loss_args=(TARGETS[:3],))
    with pytest.raises(UserError, match="loss_args must be a tuple"):
        attacks.pgd(curved, KEY, IMAGES, LABELS, THREAT, loss_fn=towards, loss_args=TARGETS)


def test_what_is_wrong_with_any_number_of_images_is_told_as_it_is():
    with pytest.raises(UserError, match="loss_fn must return one loss for each of 4 images"):
        checked_loss(lambda z, y: z.sum(), jnp.zeros((4, 2)), jnp.zeros(4, int), (), gathered=True)
    with pytest.raises(ZeroDivisionError):
        checked_loss(lambda z, y: z / (1 // 0), jnp.zeros((4, 2)), jnp.zeros(4, int), (), gathered=True)


def test_a_generator_that_is_trained_draws_what_belongs_to_the_images():
    network = networks.build_generator("digits_generator", 1)
    images = images_between(0.3, 0.7, count=6).repeat(2, 1).repeat(2, 2)
    logits_fn = lambda x: linear(x[:, ::2, ::2])  # noqa: E731
    train = functools.partial(
        attacks.train_generator, logits_fn, KEY, images, jnp.zeros(6, int), THREAT, network=network, num_steps=2,
        batch_size=3,
    )  # fmt: skip
    with pytest.raises(UserError, match="must be given by loss_args"):
        train(loss_fn=lambda z, y: losses.cross_entropy(z, TARGETS[:6]))
    found, same = (
        train(loss_fn=towards, loss_args=(jnp.ones(6, int),)),
        train(loss_fn=lambda z, y: towards(z, y, y + 1)),
    )
    jax.tree.map(np.testing.assert_array_equal, found, same)


def test_the_adversary_of_trades_ascends_the_divergence_of_each_image():
    adversary = adversaries.pgd(THREAT, num_steps=2, loss="kl")
    found = jax.jit(lambda: adversary.perturb((), curved, Batch(IMAGES, LABELS), KEYS))()
    attack = functools.partial(attacks.pgd, curved, num_steps=2, loss_fn=divergence)
    expected = jax.jit(lambda: attack(KEYS, IMAGES, LABELS, THREAT, loss_args=(curved(IMAGES),)))()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_argument_of_the_name_keys_is_not_randomness():
    def smoothed(images, keys=None):
        if keys is not None:
            images = images + jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
        return linear(images)

    images, labels = IMAGES[:8], predicted(linear, IMAGES[:8])
    for name in ("apgd_ce4", "apgd_t3", "pgd3"):
        found, plain = (attacks.by_name(name)(f, KEY, images, labels, THREAT) for f in (smoothed, linear))
        np.testing.assert_array_equal(found, plain)
    marked = attacks.randomised(smoothed)
    assert jnp.any(attacks.apgd(marked, KEY, images, labels, THREAT, num_steps=3) != found)
    with pytest.raises(UserError, match="pgd takes no randomised classifier"):
        attacks.pgd(marked, KEY, images, labels, THREAT)
    with pytest.raises(UserError, match=r"attacks.randomised\(logits_fn\)"):
        attacks.apgd(lambda x, keys: linear(x), KEY, images, labels, THREAT)
    bound = jax.tree_util.Partial(lambda weights, x, keys: flat(x) @ weights, jnp.ones((16, 5)))
    assert isinstance(attacks.randomised(bound), jax.tree_util.Partial)
    attacks.apgd(attacks.randomised(bound), KEY, images, labels, THREAT, num_steps=1)


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_keys_of_other_implementations_do_not_depend_on_the_batch(implementation):
    key = jax.random.key(0, impl=implementation)
    keys = jax.random.split(key, 8)
    images, labels = IMAGES[:8], LABELS[:8]
    for name in ("uniform_noise", "pgd2x2", "square5"):
        attack = functools.partial(attacks.by_name(name), curved)
        whole = attack(keys, images, labels, THREAT)
        parts = [attack(keys[i : i + 2], images[i : i + 2], labels[i : i + 2], THREAT) for i in range(0, 8, 2)]
        np.testing.assert_allclose(whole, jnp.concatenate(parts), atol=1e-6)
        assert attack(key, images, labels, THREAT).shape == images.shape
    data = jax.random.key_data(prng.threefry(keys, 8))
    assert len(np.unique(data, axis=0)) == 8
    with jax.default_prng_impl(implementation):
        assert prng.make_key(3) == jax.random.key(3, impl="threefry2x32")


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
@pytest.mark.parametrize("name", ["pgd2", "apgd_ce3", "apgd_t2", "fab2", "fab_t2", "square5", "spsa1"])
def test_logits_of_any_type_are_attacked(name, dtype, norm):
    from attack_problems import THREATS, assert_inside

    images = IMAGES[:4].astype(jnp.bfloat16 if dtype == jnp.bfloat16 else jnp.float32)
    logits_fn = lambda x: (8 * curved(x)).astype(dtype)  # noqa: E731
    found = jax.jit(lambda: attacks.by_name(name)(logits_fn, KEY, images, LABELS[:4], THREATS[norm](0.1)))()
    assert_inside(found, images, norm, 0.1)

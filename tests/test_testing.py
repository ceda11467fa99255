"""The checks for other people's attacks, adversaries and networks: ours pass them, and wrong ones do not."""

import functools

import jax
import jax.numpy as jnp
import pytest
import tiny_networks

from robust_gan import LinfThreat, adversaries, attacks, networks, testing
from robust_gan.attacks import registry
from robust_gan.config import ADVERSARIES, AdversaryConfig, GeneratorConfig, PGDConfig
from robust_gan.networks import CLASSIFIERS, GENERATORS
from robust_gan.testing import check_adversary, check_attack, check_network

THREAT = LinfThreat(0.1)
COUNTS = {"apgd_ce": 3, "apgd_dlr": 3, "apgd_t": 3, "square": 5}
"""Steps or queries of attacks for which two are too few."""
ATTACKS = [
    *registry._PLAIN,
    "pgd2x2",
    "margin_pgd2",
    "pgd2_odi",
    "mt_pgd2",
    "apgd_ce3_odi",
    "pgd2_to1",
    *(f"{name}{COUNTS.get(name, 2)}" for name in registry._ATTACKS),
]
FAST = ("uniform_noise", "fgsm", "pgd2x2", "none", "pgd", "ensemble", "digits_cnn", "digits_generator")


def each(names):
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in names]
    )


@each(ATTACKS)
def test_every_attack_of_the_package_passes_the_check(name):
    check_attack(attacks.by_name(name), threats=[THREAT])


def test_the_attack_by_a_generator_passes_the_check():
    check_attack(
        functools.partial(attacks.generator, noise_fn=lambda x: jnp.tanh(9 * jnp.sin(9 * x))), threats=[THREAT]
    )


@each(ADVERSARIES)
def test_every_adversary_of_the_package_passes_the_check(name, tiny_names):
    config = AdversaryConfig(name=name, pgd=PGDConfig(num_steps=2), generator=GeneratorConfig(network="tiny"))
    # The classifier of the check itself, so that the ensemble's images raise its loss.
    sources = [testing._random_classifier((8, 8, 1), 5, seed=0)]
    adversary = adversaries.from_config(config, THREAT, channels=1, num_classes=5, sources=sources)
    check_adversary(adversary, THREAT, steps=20 if name == "generator" else 2)


# resnet20_wide is the module of resnet20, with a hundred times its arithmetic.
@each([name for name in (*CLASSIFIERS, *GENERATORS) if name != "resnet20_wide"])
def test_every_network_of_the_package_passes_the_check(name):
    if name in CLASSIFIERS:
        check_network(networks.build_classifier(name, 10), (8, 8, 1), (10,))
    else:
        check_network(networks.build_generator(name, 1), (8, 8, 1), (8, 8, 1))


def outside(logits_fn, key, images, labels, threat):
    return jnp.clip(images + 2 * threat.epsilon, 0, 1)


def of_the_batch(logits_fn, key, images, labels, threat):
    return jnp.clip(images + threat.epsilon * jnp.sign(images - images.mean(0)), 0, 1)


def not_a_number(logits_fn, key, images, labels, threat):
    return images * jnp.nan


def other_shape(logits_fn, key, images, labels, threat):
    return images[:1]


def not_traceable(logits_fn, key, images, labels, threat):
    return images if float(images.sum()) > 0 else images + threat.epsilon


def moves_at_0(logits_fn, key, images, labels, threat):
    return jnp.clip(images + jnp.maximum(threat.epsilon, 1e-4) * 0.5, 0, 1)


@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        (outside, "leaves the ball"),
        (of_the_batch, "in a batch of 1"),
        (not_a_number, "NaN"),
        (other_shape, "shape"),
        (moves_at_0, "epsilon 0"),
        (lambda images: images, "cannot be called as attack"),
        (3, "must be a function"),
    ],
)
def test_an_attack_that_breaks_a_requirement_fails_with_a_sentence(attack, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_attack(attack, threats=[THREAT])


def test_an_attack_that_cannot_be_compiled_fails():
    with pytest.raises((AssertionError, jax.errors.ConcretizationTypeError)):
        check_attack(not_traceable, threats=[THREAT])


def test_an_adversary_that_breaks_a_requirement_fails_with_a_sentence():
    good = adversaries.fgsm(THREAT)
    with pytest.raises(AssertionError, match="no function 'perturb'"):
        check_adversary(good._replace(perturb=None), THREAT)
    with pytest.raises(AssertionError, match="leaves the ball"):
        check_adversary(good._replace(perturb=lambda state, fn, batch, keys, **_: batch.images * 0.5), THREAT, steps=1)


def test_a_network_that_breaks_a_requirement_fails_with_a_sentence():
    good = tiny_networks.build_classifier(10)

    def by_batch(params, batch_stats, images, *, train, axis_name=None):
        outputs, batch_stats = good.apply(params, batch_stats, images, train=train, axis_name=axis_name)
        return outputs - outputs.mean(0), batch_stats

    with pytest.raises(AssertionError, match="depends on the other images"):
        check_network(good._replace(apply=by_batch), (8, 8, 1), (10,))

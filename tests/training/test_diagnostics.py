"""Signs that a game goes wrong though its numbers are finite: each comes with its collapse, and only then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import checkpoint, data
from robust_gan import game as game_lib
from robust_gan.config import AdversaryConfig, ClassifierConfig, Config, GeneratorConfig, ValidationConfig
from robust_gan.training import diagnostics, evaluator, setup

RNG = np.random.default_rng(0)
SPLIT = data.Split(RNG.integers(0, 256, (40, 8, 8, 1), np.uint8), np.arange(40, dtype=np.int32) % 10)
DATASET = data.Dataset("odd", SPLIT, SPLIT, SPLIT, 10, tuple("0123456789"))
INFO = checkpoint.DataInfo("odd", (8, 8, 1), 10, DATASET.label_names)


def config(name="generator", **settings):
    return Config(
        classifier=ClassifierConfig(network="tiny"),
        adversary=AdversaryConfig(name=name, generator=GeneratorConfig(network="tiny", **settings)),
        validation=ValidationConfig(pgd_steps=10),
    )


def start(config):
    game = game_lib.from_config(config, num_classes=10, channels=1)
    return setup.initial_state(config, game, (8, 8, 1))


def look(config, state):
    health = diagnostics.measure(config, evaluator.get_model(config, state, INFO).logits_fn, state, INFO, SPLIT)
    return health, diagnostics.get_warnings(figures(), health, config, 1000, best=0.5)


def figures(clean=0.9, fgsm=0.6, pgd=0.5):
    return {"validation/clean_accuracy": clean, "validation/fgsm": fgsm, "validation/pgd10": pgd}


def zero(tree):
    return jax.tree.map(jnp.zeros_like, tree)


@pytest.mark.usefixtures("tiny_names")
@pytest.mark.parametrize("settings", [{}, {"latent_size": 2, "inputs": ("gradient", "label")}], ids=["paper", "inputs"])
def test_a_collapsed_generator_is_told_from_one_that_is_not(settings):
    chosen = config(**settings)
    state = start(chosen)
    health, found = look(chosen, state)
    assert health["health/noise_variation"] > diagnostics.MIN_NOISE_VARIATION
    assert not found["generator_constant"]
    collapsed = state._replace(adversary=state.adversary._replace(params=zero(state.adversary.params)))
    health, found = look(chosen, collapsed)
    assert health["health/noise_variation"] == health["health/generator_gain"] == 0
    assert found["generator_constant"]
    assert found["generator_without_gain"]


@pytest.mark.usefixtures("tiny_names")
@pytest.mark.parametrize("name", ["none", "generator"])
def test_a_constant_classifier_is_told_from_one_that_is_not(name):
    state = start(config(name))
    health, found = look(config(name), state)
    assert health["health/classes_predicted"] > 1
    assert health["health/logit_variation"] > 0
    assert not found["classifier_constant"]
    collapsed = state._replace(classifier=state.classifier._replace(params=zero(state.classifier.params)))
    health, found = look(config(name), collapsed)
    assert (health["health/classes_predicted"], health["health/logit_variation"]) == (1, 0)
    assert found["classifier_constant"]
    assert ("generator_constant" in found) == (name == "generator")


HEALTH = {"health/classes_predicted": 10.0, "health/noise_variation": 0.3, "health/generator_gain": 0.2}


@pytest.mark.parametrize(
    ("numbers", "best", "count", "wanted"),
    [
        ({"fgsm": 0.95, "pgd": 0.0}, 0.4, 1000, {"single_step_overfitting", "robust_overfitting"}),
        ({"fgsm": 0.75, "pgd": 0.56}, 0.56, 360, set()),
        ({"fgsm": 0.6, "pgd": 0.44}, 0.5, 1000, {"robust_overfitting"}),
        ({"fgsm": 0.6, "pgd": 0.44}, 0.5, 100, set()),
        ({"fgsm": 0.6, "pgd": 0.46}, 0.5, 10000, set()),
        ({"fgsm": 0.1, "pgd": 0.0}, None, 1000, set()),
        ({"fgsm": 0.1, "pgd": 0.0}, -1.0, 1000, set()),
    ],
)
def test_overfitting_is_what_exceeds_chance(numbers, best, count, wanted):
    found = diagnostics.get_warnings(figures(**numbers), HEALTH, config(), count, best)
    assert {name for name, is_so in found.items() if is_so} == wanted
    assert set(found) == set(diagnostics.WARNINGS)


def test_robust_overfitting_is_none_where_nothing_is_to_be_robust():
    assert "robust_overfitting" not in diagnostics.get_warnings(figures(), HEALTH, config("none"), 1000, 0.9)


def test_a_warning_is_said_when_it_comes_and_again_when_it_comes_again():
    said = []
    log_once = diagnostics.LogOnce(said.append)
    for step, is_so in enumerate((False, True, True, False, True)):
        assert log_once(step, {"robust_overfitting": is_so}) == {"warning/robust_overfitting": float(is_so)}
    assert [text.split(":")[0] for text in said] == ["warning at step 1", "warning at step 4"]

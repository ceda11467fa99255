"""The certified term of the classifier's loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robust_gan import LinfThreat, adversaries, certification
from robust_gan import game as game_lib
from robust_gan.config import Config, methods, validate
from robust_gan.errors import UserError
from robust_gan.game.objective import classifier_gradient
from robust_gan.game.state import CertifiedTerm
from robust_gan.losses import cross_entropy
from robust_gan.training.evaluator import get_selection_metric
from robust_gan.types import Batch, Network, PlayerState


def _init(key, images):
    first, second = jax.random.split(key)
    return {"a": jax.random.normal(first, (4, 5)), "b": jax.random.normal(second, (5, 3))}, {}


def _apply(params, batch_stats, images, *, train, axis_name=None):
    return jax.nn.relu(images.reshape(len(images), -1) @ params["a"]) @ params["b"], batch_stats


def _game(term):
    return game_lib.Game(
        Network(_init, _apply), optax.sgd(0.1), adversaries.none(), loss="ibp", adversarial_weight=0.0, certified=term
    )


def test_the_loss_mixes_the_cross_entropy_with_that_of_the_worst_logits():
    batch = Batch(jax.random.uniform(jax.random.key(1), (6, 2, 2, 1)), jnp.arange(6) % 3)
    term = CertifiedTerm(LinfThreat(0.05), 0.25)
    game = _game(term)
    params, _ = game.classifier.init(jax.random.key(0), batch.images)

    def loss(params):
        def logits_fn(x):
            return game.classifier.apply(params, {}, x, train=False)[0]

        worst = -certification.margin_bounds(logits_fn, batch.images, batch.labels, term.threat)
        clean = cross_entropy(logits_fn(batch.images), batch.labels)
        return jnp.mean(0.75 * clean + 0.25 * cross_entropy(worst, batch.labels))

    gradient, _, metrics, _ = classifier_gradient(game, PlayerState(params, {}, ()), (), batch, None)
    np.testing.assert_allclose(metrics["classifier_loss"], loss(params), rtol=1e-5)
    expected = jax.grad(loss)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, expected)
    # The certified term is an upper bound of the loss at every image of the ball.
    noise = 0.05 * jnp.sign(jax.random.normal(jax.random.key(2), batch.images.shape))
    moved = game.classifier.apply(params, {}, jnp.clip(batch.images + noise, 0, 1), train=False)[0]
    assert metrics["certified_loss"] >= jnp.mean(cross_entropy(moved, batch.labels))


def test_the_penalty_stays_beside_the_certified_term():
    def response(adversary, attacked, batch, keys, *, axis_name):
        return jnp.float32(0.1), lambda phi: jnp.clip(batch.images + phi, 0, 1)

    batch = Batch(jax.random.uniform(jax.random.key(1), (6, 2, 2, 1)), jnp.arange(6) % 3)
    with_bounds = dataclasses.replace(
        _game(CertifiedTerm(LinfThreat(0.05), 0.25)), adversarial_weight=2.0, gradient_penalty=0.5,
        adversary=adversaries.none()._replace(response=response),
    )  # fmt: skip
    params, _ = with_bounds.classifier.init(jax.random.key(0), batch.images)

    def gradient(**changes):
        game = dataclasses.replace(with_bounds, **changes)
        return classifier_gradient(game, PlayerState(params, {}, ()), (), batch, None)

    both, _, metrics, _ = gradient()
    without = gradient(certified=None, clean_weight=0.75, adversarial_weight=1.5)[0]
    alone = gradient(adversarial_weight=0.0, gradient_penalty=0.0,
                     certified=CertifiedTerm(LinfThreat(0.05), 1.0))  # fmt: skip
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, b + 0.25 * c, rtol=1e-4, atol=1e-6), both, without,
                 alone[0])  # fmt: skip
    np.testing.assert_allclose(metrics["certified_loss"], alone[2]["certified_loss"], rtol=1e-6)
    assert metrics["penalty"] > 0


@pytest.mark.parametrize(
    "feature", [{"awp_gamma": 0.1}, {"ema_decay": 0.9}, {"label_smoothing": 0.1}, {"optimizer": optax.adam(0.01)}]
)
def test_features_of_training_keep_the_certified_term(feature):
    batch = Batch(jax.random.uniform(jax.random.key(1), (6, 2, 2, 1)), jnp.arange(6) % 3)
    game = dataclasses.replace(_game(CertifiedTerm(LinfThreat(0.02), 1.0)), **feature)
    state, losses = game_lib.init(game, jax.random.key(0), batch.images), []
    step = jax.jit(functools.partial(game_lib.train_step, game))
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(metrics["certified_loss"])
    assert losses[-1] < losses[0] - 0.05


def test_radius_and_share_grow_together_after_the_warm_up():
    game = _game(CertifiedTerm(LinfThreat(0.4), 0.5, warmup_steps=4, ramp_steps=4))
    terms = [game_lib.at_step(game, jnp.int32(step)).certified for step in (0, 3, 5, 7, 100)]
    np.testing.assert_allclose([term.weight for term in terms], [0, 0, 0.25, 0.5, 0.5])
    np.testing.assert_allclose([term.threat.epsilon for term in terms], [0, 0, 0.2, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("section", "changes", "sentence"),
    [
        ("threat", {"norm": "l2"}, "the loss ibp bounds the norm linf"),
        ("ibp", {"weight": 0.0}, "classifier.ibp.weight must be above 0"),
        ("ibp", {"weight": 1.5}, "classifier.ibp.weight must be above 0"),
        ("ibp", {"epsilon": 300.0}, "classifier.ibp.epsilon"),
        ("ibp", {"ramp_steps": -1}, "classifier.ibp.ramp_steps"),
        ("penalty", {"coefficient": 0.1}, "penalty.coefficient"),
        ("config", {"precision": "bfloat16"}, "needs precision float32"),
    ],
)
def test_what_cannot_be_bounded_in_training_is_refused(section, changes, sentence):
    config = methods.apply_method(Config(), "ibp")
    part = {"threat": config.threat, "ibp": config.classifier.ibp, "penalty": config.penalty, "config": config}[section]
    for name, value in changes.items():
        setattr(part, name, value)
    with pytest.raises(UserError, match=sentence):
        validate(config)


def test_the_best_checkpoint_is_the_one_with_most_certified_images():
    metrics = {"validation/clean_accuracy": 0.9, "validation/pgd10": 0.4, "validation/certified": 0.3}
    config = methods.apply_method(Config(), "ibp")
    assert get_selection_metric(config, metrics) == 0.3
    config.classifier = dataclasses.replace(config.classifier, loss="cross_entropy")
    assert get_selection_metric(config, metrics) == 0.9

"""The game: zero-sum, players apart, the penalty exact, weights of 0 free of cost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_networks import build_classifier, build_generator

from robust_gan import LinfThreat, adversaries, losses, networks, threat_model
from robust_gan import game as game_lib
from robust_gan.config import AdversaryConfig, ClassifierConfig, Config, PenaltyConfig
from robust_gan.game import Game, TrainState, objective
from robust_gan.types import Adversary, Batch, Network, PlayerState

THREAT = LinfThreat(0.15)
CLASSIFIER = build_classifier()
GENERATOR = build_generator()


def make_batch(count=8, seed=0):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(size=(count, 8, 8, 1)), jnp.float32)
    return Batch(images, jnp.asarray(rng.integers(0, 10, count), jnp.int32))


def make_game(adversary=None, optimizer=None, **settings):
    adversary = adversary or adversaries.generator(GENERATOR, optax.sgd(0.05), THREAT, steps=2)
    return Game(CLASSIFIER, optimizer or optax.sgd(0.1), adversary, **settings)


def max_difference(left, right):
    differences = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), left, right)
    return max(jax.tree.leaves(differences), default=0.0)


def trees_equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_the_game_is_zero_sum():
    batch = make_batch()
    theta, theta_stats = CLASSIFIER.init(jax.random.key(0), batch.images)
    phi, phi_stats = GENERATOR.init(jax.random.key(1), batch.images)

    def logits_of(phi):
        noise, _ = GENERATOR.apply(phi, phi_stats, batch.images, train=True)
        adversarial = threat_model.perturb(batch.images, noise, THREAT)
        clean_logits, _ = CLASSIFIER.apply(theta, theta_stats, batch.images, train=True)
        return clean_logits, CLASSIFIER.apply(theta, theta_stats, adversarial, train=True)[0]

    classifiers = jax.jit(jax.grad(lambda phi: losses.classifier_loss(*logits_of(phi), batch.labels).mean()))(phi)
    generators = jax.jit(jax.grad(lambda phi: losses.generator_loss(logits_of(phi)[1], batch.labels).mean()))(phi)
    size = float(optax.tree.norm(generators))
    assert size > 1e-4
    assert max_difference(classifiers, jax.tree.map(jnp.negative, generators)) < 1e-6 * size


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_a_generator_step_raises_the_frozen_classifiers_loss_and_leaves_it_alone(batch_norm):
    batch = make_batch(32)
    game = make_game(adversaries.generator(GENERATOR, optax.sgd(0.3), THREAT, steps=5), attack_bn_mode=batch_norm)
    state = game_lib.init(game, jax.random.key(0), batch.images)
    classifier_fn = objective.attacked_classifier(game, state.classifier, None)

    @jax.jit
    def loss(adversary):
        images = game.adversary.perturb(adversary, classifier_fn, batch, None)
        return losses.cross_entropy(classifier_fn(images), batch.labels).mean()

    @jax.jit
    def improve(adversary):
        return game.adversary.improve(adversary, classifier_fn, batch, None)

    before = jax.tree.map(np.array, state.classifier)
    improved, metrics = improve(state.adversary)
    assert loss(improved) > loss(state.adversary) + 1e-3
    assert trees_equal(before, state.classifier)
    assert float(metrics["generator_loss"]) < 0
    assert not trees_equal(improved.params, state.adversary.params)


def test_a_classifier_step_lowers_its_loss_and_leaves_the_adversary_alone():
    batch = make_batch(32)
    game = make_game(optimizer=optax.sgd(0.05))
    state = game_lib.init(game, jax.random.key(0), batch.images)
    keys = jax.random.split(jax.random.key(1), 32)
    before = jax.tree.map(np.array, state.adversary)

    @jax.jit
    def learn(classifier):
        gradient, stats, metrics, _ = game_lib.classifier_gradient(game, classifier, state.adversary, batch, keys)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, classifier.params, gradient)
        return PlayerState(params, stats, classifier.opt_state), metrics["classifier_loss"]

    learnt, first = learn(state.classifier)
    assert learn(learnt)[1] < first
    assert trees_equal(before, state.adversary)


def test_the_classifier_gradient_is_that_of_the_stated_loss():
    batch = make_batch()
    game = make_game(clean_weight=0.7, adversarial_weight=1.3)
    state = game_lib.init(game, jax.random.key(0), batch.images)
    keys = jax.random.split(jax.random.key(1), 8)
    gradient, stats, metrics, _ = game_lib.classifier_gradient(game, state.classifier, state.adversary, batch, keys)
    images = game.adversary.perturb(state.adversary, None, batch, keys)

    def loss(params):
        clean, between = CLASSIFIER.apply(params, state.classifier.batch_stats, batch.images, train=True)
        adversarial, after = CLASSIFIER.apply(params, between, images, train=True)
        value = losses.classifier_loss(
            clean, adversarial, batch.labels, clean_weight=0.7, adversarial_weight=1.3
        ).mean()
        return value, after

    (value, expected_stats), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.classifier.params)
    assert max_difference(gradient, expected) < 1e-5
    assert max_difference(stats, expected_stats) < 1e-6
    np.testing.assert_allclose(metrics["classifier_loss"], value, rtol=1e-5)


def smooth_game(hidden=5, **settings):
    """Two smooth little networks in float64: the penalty must match finite differences to many digits."""

    def classify(params, stats, images, *, train, axis_name=None):
        flat = images.reshape(images.shape[0], -1)
        return jnp.tanh(flat @ params["first"]) @ params["second"], stats

    def make_noise(params, stats, images, *, train, axis_name=None):
        flat = images.reshape(images.shape[0], -1)
        return jnp.tanh(flat @ params["kernel"] + params["bias"]).reshape(images.shape), stats

    # NumPy's random numbers need no compilation.
    def init_classifier(key, images):
        rng, size = np.random.default_rng(0), images[0].size
        first, second = rng.normal(size=(size, hidden)), rng.normal(size=(hidden, 4))
        return {"first": jnp.asarray(first), "second": jnp.asarray(second)}, {}

    def init_generator(key, images):
        rng, size = np.random.default_rng(1), images[0].size
        return {"kernel": jnp.asarray(0.3 * rng.normal(size=(size, size))), "bias": jnp.zeros(size, jnp.float64)}, {}

    adversary = adversaries.generator(Network(init_generator, make_noise), optax.sgd(0.1), LinfThreat(0.1))
    return Game(Network(init_classifier, classify), optax.sgd(0.1), adversary, **settings)


def float64_case(**settings):
    game = smooth_game(**settings)
    rng = np.random.default_rng(0)
    # Away from the edges of the range, where clipping has kinks.
    images = jnp.asarray(rng.uniform(0.2, 0.8, size=(6, 3, 3, 1)), jnp.float64)
    batch = Batch(images, jnp.asarray(rng.integers(0, 4, 6), jnp.int32))
    state = game_lib.init(game, jax.random.key(0), images)
    return game, state, batch, jax.random.split(jax.random.key(1), 6)


def penalty_value(game, state, batch, keys, theta):
    """R written out: half the squared norm of the gradient in phi of the mean cross-entropy."""

    def loss(phi):
        images = game.adversary.response(state.adversary, None, batch, keys)[1](phi)
        logits, _ = game.classifier.apply(theta, {}, images, train=True)
        return losses.cross_entropy(logits, batch.labels).mean()

    return 0.5 * optax.tree.norm(jax.grad(loss)(state.adversary.params), squared=True)


def penalty_part(settings):
    """What the penalty adds to the classifier's gradient, per unit of the coefficient."""
    game, state, batch, keys = float64_case(**settings)
    with_penalty = game_lib.classifier_gradient(game, state.classifier, state.adversary, batch, keys)[0]
    plain = dataclasses.replace(game, gradient_penalty=0.0)
    without = game_lib.classifier_gradient(plain, state.classifier, state.adversary, batch, keys)[0]
    part = jax.tree.map(lambda a, b: (a - b) / game.gradient_penalty, with_penalty, without)
    return part, (game, state, batch, keys)


@pytest.mark.parametrize("coefficient", [2.0, pytest.param(-0.5, marks=pytest.mark.slow)])
def test_the_penalty_matches_finite_differences(coefficient):
    with jax.enable_x64(True):
        part, case = penalty_part({"gradient_penalty": coefficient, "adversarial_weight": 1.5})
        theta = case[1].classifier.params
        h, rng = 1e-5, np.random.default_rng(1)
        value = jax.jit(functools.partial(penalty_value, *case))
        for _ in range(3):
            direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), theta)
            ahead = value(jax.tree.map(lambda p, d: p + h * d, theta, direction))
            behind = value(jax.tree.map(lambda p, d: p - h * d, theta, direction))
            expected = float(ahead - behind) / (2 * h)
            found = float(optax.tree.vdot(part, direction))
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_the_released_finite_difference_tends_to_the_exact_penalty():
    with jax.enable_x64(True):
        exact, _ = penalty_part({"gradient_penalty": 1.0})
        size = float(optax.tree.norm(exact))
        errors = []
        for h in (1e-2, 1e-4, 1e-6):
            difference, _ = penalty_part(
                {"gradient_penalty": 1.0, "penalty_form": "finite_difference", "penalty_step": h}
            )
            errors.append(max_difference(exact, difference) / size)
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 1e-5


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_finite_difference_is_the_released_codes_update(decay):
    """Its classifier moves along g1 + g2 + gamma (g2 - g3) / h: a penalty of -gamma in this project's sign.

    The generator's weight decay is in the gradient that the virtual step takes.
    """
    with jax.enable_x64(True):
        gamma, h = 0.01, 0.01
        game, state, batch, keys = float64_case(
            gradient_penalty=-gamma, penalty_form="finite_difference", penalty_step=h, penalty_decay=decay
        )
        found = game_lib.classifier_gradient(game, state.classifier, state.adversary, batch, keys)[0]
        theta, phi = state.classifier.params, state.adversary.params
        images_of = game.adversary.response(state.adversary, None, batch, keys)[1]

        def loss(theta, images):
            return losses.cross_entropy(game.classifier.apply(theta, {}, images, train=True)[0], batch.labels).mean()

        g1 = jax.grad(loss)(theta, batch.images)
        g2 = jax.grad(loss)(theta, images_of(phi))
        kernels = lambda phi: [leaf for path, leaf in jax.tree.leaves_with_path(phi) if "kernel" in str(path[-1])]  # noqa: E731
        assert kernels(phi)
        generators = jax.grad(
            lambda phi: -loss(theta, images_of(phi)) + decay / 2 * sum(jnp.sum(k**2) for k in kernels(phi))
        )(phi)
        virtual = jax.tree.map(lambda p, g: p - h * g, phi, generators)
        g3 = jax.grad(loss)(theta, images_of(virtual))
        expected = jax.tree.map(lambda a, b, c: a + b + gamma * (b - c) / h, g1, g2, g3)
        assert max_difference(found, expected) < 1e-12


def bilinear_game(coefficient):
    """A game whose adversarial term is theta * phi: the cross-entropy of logits built to give exactly that."""

    def classify(params, stats, images, *, train, axis_name=None):
        value = params["theta"] * images[:, 0, 0, 0]
        # With logits (0, s) and label 0 the loss is log(1 + exp(s)); s = log(exp(v) - 1) makes it v.
        shifted = value + 10.0
        return jnp.stack([jnp.zeros_like(shifted), shifted + jnp.log1p(-jnp.exp(-shifted))], -1), stats

    def init_classifier(key, images):
        return {"theta": jnp.ones((), jnp.float64)}, {}

    adversary = Adversary(
        init=lambda key, images: PlayerState({"phi": jnp.ones((), jnp.float64)}, {}, ()),
        improve=lambda state, classifier_fn, batch, keys, *, axis_name=None: (
            PlayerState(
                jax.tree.map(
                    lambda p, g: p + 0.1 * g,
                    state.params,
                    jax.grad(
                        lambda p: losses.cross_entropy(
                            classifier_fn(jnp.full((1, 1, 1, 1), 1.0) * p["phi"]), batch.labels
                        ).mean()
                    )(state.params),
                ),
                {},
                (),
            ),
            {},
        ),
        perturb=lambda state, classifier_fn, batch, keys, *, axis_name=None: (
            jnp.full((1, 1, 1, 1), 1.0) * state.params["phi"]
        ),
        response=lambda state, classifier_fn, batch, keys, *, axis_name=None: (
            state.params,
            lambda params: jnp.full((1, 1, 1, 1), 1.0) * params["phi"],
        ),
    )
    return Game(
        Network(init_classifier, classify), optax.sgd(0.1), adversary, clean_weight=0.0, gradient_penalty=coefficient
    )


@pytest.mark.parametrize(("coefficient", "converges"), [(1.0, True), (-1.0, False)])
def test_positive_penalty_converges_and_negative_diverges_on_the_bilinear_game(coefficient, converges):
    """CE = theta phi + 10, so R = theta^2 / 2: theta moves by -0.1 (phi + c theta), phi by +0.1 theta."""
    with jax.enable_x64(True):
        game = bilinear_game(coefficient)
        batch = Batch(jnp.ones((1, 1, 1, 1), jnp.float64), jnp.zeros(1, jnp.int32))
        state = game_lib.init(game, jax.random.key(0), batch.images)
        step = jax.jit(functools.partial(game_lib.train_step, game))
        theta, phi, start = 1.0, 1.0, np.hypot(1.0, 1.0)
        steps = 150 if converges else 20
        for _ in range(steps):
            state, _ = step(state, batch)
            phi += 0.1 * theta
            theta -= 0.1 * (phi + coefficient * theta)
        np.testing.assert_allclose(state.classifier.params["theta"], theta, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(state.adversary.params["phi"], phi, rtol=1e-6, atol=1e-9)
        radius = np.hypot(theta, phi)
        assert radius < 0.01 * start if converges else radius > 1.5 * start


def test_what_has_weight_zero_is_not_computed():
    batch, keys = make_batch(), jax.random.split(jax.random.key(1), 8)

    # The real networks: lowered with shapes alone they take no time.
    classifier, generator = networks.build_classifier("digits_cnn", 10), networks.build_generator("digits_generator", 1)

    def flops(**settings):
        adversary = adversaries.generator(generator, optax.sgd(0.05), THREAT)
        game = Game(classifier, optax.sgd(0.1), adversary, **settings)
        state = jax.eval_shape(functools.partial(game_lib.init, game), jax.random.key(0), batch.images)
        gradient = jax.jit(
            lambda s: game_lib.classifier_gradient(game, s.classifier, s.adversary, batch, keys)[:2]
        )  # fmt: skip
        return gradient.lower(state).cost_analysis()["flops"]

    both, clean_only = flops(), flops(adversarial_weight=0.0)
    adversarial_only, penalised = flops(clean_weight=0.0), flops(gradient_penalty=0.1)
    assert clean_only < adversarial_only < both < penalised
    assert both - adversarial_only == pytest.approx(clean_only, rel=0.02)


def test_a_penalty_without_parameters_is_refused():
    batch = make_batch()
    game = make_game(adversaries.pgd(THREAT, num_steps=1), gradient_penalty=0.1)
    state = game_lib.init(game, jax.random.key(0), batch.images)
    with pytest.raises(ValueError, match="an adversary with parameters"):
        game_lib.train_step(game, state, batch)


def test_standard_training_is_plain_gradient_descent_and_never_calls_the_adversary():
    def fail(*args, **kwargs):
        raise AssertionError("called")

    batch = make_batch()
    game = make_game(Adversary(lambda key, images: (), fail, fail), adversarial_weight=0.0)
    state = game_lib.init(game, jax.random.key(0), batch.images)
    after, metrics = jax.jit(functools.partial(game_lib.train_step, game))(state, batch)

    def loss(params):
        logits, _ = CLASSIFIER.apply(params, state.classifier.batch_stats, batch.images, train=True)
        return losses.cross_entropy(logits, batch.labels).mean()

    params = state.classifier.params
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.jit(jax.grad(loss))(params))
    assert max_difference(after.classifier.params, expected) < 1e-6
    assert "adversarial_loss" not in metrics
    assert int(after.step) == 1


@pytest.mark.slow
def test_earlier_minibatches_move_the_adversary_alone():
    batches = [make_batch(seed=index) for index in range(3)]
    game = make_game()
    state = game_lib.init(game, jax.random.key(0), batches[0].images)
    found, _ = jax.jit(functools.partial(game_lib.train_step, game))(state, batches[2], earlier=batches[:2])
    classifier_fn = objective.attacked_classifier(game, state.classifier, None)
    improve = jax.jit(lambda adversary, batch: game.adversary.improve(adversary, classifier_fn, batch, None)[0])
    adversary = state.adversary
    for batch in batches:
        adversary = improve(adversary, batch)
    gradient, *_ = game_lib.classifier_gradient(game, state.classifier, adversary, batches[2], None)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.classifier.params, gradient)
    assert max_difference(found.adversary.params, adversary.params) < 1e-5
    assert max_difference(found.classifier.params, expected) < 1e-5


def test_an_update_on_every_third_step_equals_two_steps_with_a_frozen_adversary_bit_for_bit():
    every = make_game(update_every=3)
    frozen = dataclasses.replace(
        every, update_every=1, adversary=every.adversary._replace(improve=lambda state, *_, **__: (state, {}))
    )
    updated = dataclasses.replace(every, update_every=1)
    step, skip, move = (jax.jit(functools.partial(game_lib.train_step, game)) for game in (every, frozen, updated))
    found = expected = game_lib.init(every, jax.random.key(0), make_batch().images)
    for index in range(6):
        batch = make_batch(seed=index)
        before, (found, metrics) = found, step(found, batch)
        expected, _ = (move if index % 3 == 2 else skip)(expected, batch)
        assert trees_equal(found.adversary, before.adversary) == (index % 3 != 2)
        assert (float(metrics["generator_loss"]) == 0) == (index % 3 != 2)
        assert trees_equal((found.classifier, found.adversary), (expected.classifier, expected.adversary))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgd", "generator", "fgsm"])
def test_while_it_warms_up_the_ball_is_smaller_and_then_it_is_the_whole(name):
    batch = make_batch(16)

    def run_step(step, **settings):
        adversary = AdversaryConfig(name=name, epsilon_warmup_steps=settings.pop("epsilon_warmup_steps", 0))
        adversary.pgd.num_steps = adversary.generator.steps = 1
        config = Config(adversary=adversary, classifier=ClassifierConfig(clean_weight=0.0))
        config.threat.epsilon = settings.pop("epsilon", 0.2)
        game = game_lib.from_config(config, num_classes=10, channels=1)
        game = dataclasses.replace(game, classifier=CLASSIFIER)
        state = game_lib.init(game, jax.random.key(0), batch.images)._replace(step=jnp.int32(step))
        return jax.jit(functools.partial(game_lib.train_step, game))(state, batch)[0]

    early, whole, late = (run_step(step, epsilon_warmup_steps=4) for step in (1, 3, 100))
    assert max_difference(early.classifier, run_step(1, epsilon=0.1).classifier) < 1e-6
    assert max_difference(whole.classifier, run_step(3).classifier) < 1e-6
    assert max_difference(late.classifier, run_step(100).classifier) < 1e-6
    assert max_difference(early.classifier, run_step(1).classifier) > 1e-4


def test_keys_are_a_function_of_seed_and_step_and_of_the_position_alone():
    state = TrainState(jnp.int32(5), jax.random.key(0), PlayerState({}, {}, ()), ())
    keys = [jax.random.key_data(key).tolist() for key in game_lib.step_keys(state)]
    again = [jax.random.key_data(key).tolist() for key in game_lib.step_keys(state)]
    later = [jax.random.key_data(key).tolist() for key in game_lib.step_keys(state._replace(step=jnp.int32(6)))]
    assert keys == again
    assert len({tuple(key) for key in keys + later}) == 6
    whole = game_lib.image_keys(jax.random.key(0), 8)
    shares = jax.vmap(lambda _: game_lib.image_keys(jax.random.key(0), 2, "batch"), axis_name="batch")(jnp.arange(4))
    assert jnp.all(jax.random.key_data(whole) == jax.random.key_data(shares.reshape(-1)))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize("name", ["none", "pgd", "generator"])
def test_every_method_of_a_config_runs_the_same_step(name):
    config = Config(
        adversary=AdversaryConfig(name=name),
        classifier=ClassifierConfig(clean_weight=1.0),
        penalty=PenaltyConfig(coefficient=0.01 if name == "generator" else 0.0),
    )
    game = game_lib.from_config(config, num_classes=10, channels=1)
    batch = make_batch()
    state = game_lib.init(game, jax.random.key(0), batch.images)
    after, metrics = jax.jit(functools.partial(game_lib.train_step, game))(state, batch)
    assert int(after.step) == 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert ("penalty" in metrics) == (name == "generator")
    assert not trees_equal(after.classifier.params, state.classifier.params)

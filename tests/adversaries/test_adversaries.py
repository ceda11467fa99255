"""Every adversary: in its ball, raising the loss, the same on four devices; ensembles, TRADES, grown generators."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robust_gan import L2Threat, LinfThreat, adversaries, attacks, losses, parallel, threat_model
from robust_gan import game as game_lib
from robust_gan.adversaries.generator import mode_seeking_ratio
from robust_gan.attacks.generator import PAPER, Design, draw_start, generate, generator_inputs
from robust_gan.game import Game, objective
from robust_gan.types import Adversary, Batch, Network

THREAT = LinfThreat(0.1)
CLASSES = 5
SHAPE = (4, 4, 2)
EVERYTHING = Design(inputs=("gradient", "perturbation", "label"), num_refinements=2, latent_size=3, final_fgsm_step=0.5)


def two_layers(params, images):
    hidden = jnp.tanh(images.reshape(images.shape[0], -1) @ params["in"])
    return hidden @ params["out"] + params["bias"]


def init_classifier(key, images):
    size = int(np.prod(images.shape[1:]))
    keys = jax.random.split(key, 2)
    return {
        "in": jax.random.normal(keys[0], (size, 16)),
        "out": jax.random.normal(keys[1], (16, CLASSES)),
        "bias": jnp.zeros(CLASSES),
    }, {}


# Without BatchNorm and convolutions, so that it compiles in no time; tests/test_parallel.py has both.
CLASSIFIER = Network(
    init_classifier,
    lambda params, batch_stats, images, *, train, axis_name=None: (two_layers(params, images), batch_stats),
)


def pixelwise_generator(channels):
    """A generator of one layer on each pixel, and a running count in place of running statistics."""

    def init(key, inputs):
        kernel = jax.random.normal(key, (inputs.shape[-1], channels))
        return {"kernel": kernel}, {"count": jnp.zeros(())}

    def apply(params, batch_stats, inputs, *, train, axis_name=None):
        return jnp.tanh((2 * inputs - 1) @ params["kernel"]), {"count": batch_stats["count"] + train}

    return Network(init, apply)


def make_batch(count=16, seed=0):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(size=(count, *SHAPE)), jnp.float32)
    return Batch(images, jnp.asarray(rng.integers(0, CLASSES, count), jnp.int32))


def make_source(seed):
    params, _ = init_classifier(jax.random.key(seed), jnp.zeros((1, *SHAPE)))
    return jax.tree_util.Partial(two_layers, params)


def grown(design=EVERYTHING, threat=THREAT, **settings):
    settings = {"steps": 2, "num_classes": CLASSES} | settings
    return adversaries.generator(pixelwise_generator(SHAPE[-1]), optax.sgd(0.1), threat, design=design, **settings)


ADVERSARIES: dict[str, tuple[Adversary, float]] = {
    # The adversary, and how far it may go in units of epsilon.
    "fgsm": (adversaries.fgsm(THREAT), 1),
    "fgsm from noise": (adversaries.fgsm(THREAT, start="noise", step_size=1.0), 3),
    "pgd": (adversaries.pgd(THREAT, num_steps=3), 1),
    "pgd to its last point": (adversaries.pgd(THREAT, num_steps=3, keep_best=False), 1),
    "pgd on the margin": (adversaries.pgd(THREAT, num_steps=3, loss="margin"), 1),
    "pgd on kl": (adversaries.pgd(THREAT, num_steps=3, loss="kl"), 1),
    "ensemble": (adversaries.ensemble([make_source(0)], THREAT, num_steps=3), 1),
    "ensemble that leaves some clean": (
        adversaries.ensemble([make_source(0)], THREAT, num_steps=3, keep_best=False, clean_share=0.25),
        1,
    ),
    "ensemble of many": (adversaries.ensemble([make_source(0), make_source(0)], THREAT, scheme="tramer"), 1),
    "generator": (grown(PAPER), 1),
    "generator with the gradient": (grown(Design(inputs=("gradient",))), 1),
    "generator with refinements": (grown(Design(inputs=("gradient", "perturbation"), num_refinements=3)), 1),
    "generator with a final step": (grown(Design(final_fgsm_step=1.0)), 1),
    "generator that rescales": (grown(Design(inputs=("label",), parametrization="rescale")), 1),
    "generator with a uniform start": (
        grown(Design(inputs=("gradient", "perturbation"), final_fgsm_step=1.0, start="uniform")),
        1,
    ),
    "generator from noise": (grown(Design(inputs=("gradient",), start="noise")), 3),
    "generator with a start in a corner": (grown(Design(inputs=("gradient",), start="vertex")), 1),
    "generator with diversity": (grown(Design(latent_size=2), diversity=0.1), 1),
    "generator with everything": (grown(diversity=0.1), 1),
    "generator in L2": (grown(EVERYTHING, L2Threat(0.5)), 1),
}


DEFAULT = ("fgsm", "pgd", "ensemble", "generator", "generator with everything", "generator in L2")
"""One of each kind; the others are variations, and slow to compile."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow) for name in ADVERSARIES]
)
def test_every_adversary_raises_the_loss_within_the_ball(name):
    adversary, reach = ADVERSARIES[name]
    batch, classifier_fn = make_batch(64), make_source(0)
    state = adversary.init(jax.random.key(1), batch.images)

    @jax.jit
    def run_step(state, key):
        state, _ = adversary.improve(state, classifier_fn, batch, jax.random.split(key, 64))
        return state, adversary.perturb(state, classifier_fn, batch, jax.random.split(key, 64))

    for index in range(40):
        state, images = run_step(state, jax.random.key(index))
    threat = L2Threat(0.5) if "L2" in name else threat_model.scaled(THREAT, reach)
    assert float(threat_model.distance(images, batch.images, threat).max()) <= float(threat.epsilon) * (1 + 1e-6)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    loss = lambda images: float(losses.cross_entropy(classifier_fn(images), batch.labels).mean())  # noqa: E731
    assert loss(images) > loss(batch.images) + 0.02


GAMES = {
    **{
        name: {"adversary": ADVERSARIES[name][0]}
        for name in (
            "fgsm", "pgd to its last point", "ensemble", "ensemble that leaves some clean", "ensemble of many",
            "generator in L2",
        )
    },
    "generator updated every second step": {
        "adversary": ADVERSARIES["generator with a uniform start"][0], "update_every": 2,
    },
    "trades": {"adversary": ADVERSARIES["pgd on kl"][0], "loss": "trades", "adversarial_weight": 6.0},
    "everything around it": {
        "adversary": grown(diversity=0.1), "label_smoothing": 0.1, "awp_gamma": 0.01, "ema_decay": 0.9,
        "gradient_penalty": 0.1,
    },
    "trades with everything around it": {
        "adversary": ADVERSARIES["fgsm"][0], "loss": "trades", "label_smoothing": 0.1, "awp_gamma": 0.01,
        "ema_decay": 0.9,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMES)
def test_two_steps_on_four_devices_are_two_steps_on_one(name):
    game = Game(CLASSIFIER, optax.sgd(0.1), **GAMES[name])
    batch = make_batch()
    state = game_lib.init(game, jax.random.key(0), batch.images)
    alone = jax.jit(functools.partial(game_lib.train_step, game))
    shared = jax.pmap(
        functools.partial(game_lib.train_step, game, axis_name=parallel.AXIS),
        axis_name=parallel.AXIS, in_axes=(None, 0), out_axes=(None, None), devices=jax.devices()[:4],
    )  # fmt: skip
    shares = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch)
    one, four = state, state
    for _ in range(2):
        one, metrics = alone(one, batch)
        four, shared_metrics = shared(four, shares)
    plain = [jax.tree.map(_data, (tree, values)) for tree, values in ((one, metrics), (four, shared_metrics))]
    chex.assert_trees_all_close(*plain, rtol=2e-5, atol=2e-5)
    assert not np.array_equal(one.classifier.params["in"], state.classifier.params["in"])


def _data(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@pytest.mark.parametrize("scheme", ["paper", "tramer"])
def test_sources_stay_frozen_bit_for_bit(scheme):
    sources = [make_source(0), make_source(1)]
    before = [jax.tree.map(np.array, source) for source in sources]
    game = Game(CLASSIFIER, optax.sgd(0.1), adversaries.ensemble(sources, THREAT, scheme=scheme, num_steps=2))
    batch = make_batch()
    state = game_lib.init(game, jax.random.key(0), batch.images)
    kept = jax.tree.map(np.array, state.adversary.sources)
    step = jax.jit(functools.partial(game_lib.train_step, game), donate_argnums=0)
    for _ in range(5):
        state, _ = step(state, batch)
    chex.assert_trees_all_equal(state.adversary.sources, kept)
    chex.assert_trees_all_equal(sources, before)
    assert int(state.adversary.count) == 5


@pytest.mark.slow
def test_the_papers_ensemble_attacks_in_its_three_ways():
    source, batch = make_source(0), make_batch(300)
    adversary = adversaries.ensemble([source], THREAT, num_steps=3)
    keys = jax.random.split(jax.random.key(0), 300)
    state = adversary.init(jax.random.key(0), batch.images)
    images = adversary.perturb(state, None, batch, keys)
    logits = source(batch.images)
    up = attacks.fgsm(source, None, batch.images, jnp.argmax(logits, -1), THREAT)
    down = attacks.fgsm(
        source, None, batch.images, jnp.argmin(logits, -1), THREAT, loss_fn=lambda *a: -losses.cross_entropy(*a)
    )
    is_up, is_down = (np.abs(images - other).max((1, 2, 3)) < 1e-6 for other in (up, down))
    is_pgd = ~is_up & ~is_down
    for share in (is_up.mean(), is_down.mean(), is_pgd.mean()):
        assert 0.2 < share < 0.5
    rise = losses.cross_entropy(source(images), batch.labels) - losses.cross_entropy(logits, batch.labels)
    assert float(rise[is_pgd].min()) > -1e-4  # PGD keeps the best point for the true label.


@pytest.mark.slow
def test_pgd_to_its_last_point_by_hand():
    logits_fn, (images, labels, _), keys = make_source(0), make_batch(), jax.random.split(jax.random.key(0), 16)
    pgd = functools.partial(attacks.pgd, logits_fn, keys, images, labels, THREAT, keep_best=False)
    start = threat_model.random_start(jax.vmap(lambda key: jax.random.split(key, 1)[0])(keys), images, THREAT)
    assert 0.09 < float(jnp.abs(start - images).max()) <= 0.1 + 1e-6
    points, passed = np.array(start), []
    for _ in range(4):
        slope = jax.grad(lambda x: losses.cross_entropy(logits_fn(x), labels).sum())(points)
        points = np.clip(np.clip(points + 0.08 * np.sign(slope), images - 0.1, images + 0.1), 0, 1)
        passed.append(losses.cross_entropy(logits_fn(points), labels))
    last = pgd(num_steps=4, step_size=0.08)
    np.testing.assert_allclose(last, points, atol=1e-6)
    # So long a step passes a better point, which is the one that is kept by default.
    assert np.any(np.max(passed, axis=0) > passed[-1] + 1e-3)
    best = pgd(num_steps=4, step_size=0.08, keep_best=True)
    assert not np.allclose(best, last, atol=1e-3)
    adversary = adversaries.pgd(THREAT, num_steps=4, step_size=0.08, keep_best=False)
    np.testing.assert_array_equal(adversary.perturb((), logits_fn, Batch(images, labels), keys), last)
    with pytest.raises(ValueError, match="of 2 restarts the best point is returned"):
        pgd(num_restarts=2)


@pytest.mark.slow
def test_the_released_ensemble_learns_from_the_mean_over_one_mixed_batch():
    """A quarter of the images is clean, and a classifier with batch statistics gets the mixed batch, once."""
    batch, keys = make_batch(400), jax.random.split(jax.random.key(1), 400)
    adversary = adversaries.ensemble([make_source(0)], THREAT, num_steps=2, keep_best=False, clean_share=0.25)
    state = adversary.init(jax.random.key(0), batch.images)
    mixed = adversary.perturb(state, None, batch, keys)
    clean = (np.asarray(mixed) == np.asarray(batch.images)).all((1, 2, 3))
    assert 0.25 - 5 * (0.1875 / 400) ** 0.5 < clean.mean() < 0.25 + 5 * (0.1875 / 400) ** 0.5
    passes = []

    def apply(params, batch_stats, images, *, train, axis_name=None):
        passes.append(train)
        return two_layers(params, images - images.mean(0)), batch_stats

    game = Game(Network(init_classifier, apply), optax.sgd(0.1), adversary, clean_weight=0.0)
    params = game_lib.init(game, jax.random.key(0), batch.images).classifier
    gradient, _, metrics, _ = game_lib.classifier_gradient(game, params, state, batch, keys)
    assert passes == [True]

    def loss(params):
        centred = two_layers(params, mixed - mixed.mean(0))
        return -jax.nn.log_softmax(centred)[jnp.arange(400), batch.labels].mean()

    chex.assert_trees_all_close(gradient, jax.grad(loss)(params.params), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["classifier_loss"], loss(params.params), rtol=1e-5)


def test_each_batch_of_the_ensemble_of_many_is_made_on_one_of_its_models_or_on_the_trained_one():
    sources, current, batch = [make_source(0), make_source(1)], make_source(2), make_batch(8)
    adversary = adversaries.ensemble(sources, THREAT, scheme="tramer")
    state = adversary.init(jax.random.key(0), batch.images)
    expected = [attacks.fgsm(model, None, *batch[:2], THREAT) for model in (*sources, current)]
    drawn = []
    for _ in range(24):
        state, _ = adversary.improve(state, current, batch, None)
        images = adversary.perturb(state, current, batch, None)
        drawn += [index for index, other in enumerate(expected) if np.allclose(images, other, atol=1e-6)]
    assert len(drawn) == 24
    assert set(drawn) == {0, 1, 2}


def test_trades_equals_a_numpy_reference():
    rng = np.random.default_rng(0)
    clean, adversarial = rng.normal(size=(2, 6, CLASSES)) * 3
    labels = rng.integers(0, CLASSES, 6)
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (clean, adversarial))
    expected = -np.log(p[np.arange(6), labels]) + 6 * (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(losses.trades(clean, adversarial, labels), expected, rtol=2e-5)
    smoothed = -(0.9 * np.log(p[np.arange(6), labels]) + 0.1 * np.log(p).mean(-1))
    np.testing.assert_allclose(
        losses.trades(clean, adversarial, labels, adversarial_weight=0.0, label_smoothing=0.1), smoothed, rtol=2e-5
    )
    np.testing.assert_allclose(
        losses.cross_entropy(clean, labels, label_smoothing=0.1),
        optax.softmax_cross_entropy(clean, optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), 0.1)),
        rtol=2e-5,
    )


@pytest.mark.slow
def test_the_trades_game_learns_along_the_gradient_of_its_loss():
    batch = make_batch()
    game = Game(CLASSIFIER, optax.sgd(0.1), ADVERSARIES["pgd on kl"][0], loss="trades", adversarial_weight=4.0)
    state, keys = game_lib.init(game, jax.random.key(0), batch.images), jax.random.split(jax.random.key(1), 16)
    classifier_fn = functools.partial(two_layers, state.classifier.params)
    images = game.adversary.perturb((), classifier_fn, batch, keys)

    def loss(params):
        logits = [two_layers(params, x) for x in (batch.images, images)]
        return losses.trades(*logits, batch.labels, adversarial_weight=4.0).mean()

    gradient, _, metrics, _ = game_lib.classifier_gradient(game, state.classifier, (), batch, keys)
    chex.assert_trees_all_close(gradient, jax.grad(loss)(state.classifier.params), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["classifier_loss"], loss(state.classifier.params), rtol=1e-5)


def test_refinements_by_hand():
    """A generator whose noise is half of the gradient and a quarter of the perturbation."""
    threat, images = LinfThreat(0.2), jnp.full((1, 1, 1, 1), 0.5)
    logits_fn = lambda x: jnp.concatenate([x, -x], -1)[:, 0, 0]  # noqa: E731
    design = Design(inputs=("gradient", "perturbation"), num_refinements=2)
    points = []

    def apply(count, inputs):
        points.append(inputs.ravel().tolist())
        gradient, perturbation = 2 * inputs[..., 1:2] - 1, 2 * inputs[..., 2:] - 1
        return 0.5 * jnp.sign(gradient) + 0.25 * perturbation, count + 1

    adversarial, count = generate(apply, 0, logits_fn, None, images, jnp.array([1]), threat, design, 2)
    # The loss of label 1 grows with the pixel. Noise and pixel: first 0.5 and 0.6, then 0.5 + 0.25 * 0.5 and 0.625.
    squashed = 0.5 + 0.5 * np.tanh(1.0)
    np.testing.assert_allclose(points, [[0.5, squashed, 0.5], [0.5, squashed, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(adversarial.item(), 0.625, rtol=1e-6)
    assert count == 2
    design = design._replace(final_fgsm_step=1.0)
    last, _ = generate(apply, 0, logits_fn, None, images, jnp.array([1]), threat, design, 2)
    np.testing.assert_allclose(last.item(), 0.7, rtol=1e-6)  # 0.625 + 0.2, back to the ball.


@pytest.mark.slow
def test_a_refinement_is_differentiable_in_the_one_before_but_not_in_the_classifiers_gradient():
    images, labels = make_batch(4)[:2]
    logits_fn = make_source(0)
    network = pixelwise_generator(SHAPE[-1])
    design = Design(inputs=("gradient", "perturbation"), num_refinements=2)
    params, stats = network.init(jax.random.key(0), jnp.zeros((1, *SHAPE[:2], design.channels(SHAPE[-1], CLASSES))))

    def loss(params, frozen):
        """Two refinements as in `generate`, the first with the parameters `frozen`."""
        inputs = generator_inputs(logits_fn, None, images, images, labels, THREAT, design, CLASSES)
        first = threat_model.perturb(images, network.apply(frozen, stats, inputs, train=True)[0], THREAT)
        inputs = generator_inputs(logits_fn, None, images, first, labels, THREAT, design, CLASSES)
        second = threat_model.perturb(images, network.apply(params, stats, inputs, train=True)[0], THREAT)
        return losses.cross_entropy(logits_fn(second), labels).mean()

    def unrolled(params):
        apply = lambda stats, inputs: network.apply(params, stats, inputs, train=True)  # noqa: E731
        points, _ = generate(apply, stats, logits_fn, None, images, labels, THREAT, design, CLASSES)
        return losses.cross_entropy(logits_fn(points), labels).mean()

    expected = jax.tree.map(jnp.add, *jax.grad(loss, argnums=(0, 1))(params, params))
    chex.assert_trees_all_close(jax.grad(unrolled)(params), expected, rtol=1e-4, atol=1e-7)


def test_rescaling_uses_all_noise():
    images = jnp.array([0.0, 0.05, 0.5, 1.0]).reshape(1, 4, 1, 1)
    for noise, expected in ((1, [0.1, 0.15, 0.6, 1.0]), (-1, [0.0, 0.0, 0.4, 0.9]), (0, [0.05, 0.075, 0.5, 0.95])):
        boxed = threat_model.perturb_rescaled(images, jnp.full(images.shape, noise, jnp.float32), THREAT)
        np.testing.assert_allclose(boxed.ravel(), expected, atol=1e-6)
    slope = jax.grad(lambda noise: threat_model.perturb_rescaled(images, noise, THREAT).sum())(jnp.ones(images.shape))
    assert float(slope.min()) > 0
    with pytest.raises(ValueError, match="L-infinity"):
        threat_model.perturb_rescaled(images, images, L2Threat(0.1))


@pytest.mark.slow
def test_diversity_by_hand_and_its_reward():
    images = jnp.zeros((1, 2, 2, 1))
    others = images.at[0, 0, 0, 0].set(0.1)
    value = mode_seeking_ratio(images, others, jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 1.0]]), THREAT)
    np.testing.assert_allclose(value, [(0.1 / 4 / 0.1) / 0.25], rtol=1e-6)
    with pytest.raises(ValueError, match="no random input"):
        grown(PAPER, diversity=1.0)
    spreads = []
    for reward in (0.0, 10.0):
        adversary = grown(Design(latent_size=2), diversity=reward, steps=20)
        batch, keys = make_batch(32), jax.random.split(jax.random.key(0), 32)
        state = adversary.init(jax.random.key(1), batch.images)
        state, _ = adversary.improve(state, make_source(0), batch, keys)
        pair = [adversary.perturb(state, None, batch, jax.random.split(jax.random.key(seed), 32)) for seed in (1, 2)]
        spreads.append(float(jnp.abs(pair[0] - pair[1]).mean()))
    assert spreads[1] > 1.2 * spreads[0] > 0


def test_inputs_are_in_the_range_of_pixels_whatever_the_classifiers_scale():
    images, labels = make_batch(8)[:2]
    for scale in (0.0, 1e-30, 1.0, 1e30):
        logits_fn = lambda x, scale=scale: scale * make_source(0)(x)  # noqa: E731
        inputs = generator_inputs(
            logits_fn, None, images, images, labels, THREAT, Design(inputs=("gradient",)), CLASSES
        )
        assert np.isfinite(inputs).all()
        assert float(inputs.min()) >= 0
        assert float(inputs.max()) <= 1
        if 0 < scale < 1e30:
            assert float(inputs[..., SHAPE[-1] :].std()) > 0.2


@pytest.mark.slow
def test_weights_are_perturbed_along_the_gradient_by_a_share_of_their_norm():
    batch = make_batch()
    game = Game(CLASSIFIER, optax.sgd(0.1), ADVERSARIES["pgd"][0], awp_gamma=0.05)
    state, keys = game_lib.init(game, jax.random.key(0), batch.images), jax.random.split(jax.random.key(1), 16)
    params = state.classifier.params
    images = game.adversary.perturb((), functools.partial(two_layers, params), batch, keys)

    def loss(params):
        logits = [two_layers(params, x) for x in (batch.images, images)]
        return losses.classifier_loss(*logits, batch.labels).mean()

    slope = jax.grad(loss)(params)
    moved = dict(params)
    for name in ("in", "out"):
        moved[name] = params[name] + 0.05 * np.linalg.norm(params[name]) * slope[name] / np.linalg.norm(slope[name])
    chex.assert_trees_all_close(objective.perturb_weights(params, slope, 0.05), moved, rtol=1e-5, atol=1e-6)
    assert float(loss(moved)) > float(loss(params))
    gradient, *_ = game_lib.classifier_gradient(game, state.classifier, (), batch, keys)
    chex.assert_trees_all_close(gradient, jax.grad(loss)(moved), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("clean_weight", [0.0, 1.0])
def test_consistency_is_the_squared_distance_of_the_probabilities(clean_weight):
    batch = make_batch()
    game = Game(CLASSIFIER, optax.sgd(0.1), ADVERSARIES["fgsm"][0], clean_weight=clean_weight, consistency=3.0)
    state, keys = game_lib.init(game, jax.random.key(0), batch.images), jax.random.split(jax.random.key(1), 16)
    params = state.classifier.params
    images = game.adversary.perturb((), functools.partial(two_layers, params), batch, keys)

    def loss(params):
        clean, adversarial = (two_layers(params, x) for x in (batch.images, images))
        apart = jnp.sum((jax.nn.softmax(clean) - jax.nn.softmax(adversarial)) ** 2, -1).mean()
        entropy = [losses.cross_entropy(logits, batch.labels).mean() for logits in (clean, adversarial)]
        return clean_weight * entropy[0] + entropy[1] + 3.0 * apart

    gradient, _, metrics, _ = game_lib.classifier_gradient(game, state.classifier, (), batch, keys)
    chex.assert_trees_all_close(gradient, jax.grad(loss)(params), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["classifier_loss"], loss(params), rtol=1e-5)


def test_noise_moves_the_ball_in_training_and_is_left_out_of_the_attack():
    design, (images, labels) = Design(inputs=("gradient",), start="noise", final_fgsm_step=1.0), make_batch(8)[:2]
    apply = lambda carry, inputs: (jnp.ones_like(images), carry)  # noqa: E731
    keys, settings = jax.random.split(jax.random.key(0), 8), (images, labels, THREAT, design, CLASSES)
    moved, _ = generate(apply, (), make_source(0), keys, *settings)
    start = draw_start(keys, images, THREAT, design)
    assert 0.15 < float(jnp.abs(start - images).max()) <= 0.2 + 1e-6
    assert float(jnp.abs(moved - start).max()) <= 0.1 + 1e-6
    attack = functools.partial(attacks.generator, make_source(0), images=images, labels=labels, threat=THREAT)
    attacked = attack(None, noise_fn=lambda inputs: jnp.ones_like(images), design=design)
    plain = attack(None, noise_fn=lambda inputs: jnp.ones_like(images), design=design._replace(start="none"))
    np.testing.assert_array_equal(attacked, plain)
    assert float(jnp.abs(attacked - images).max()) <= 0.1 + 1e-6


def test_the_average_equals_its_recurrence():
    batch = make_batch()
    game = Game(CLASSIFIER, optax.sgd(0.1), adversaries.none(), adversarial_weight=0.0, ema_decay=0.3)
    state = game_lib.init(game, jax.random.key(0), batch.images)
    step = jax.jit(functools.partial(game_lib.train_step, game))
    expected = np.float64(state.classifier.params["in"])
    for index in range(6):
        state, _ = step(state, batch)
        decay = min(0.3, (1 + index) / (10 + index))
        expected = decay * expected + (1 - decay) * np.float64(state.classifier.params["in"])
    np.testing.assert_allclose(state.average.params["in"], expected, rtol=1e-5)
    assert not np.allclose(state.average.params["in"], state.classifier.params["in"], rtol=1e-5)


@pytest.mark.parametrize("settings", [{"loss": "cross_entropy"}, {"loss": "trades"}])
def test_label_smoothing_is_the_classifiers_alone(settings):
    batch = make_batch()
    for smoothing in (0.0, 0.2):
        game = Game(CLASSIFIER, optax.sgd(0.1), grown(PAPER), label_smoothing=smoothing, **settings)
        state = game_lib.init(game, jax.random.key(0), batch.images)
        after, metrics = game_lib.train_step(game, state, batch)
        if not smoothing:
            unsmoothed, loss = after, metrics["classifier_loss"]
    chex.assert_trees_all_equal(after.adversary, unsmoothed.adversary)
    assert float(metrics["classifier_loss"]) != float(loss)


def test_an_ensemble_needs_a_source():
    with pytest.raises(ValueError, match="at least one source"):
        adversaries.ensemble([], THREAT)


@pytest.mark.parametrize("start", ["uniform", "vertex"])
def test_a_random_start_is_in_the_ball_and_depends_on_the_key_of_its_image_alone(start):
    """A generator without noise: its inputs show where it was first applied."""
    design, (images, labels) = Design(inputs=("gradient", "perturbation"), start=start), make_batch(8)[:2]
    logits_fn, keys, seen = make_source(0), jax.random.split(jax.random.key(3), 8), []

    def apply(carry, inputs):
        seen.append(inputs)
        return jnp.zeros_like(images[: len(inputs)]), carry

    for rows in (slice(0, 8), slice(5, 6)):
        generate(apply, (), logits_fn, keys[rows], images[rows], labels[rows], THREAT, design, CLASSES)
    np.testing.assert_allclose(seen[0][5:6], seen[1], atol=1e-6)
    size = np.abs(2 * np.asarray(seen[0][..., -SHAPE[-1] :]) - 1)
    assert size.max() <= 1 + 1e-5
    inside = np.asarray((images > 0.1) & (images < 0.9))
    assert (np.mean(size[inside] > 0.999) == 1) if start == "vertex" else (0.4 < size[inside].mean() < 0.6)
    # The gradient is taken at the start, not at the image.
    start_point = images + 0.1 * (2 * seen[0][..., -SHAPE[-1] :] - 1)
    there = generator_inputs(logits_fn, None, images, start_point, labels, THREAT, design, CLASSES)
    np.testing.assert_allclose(seen[0], there, atol=1e-3)
    other = generate(apply, (), logits_fn, jax.random.split(jax.random.key(4), 8), images, labels, THREAT, design, 0)
    assert other is not None
    assert not np.allclose(seen[0], seen[2], atol=0.01)
    with pytest.raises(ValueError, match="a random start or latent channels needs a key"):
        attacks.generator(logits_fn, None, images, labels, THREAT, noise_fn=jnp.zeros_like, design=design)

"""Attacks: optimal where the optimum is known, never outside the ball, and the same whatever the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_problems import KEY, SHAPE, THREATS, assert_inside, flat, images_between
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_gan import LinfThreat, attacks, losses, prng, threat_model
from robust_gan.errors import UserError

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(16, 2)).astype(np.float32)
HIDDEN, OUT = RNG.normal(size=(16, 12)).astype(np.float32), RNG.normal(size=(12, 3)).astype(np.float32)
LABELS = jnp.array([0, 1, 0, 1, 1, 0, 1, 0], jnp.int32)


def linear(images):
    return flat(images).astype(jnp.float32) @ WEIGHTS


def curved(images):
    """Three classes, far from linear: sines of random projections."""
    return jnp.sin(2 * flat(images).astype(jnp.float32) @ HIDDEN) @ OUT


def optimum_on_linear(images, labels, norm, epsilon):
    """The closed form: the margin grows along the difference of the two rows of weights."""
    ascent = np.float64(WEIGHTS.T[1 - labels] - WEIGHTS.T[labels]).reshape(-1, *SHAPE)
    if norm == "linf":
        return np.clip(np.float64(images) + epsilon * np.sign(ascent), 0, 1)
    return np.float64(images) + epsilon * ascent / np.sqrt((ascent**2).sum((1, 2, 3), keepdims=True))


ALL = {
    "fgsm": attacks.by_name("fgsm"),
    "margin_pgd2x2": attacks.by_name("margin_pgd2x2"),
    "pgd_from_clean": functools.partial(attacks.pgd, num_steps=3, step_size=1.0, start="clean"),
    "generator": functools.partial(attacks.generator, noise_fn=lambda x: jnp.tanh(9 * jnp.sin(9 * x))),
}


@functools.cache
def compiled(name, logits_fn=curved):
    # Compiling takes nearly all the time of these tests.
    return jax.jit(functools.partial(ALL[name], logits_fn), compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("norm", THREATS)
def test_fgsm_is_the_optimum_on_a_linear_classifier(norm):
    images = images_between(0.3, 0.7)
    adversarial = attacks.fgsm(linear, None, images, LABELS, THREATS[norm](0.2))
    np.testing.assert_allclose(adversarial, optimum_on_linear(images, LABELS, norm, 0.2), atol=1e-6)


def test_fgsm_is_the_optimum_on_a_linear_classifier_where_the_range_cuts_the_ball():
    images = images_between(-0.3, 1.3).clip(0, 1)
    expected = optimum_on_linear(images, LABELS, "linf", 0.2)
    assert ((expected == 0) | (expected == 1)).mean() > 0.2
    adversarial = attacks.fgsm(linear, None, images, LABELS, LinfThreat(0.2))
    np.testing.assert_allclose(adversarial, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("loss_fn", "start"), [(losses.cross_entropy, "uniform"), (losses.margin, "clean"), (losses.margin, "odi")]
)
@pytest.mark.parametrize("norm", THREATS)
def test_pgd_reaches_the_optimum_on_a_linear_classifier(norm, loss_fn, start):
    images = images_between(0.3, 0.7)
    adversarial = attacks.pgd(
        linear, KEY, images, LABELS, THREATS[norm](0.1), num_steps=20, loss_fn=loss_fn, start=start
    )
    optimum = optimum_on_linear(images, LABELS, norm, 0.1)
    reached = losses.margin(linear(adversarial), LABELS)
    best = losses.margin(linear(jnp.float32(optimum)), LABELS)
    # On the sphere the steps come nearer without end; in the cube they arrive.
    np.testing.assert_allclose(reached, best, atol=1e-4 if norm == "linf" else 2e-2)
    assert (np.asarray(reached) <= np.asarray(best) + 1e-4).all()


def test_pgd_reaches_the_optimum_on_a_linear_classifier_where_the_range_cuts_the_ball():
    images = images_between(-0.3, 1.3).clip(0, 1)
    adversarial = attacks.pgd(linear, KEY, images, LABELS, LinfThreat(0.2), num_steps=10)
    np.testing.assert_allclose(adversarial, optimum_on_linear(images, LABELS, "linf", 0.2), atol=1e-6)


@pytest.mark.parametrize("norm", THREATS)
def test_short_steps_are_not_lost_in_bfloat16(norm):
    images = images_between(0.5, 0.8).astype(jnp.bfloat16)
    adversarial = attacks.pgd(linear, KEY, images, LABELS, THREATS[norm](8 / 255), num_steps=100, start="clean")
    assert_inside(adversarial, images, norm, 8 / 255)
    wide = images.astype(jnp.float32)
    gain = losses.margin(linear(adversarial), LABELS) - losses.margin(linear(images), LABELS)
    optimum = jnp.float32(optimum_on_linear(wide, LABELS, norm, 8 / 255))
    best = losses.margin(linear(optimum), LABELS) - losses.margin(linear(wide), LABELS)
    # In L2 a pixel moves by less than a step of bfloat16, so rounding towards the image costs more.
    assert (np.asarray(gain) >= (0.95 if norm == "linf" else 0.2) * np.asarray(best)).all()


def numpy_pgd(images, labels, epsilon, num_steps, step_size, starts):
    """All iterates of all restarts in float64: their points, margins and losses, `[restarts, steps + 1, ...]`."""
    hidden, out, index = np.float64(HIDDEN), np.float64(OUT), np.arange(len(labels))
    points, margins, values = [], [], []
    for start in starts:
        x = np.float64(flat(start))
        for step in range(num_steps + 1):
            inner = 2 * x @ hidden
            logits = np.sin(inner) @ out
            shifted = np.exp(logits - logits.max(1, keepdims=True))
            softmax = shifted / shifted.sum(1, keepdims=True)
            wrong = logits.copy()
            wrong[index, labels] = -np.inf
            points.append(x)
            margins.append(wrong.max(1) - logits[index, labels])
            values.append(-np.log(softmax[index, labels]))
            if step == num_steps:
                break
            softmax[index, labels] -= 1
            gradient = ((softmax @ out.T) * np.cos(inner) * 2) @ hidden.T
            centre = np.float64(flat(images))
            x = np.clip(x + step_size * np.sign(gradient), centre - epsilon, centre + epsilon).clip(0, 1)
    return np.array(points), np.array(margins), np.array(values)


@pytest.mark.parametrize("num_restarts", [1, 3])
def test_pgd_returns_the_best_iterate(num_restarts):
    epsilon, num_steps, step_size, count = 0.05, 6, 0.1, 64
    images = images_between(0, 1, seed=3, count=count)
    labels = np.argmax(curved(images), -1).astype(np.int32)
    threat, keys = LinfThreat(epsilon), jax.random.split(KEY, count)
    restarts = prng.split_per_image(keys, num_restarts)
    starts = [np.asarray(threat_model.random_start(restart, images, threat)) for restart in restarts]
    points, margins, values = numpy_pgd(images, labels, epsilon, num_steps, step_size, starts)
    # Lexicographic: misclassified before correct, then by the loss; nothing is looked at after a run that broke it.
    run = np.arange(len(points))[:, None] // (num_steps + 1)
    breaking = np.where(margins > 0, run, num_restarts).min(0)
    best = np.argmax(np.where(run > breaking, -np.inf, np.where(margins > 0, values + 1e6, values)), axis=0)
    last, index = len(points) - 1, np.arange(count)
    returned = flat(
        attacks.pgd(
            curved, keys, images, labels, threat, num_steps=num_steps, step_size=step_size, num_restarts=num_restarts
        )
    )
    # Two iterates of one loss to rounding may change places; the images on which that decides are few.
    close = np.abs(np.float64(returned) - points[best, index]).max(1) < 1e-5
    assert close.mean() > 0.9
    loss = losses.cross_entropy(curved(returned), labels)
    fooled = ~np.asarray(losses.is_correct(curved(returned), labels))
    assert np.array_equal(fooled, (margins > 0).any(0))
    np.testing.assert_array_less(np.where(fooled, 0, values.max(0)) - 1e-3, loss)
    # The iterates overshoot: the case has teeth, the last one would not do.
    assert (best != last).mean() > 0.3
    assert ((margins[last] <= 0) & (margins > 0).any(0)).any()


def test_a_restart_attacks_the_remaining_images_alone():
    """Of 130 images that all fall in the first run, no chunk is attacked again; of those that stand, all are."""
    calls = []

    def logits_fn(images):
        jax.debug.callback(lambda pixels: calls.append(len(pixels)), images[:, 0, 0, 0])
        return curved(images) * 0 + jnp.array([1.0, 0.0, 0.0])

    images = images_between(0, 1, count=130)
    passes = []
    for label in (1, 0):
        attacks.pgd(logits_fn, KEY, images, jnp.full(130, label), LinfThreat(0.1), num_steps=2, num_restarts=3)
        jax.effects_barrier()
        passes.append(sum(calls))
        calls.clear()
    chunks = 3 * 64
    assert passes == [130 + chunks * 3, 130 + 3 * chunks * 3]


def test_a_misclassified_iterate_goes_before_one_of_higher_loss():
    # On a line: class 1 wins only near 0.55, while the loss handed in grows all the way.
    def logits_fn(x):
        position = x[:, 0, 0, 0]
        return jnp.stack([jnp.zeros_like(position) + position * 0, 0.02 - jnp.abs(position - 0.55)], -1)

    def rising(logits, labels):
        del labels
        return -logits[:, 1]

    image, label = jnp.full((1, 1, 1, 1), 0.55), jnp.array([0])
    adversarial = attacks.pgd(
        logits_fn,
        KEY,
        image + 0.01,
        label,
        LinfThreat(0.3),
        num_steps=4,
        step_size=0.05,
        start="clean",
        loss_fn=rising,
    )
    assert float(adversarial[0, 0, 0, 0]) == pytest.approx(0.56)
    assert not losses.is_correct(logits_fn(adversarial), label)[0]


def test_more_restarts_never_hurt():
    images = images_between(0, 1, seed=4, count=64)
    labels = jnp.argmax(curved(images), -1)

    def attacked(num_restarts):
        adversarial = attacks.pgd(curved, KEY, images, labels, LinfThreat(0.02), num_steps=2, num_restarts=num_restarts)
        logits = curved(adversarial)
        return np.asarray(losses.cross_entropy(logits, labels)), np.asarray(losses.is_correct(logits, labels))

    one_loss, one = attacked(1)
    many_loss, many = attacked(8)
    assert not (many & ~one).any()
    assert many.sum() < one.sum()
    same = one == many
    assert (many_loss[same] >= one_loss[same] - 1e-5).all()


@pytest.mark.parametrize(
    ("name", "norm"),
    [("fgsm", "linf"), ("margin_pgd2x2", "l2"), pytest.param("margin_pgd2x2", "linf", marks=pytest.mark.slow)],
)
def test_attack_does_not_depend_on_the_batch_size(name, norm):
    images, labels, keys = images_between(0, 1, seed=5), jnp.arange(8) % 3, prng.keys_at(KEY, jnp.arange(8))
    threat = THREATS[norm](0.1)
    whole = compiled(name)(keys, images, labels, threat)
    for index in range(8):
        alone = compiled(name)(*(x[index : index + 1] for x in (keys, images, labels)), threat)
        np.testing.assert_allclose(alone[0], whole[index], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", [jax.vmap, jax.pmap])
def test_attack_does_not_depend_on_the_number_of_devices(mapping):
    images, labels, keys = images_between(0, 1, seed=6), jnp.arange(8) % 3, jax.random.split(KEY, 8)
    shares = [x.reshape(4, 2, *x.shape[1:]) for x in (keys, images, labels)]
    mapped = mapping(functools.partial(ALL["margin_pgd2x2"], curved), in_axes=(0, 0, 0, None))(*shares, LinfThreat(0.1))
    whole = compiled("margin_pgd2x2")(keys, images, labels, LinfThreat(0.1))
    np.testing.assert_allclose(np.asarray(mapped).reshape(images.shape), whole, atol=1e-6)


def test_the_same_key_gives_the_same_images_and_another_gives_others():
    images, labels, threat = images_between(0, 1), LABELS, LinfThreat(0.1)
    attack = compiled("margin_pgd2x2")
    assert np.array_equal(attack(KEY, images, labels, threat), attack(KEY, images, labels, threat))
    assert not np.array_equal(attack(KEY, images, labels, threat), attack(jax.random.key(1), images, labels, threat))
    keys = jax.random.split(KEY, len(images))
    assert np.array_equal(attack(KEY, images, labels, threat), attack(keys, images, labels, threat))


EPSILONS = st.sampled_from([0.0, 1e-6, 8 / 255, 0.3, 1.0])


def check_ball_and_range(name, norm, dtype, epsilon, seed):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(8, *SHAPE))
    images = jnp.asarray(np.where(rng.uniform(size=images.shape) < 0.3, images.round(), images), dtype)
    adversarial = compiled(name)(jax.random.key(seed), images, LABELS, THREATS[norm](epsilon))
    assert_inside(adversarial, images, norm, epsilon)
    if epsilon == 0:
        assert np.array_equal(adversarial, images)


@pytest.mark.parametrize(
    ("name", "norm"),
    [("fgsm", "linf"), ("fgsm", "l2"), ("margin_pgd2x2", "linf"), ("pgd_from_clean", "l2"), ("generator", "linf")],
)
@given(epsilon=EPSILONS, seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_every_attack_stays_in_the_ball_and_the_range(name, norm, epsilon, seed):
    check_ball_and_range(name, norm, "float32", epsilon, seed)


@pytest.mark.slow
@given(
    case=st.sampled_from(
        [
            (name, norm, dtype)
            for name in ALL
            for norm in THREATS
            for dtype in ("float32", "bfloat16")
            if (name, norm, dtype) != ("margin_pgd2x2", "linf", "bfloat16")  # Compiles for seconds.
        ]
    ),
    epsilon=EPSILONS,
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_attack_stays_in_the_ball_and_the_range_in_both_norms_and_dtypes(case, epsilon, seed):
    check_ball_and_range(*case, epsilon, seed)


@pytest.mark.parametrize("name", ["fgsm", "pgd_from_clean"])
def test_a_constant_classifier_is_robust_and_a_wrong_one_scores_zero(name):
    images = images_between(0, 1)

    def constant(x):
        return jnp.ones((len(x), 1)) * jnp.array([1.0, 2.0, 0.0])

    threat = LinfThreat(0.3)
    adversarial = compiled(name, constant)(KEY, images, jnp.ones(8, int), threat)
    assert losses.is_correct(constant(adversarial), jnp.ones(8, int)).all()
    assert_inside(adversarial, images, "linf", 0.3)
    wrong = compiled(name, constant)(KEY, images, jnp.zeros(8, int), threat)
    assert not losses.is_correct(constant(wrong), jnp.zeros(8, int)).any()


def square_root_of_zero(x):
    """Right and finite, but with gradients that are NaN."""
    return jnp.stack([1 + jnp.sqrt(flat(x * 0)).sum(1), flat(x).sum(1) * 0], -1)


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("name", ["fgsm", "pgd_from_clean"])
def test_gradients_that_are_nan_do_not_make_images_that_are(name, norm):
    images = images_between(0, 1)
    adversarial = compiled(name, square_root_of_zero)(KEY, images, jnp.zeros(8, int), THREATS[norm](0.3))
    assert_inside(adversarial, images, norm, 0.3)
    assert losses.is_correct(square_root_of_zero(adversarial), jnp.zeros(8, int)).all()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("name", ["fgsm", "pgd_from_clean"])
def test_logits_that_are_not_finite_still_give_images_in_the_ball(name, bad):
    images = images_between(0, 1)
    adversarial = compiled(name, lambda x: linear(x) * bad)(KEY, images, LABELS, LinfThreat(0.3))
    assert_inside(adversarial, images, "linf", 0.3)


def test_the_default_step_is_two_and_a_half_epsilon_over_the_number_of_steps():
    # Right everywhere, with a loss that rises all the way: how far the points travel is all that counts.
    def rising(x):
        return jnp.stack([5 + 0 * flat(x).sum(1), flat(x).sum(1) / 16], -1)

    images, labels = jnp.full((1, *SHAPE), 0.5), jnp.array([0])
    for num_steps in (2, 10):
        pgd = functools.partial(attacks.pgd, rising, KEY, images, labels, LinfThreat(0.2), start="clean")
        np.testing.assert_allclose(pgd(num_steps=num_steps) - images, 0.2, atol=1e-6)
        short = pgd(num_steps=num_steps, step_size=0.1 / num_steps)
        np.testing.assert_allclose(short - images, 0.1, atol=1e-6)
    # The paper's epsilon / 4 for ten steps, from the points visited.
    visited = []

    def spy(x):
        jax.debug.callback(lambda value: visited.append(float(value)), x[0, 0, 0, 0], ordered=True)
        return rising(x)

    jax.block_until_ready(attacks.pgd(spy, KEY, images, labels, LinfThreat(0.2), num_steps=10, start="clean"))
    jax.effects_barrier()
    assert {round(value, 4) for value in visited} == {0.5, 0.55, 0.6, 0.65, 0.7}


def test_names_of_the_command_line_are_attacks():
    assert attacks.by_name("fgsm") is attacks.fgsm
    assert attacks.by_name("uniform_noise") is attacks.uniform_noise
    for name, steps, restarts, loss_fn in (
        ("pgd10", 10, 1, losses.cross_entropy),
        ("pgd50x10", 50, 10, losses.cross_entropy),
        ("margin_pgd7", 7, 1, losses.margin),
        ("margin_pgd7x3", 7, 3, losses.margin),
        ("margin_pgd7x3_odi", 7, 3, losses.margin),
    ):
        attack = attacks.by_name(name)
        assert attack.func is attacks.pgd
        odi = {"start": "odi"} if name.endswith("_odi") else {}
        assert attack.keywords == {"num_steps": steps, "num_restarts": restarts, "loss_fn": loss_fn} | odi
        assert attacks.by_name(name) is attack


@pytest.mark.parametrize(
    "name",
    [
        "",
        "pgd",
        "pgd0",
        "pgd10x0",
        "pgd10x",
        "pgdx3",
        "pgd-1",
        "pgd010",
        "PGD10",
        "pgd10 ",
        "margin_fgsm",
        "bogus",
        "pgd10_od",
        "mt_fgsm",
        "square_odi",
        "apgd_t_odi",
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(UserError, match=rf"^unknown attack '{name}': the attacks are clean, uniform_noise, fgsm, pgdN"):
        attacks.by_name(name)


@pytest.mark.parametrize("settings", [{"num_steps": 0}, {"num_restarts": 0}, {"num_steps": -3}])
def test_too_few_steps_and_restarts_are_refused(settings):
    with pytest.raises(ValueError, match=r"^num_(steps|restarts) must be at least 1, not"):
        attacks.pgd(linear, KEY, images_between(0, 1), LABELS, LinfThreat(0.1), **settings)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), jax.random.split(jax.random.PRNGKey(0), 8)])
def test_keys_without_a_type_are_refused(key):
    with pytest.raises(
        ValueError, match=r"key must be a typed key, as jax.random.key makes it, not an array of uint32"
    ):
        attacks.pgd(linear, key, images_between(0, 1), LABELS, LinfThreat(0.1))


def test_images_that_are_integers_are_refused():
    for attack in (attacks.fgsm, attacks.by_name("pgd3"), attacks.uniform_noise):
        with pytest.raises((ValueError, TypeError), match=r"images must be floats between 0.0 and 1.0, not uint8|grad"):
            attack(linear, KEY, jnp.zeros((8, *SHAPE), jnp.uint8), LABELS, LinfThreat(0.1))


def test_a_wrong_number_of_keys_is_refused():
    with pytest.raises(ValueError, match=r"one key for each of the 8 images, but has shape \(5,\)"):
        attacks.uniform_noise(None, jax.random.split(KEY, 5), images_between(0, 1), LABELS, LinfThreat(0.1))


def test_transfer_looks_at_the_source_and_not_at_the_target():
    def target(images):
        raise AssertionError("the target was looked at")

    images = images_between(0.3, 0.7)
    for attack in (attacks.fgsm, attacks.by_name("pgd3")):
        moved = attacks.transfer(
            target, KEY, images, LABELS, LinfThreat(0.1), attack=attack, surrogate_logits_fn=linear
        )
        assert np.array_equal(moved, attack(linear, KEY, images, LABELS, LinfThreat(0.1)))
        assert not np.array_equal(moved, attack(curved, KEY, images, LABELS, LinfThreat(0.1)))


@pytest.mark.parametrize("norm", THREATS)
def test_the_generator_attack_adds_its_noise_and_ignores_all_else(norm):
    images = images_between(0.4, 0.6)
    noise = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, images.shape), jnp.float32)
    adversarial = attacks.generator(None, None, images, None, THREATS[norm](0.2), noise_fn=lambda x: noise)
    size = 1 if norm == "linf" else np.linalg.norm(flat(np.float64(noise)), axis=1).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(adversarial, np.float64(images) + 0.2 * np.float64(noise) / size, atol=1e-6)


def test_a_generator_that_diverged_fools_nobody():
    images = images_between(0, 1)
    adversarial = attacks.generator(None, None, images, None, LinfThreat(0.2), noise_fn=lambda x: x * jnp.nan)
    assert np.array_equal(adversarial, images)


def test_uniform_noise_is_the_random_start():
    images, threat = images_between(0, 1), LinfThreat(0.2)
    noisy = attacks.uniform_noise(None, KEY, images, LABELS, threat)
    assert np.array_equal(noisy, threat_model.random_start(jax.random.split(KEY, 8), images, threat))
    assert np.abs(np.asarray(noisy) - np.asarray(images)).max() > 0.15


def test_a_sweep_over_epsilon_compiles_an_attack_once():
    traces = []

    def counted(images):
        traces.append(images)
        return curved(images)

    attack = jax.jit(functools.partial(attacks.by_name("pgd3"), counted))
    images = images_between(0, 1)
    attack(KEY, images, LABELS, LinfThreat(0.1))
    traced = len(traces)
    losses_at = [
        losses.cross_entropy(curved(attack(KEY, images, LABELS, LinfThreat(epsilon))), LABELS).mean()
        for epsilon in (0.0, 0.05, 0.1)
    ]
    assert len(traces) == traced
    assert losses_at[0] < losses_at[1] < losses_at[2]


@pytest.mark.parametrize("name", ["fgsm", "pgd2", "spsa1"])
def test_attacks_promote_no_types_implicitly(name):
    images = images_between(0.2, 0.8, count=2)
    with jax.numpy_dtype_promotion("strict"):
        made = attacks.by_name(name)(linear, KEY, images, LABELS[:2], LinfThreat(0.1))
    assert made.dtype == images.dtype

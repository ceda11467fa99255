"""AutoAttack: its parts and their order, what is spared, and what every attack of it guarantees."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_problems import (
    KEY,
    SHAPE,
    THREATS,
    ascent_of_two,
    assert_inside,
    compiled,
    curved,
    flat,
    images_between,
    linear,
    predicted,
    two,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_gan import LinfThreat, attacks, losses, prng
from robust_gan.attacks import _compaction
from robust_gan.attacks._best import Best, init_best, update_best
from robust_gan.errors import UserError

QUICK = ("apgd_ce3x2", "apgd_dlr3", "apgd_t2", "fab2x2", "fab_t2", "square9", "spsa2")
SMALL = {"apgd_t2": {"num_targets": 2}, "fab_t2": {"num_targets": 2}, "spsa2": {"num_samples": 4}}


def quick(name):
    return functools.partial(attacks.by_name(name), **SMALL.get(name, {}))


@functools.cache
def quick_compiled(name, logits_fn):
    return compiled(quick(name), logits_fn)


def test_the_versions_are_the_authors():
    def parts(version):
        return [(name, attack.func.__name__, attack.keywords) for name, attack in attacks.autoattack(version)]

    ce, dlr = {"loss_fn": losses.cross_entropy}, {"loss_fn": losses.dlr}
    assert (
        parts("standard")
        == parts(["apgd_ce", "apgd_t", "fab_t", "square"])
        == [
            ("apgd_ce", "apgd", ce),
            ("apgd_t", "apgd_targeted", {}),
            ("fab_t", "fab_targeted", {}),
            ("square", "square", {}),
        ]
    )
    five = {"num_steps": 100, "num_restarts": 5}
    assert parts("plus") == [
        ("apgd_ce100x5", "apgd", ce | five),
        ("apgd_dlr100x5", "apgd", dlr | five),
        ("fab100x5", "fab", five),
        ("square", "square", {}),
        ("apgd_t", "apgd_targeted", {}),
        ("fab_t", "fab_targeted", {}),
    ]
    assert parts("rand") == [
        ("apgd_ce", "apgd", ce | {"num_samples": 20}),
        ("apgd_dlr", "apgd", dlr | {"num_samples": 20}),
    ]


def test_the_constants_are_the_authors():
    names = ("apgd", "apgd_targeted", "fab_targeted", "square")
    defaults = {name: inspect.unwrap(getattr(attacks, name)).__kwdefaults__ for name in names}
    for name in names[:3]:
        assert (defaults[name]["num_steps"], defaults[name]["num_restarts"]) == (100, 1)
    assert defaults["apgd_targeted"]["num_targets"] == defaults["fab_targeted"]["num_targets"] == 9
    assert (defaults["square"]["num_queries"], defaults["square"]["p_init"]) == (5000, 0.8)
    from robust_gan.attacks.apgd import FIRST_STEP, MOMENTUM, RHO
    from robust_gan.attacks.fab import ALPHA_MAX, BETA, ETA

    assert (FIRST_STEP, MOMENTUM, RHO, ALPHA_MAX, ETA, BETA) == (2.0, 0.75, 0.75, 0.1, 1.05, 0.9)


def test_names_with_numbers_are_attacks_and_always_the_same_object():
    for name, expected in {
        "apgd_ce": {"loss_fn": losses.cross_entropy},
        "apgd_ce50": {"loss_fn": losses.cross_entropy, "num_steps": 50},
        "apgd_dlr100x5": {"loss_fn": losses.dlr, "num_steps": 100, "num_restarts": 5},
        "apgd_t20": {"num_steps": 20},
        "fab_t": {},
        "fab50x2": {"num_steps": 50, "num_restarts": 2},
        "square1000": {"num_queries": 1000},
        "spsa10": {"num_steps": 10},
    }.items():
        assert attacks.by_name(name).keywords == expected
        assert attacks.by_name(name) is attacks.by_name(name)
    assert [a is b for (_, a), (_, b) in zip(*[attacks.autoattack("rand")] * 2, strict=True)] == [True, True]


@pytest.mark.parametrize("name", ["apgd", "apgd_t0", "apgd_cex5", "square10x2", "spsa5x2", "fab_t05", "autoattack"])
def test_other_names_are_refused_with_the_known_ones(name):
    listed = "apgd_ce, apgd_dlr, apgd_t, fab, fab_t, square, spsa, fmn"
    with pytest.raises(UserError, match=rf"^unknown attack '{name}': the attacks are clean, .*{listed} \("):
        attacks.by_name(name)
    with pytest.raises(UserError, match="unknown attack"):
        attacks.autoattack(["apgd_ce", name])


def test_unknown_and_empty_versions_are_refused():
    with pytest.raises(
        UserError, match=r"^unknown version of AutoAttack 'fast': the versions are standard, plus, rand"
    ):
        attacks.autoattack("fast")
    with pytest.raises(UserError, match="at least one attack"):
        attacks.autoattack([])


def test_too_few_classes_are_refused_before_anything_runs():
    calls = []

    def three(images):
        calls.append(type(images).__name__)
        return linear(images)[:, :3]

    arguments = KEY, images_between(0, 1), jnp.zeros(8, jnp.int32), LinfThreat(0.1)
    with pytest.raises(ValueError, match=r"^apgd_t needs at least 4 classes, .* has 3: take autoattack\('few_classes"):
        attacks.run_sequential(attacks.autoattack(), three, *arguments)
    assert len(calls) == 1  # To see how many there are.
    with pytest.raises(ValueError, match=r"^apgd_dlr100x5 needs at least 3 classes, but the classifier has 2: "):
        attacks.run_sequential(attacks.autoattack("plus"), two, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
def test_autoattack_for_two_classes_reaches_the_optimum_of_a_linear_classifier(norm):
    images = images_between(0.4, 0.6, count=32)
    labels = predicted(two, images)
    ascent = ascent_of_two(labels)
    # The radius at which half of the images can be misclassified: the distance to the hyperplane.
    gaps = -np.float64(losses.margin(two(images), labels))
    distances = gaps / (np.abs(ascent).sum(1) if norm == "linf" else np.linalg.norm(ascent, axis=1))
    ordered = np.sort(distances)
    epsilon = float(ordered[15:17].mean())
    components = [(name, attack) if name != "square" else ("square100", attacks.by_name("square100"))
                  for name, attack in attacks.autoattack("few_classes")]  # fmt: skip
    result = attacks.run_sequential(components, two, KEY, images, labels, THREATS[norm](epsilon))
    assert np.array_equal(result.remaining[-1], distances > epsilon)
    assert 0 < result.remaining[-1].sum() < 32
    assert_inside(result.images, images, norm, epsilon)


def moved_up(logits_fn, key, images, labels, threat):
    """An attack whose answer is known: it breaks what one step up breaks."""
    del logits_fn, key, labels
    return jnp.minimum(images + threat.epsilon, 1)


def moved_down(logits_fn, key, images, labels, threat):
    del logits_fn, key, labels
    return jnp.maximum(images - threat.epsilon, 0)


def bands(images):
    """Class 0 where the mean pixel is between 0.4 and 0.6, else class 1 below and class 2 above."""
    x = jnp.mean(flat(images), axis=1)
    return jnp.stack([0.1 - jnp.abs(x - 0.5), 0.4 - x, x - 0.6], -1)


def test_a_misclassified_image_keeps_its_point():
    centres = jnp.linspace(0.3, 0.7, 81)
    images, labels = jnp.broadcast_to(centres[:, None, None, None], (81, *SHAPE)), jnp.zeros(81, jnp.int32)
    components = (("up", moved_up), ("down", moved_down), ("up again", moved_up))
    result = jax.jit(lambda *a: attacks.run_sequential(components, bands, *a))(KEY, images, labels, LinfThreat(0.05))
    x = np.asarray(centres, np.float64)
    clean = (x > 0.4) & (x < 0.6)
    up, down = clean & (x + 0.05 > 0.6), clean & (x - 0.05 < 0.4)
    surely = np.abs(np.abs(np.subtract.outer(x, [0.4, 0.45, 0.55, 0.6])).min(1)) > 1e-4
    expected = np.stack([clean, clean & ~up, clean & ~up & ~down, clean & ~up & ~down])
    assert np.array_equal(np.asarray(result.remaining)[:, surely], expected[:, surely])
    # What was wrong from the start is not attacked, and the remaining images are unchanged.
    shift = np.float64(result.images[:, 0, 0, 0]) - x
    np.testing.assert_allclose(shift[surely], (0.05 * up - 0.05 * (down & ~up))[surely], atol=1e-6)


@pytest.mark.slow
def test_sequential_attacks_are_the_worst_case_of_each_alone():
    images, threat = images_between(0, 1, seed=5, count=150), LinfThreat(0.04)
    labels = predicted(curved, images).at[::7].add(1) % 5
    names = ["fgsm", "fab_t5", "apgd_ce5"]
    result = jax.jit(lambda *a: attacks.run_sequential(attacks.autoattack(names), curved, *a))(
        KEY, images, labels, threat
    )
    clean = losses.is_correct(curved(images), labels)
    assert np.array_equal(result.remaining[0], clean)
    for row in range(3):
        assert not (result.remaining[row + 1] & ~result.remaining[row]).any()
    # FGSM is deterministic: alone it breaks the same images.
    alone = losses.is_correct(curved(attacks.fgsm(curved, KEY, images, labels, threat)), labels)
    assert np.array_equal(result.remaining[1], clean & alone)
    assert np.array_equal(losses.is_correct(curved(result.images), labels), result.remaining[-1])
    assert np.array_equal(result.images[~clean], images[~clean])
    assert_inside(result.images, images, "linf", 0.04)
    counts = result.remaining.sum(1).tolist()
    assert counts[0] > counts[1] > counts[2] >= counts[3] > 0


def test_a_randomised_classifier_is_given_keys_of_its_own_for_every_pass():
    @attacks.randomised
    def randomised(images, keys):
        return curved(images) + 2 * prng.normal_per_image(keys, (5,))

    images, threat = images_between(0, 1, seed=8, count=64), LinfThreat(0.001)
    labels = predicted(curved, images)
    components = [(name, functools.partial(attack, num_steps=2)) for name, attack in attacks.autoattack("rand")]
    result = jax.jit(lambda *a: attacks.run_sequential(components, randomised, *a))(KEY, images, labels, threat)
    # The ball is so small that chance alone decides: each look finds others wrong.
    counts = result.remaining.sum(1).tolist()
    assert 64 > counts[0] > counts[1] > counts[2] > 0


@pytest.mark.slow
def test_what_comes_after_does_not_change_what_was_before():
    images, threat = images_between(0, 1, seed=6, count=40), LinfThreat(0.03)
    labels = predicted(curved, images)
    short, long = (
        jax.jit(lambda *a, names=names: attacks.run_sequential(attacks.autoattack(names), curved, *a))(
            KEY, images, labels, threat
        )
        for names in (["apgd_ce3"], ["apgd_ce3", "square20"])
    )
    assert np.array_equal(short.remaining, long.remaining[:2])
    broken = ~np.asarray(short.remaining[-1])
    assert np.array_equal(short.images[broken], long.images[broken])


def test_only_remaining_images_are_updated_in_chunks(monkeypatch):
    monkeypatch.setattr(_compaction, "chunk_size", lambda count: min(count, 7))
    state, inputs = {"x": jnp.arange(20.0), "y": jnp.zeros((20, 2))}, jnp.arange(20.0) + 100
    rng = np.random.default_rng(0)
    chunks = []

    def update(state, inputs):
        jax.debug.callback(lambda: chunks.append(None))
        return {"x": inputs, "y": state["y"] + 1}

    run = jax.jit(lambda mask: _compaction.update_remaining(update, mask, state, inputs))
    for share in (0, 0.05, 0.3, 0.5, 0.9, 1):
        chunks.clear()
        mask = rng.uniform(size=20) < share
        new = jax.block_until_ready(run(jnp.asarray(mask)))
        jax.effects_barrier()
        assert len(chunks) == -(-mask.sum() // 7)
        assert np.array_equal(new["x"], np.where(mask, np.arange(20.0) + 100, np.arange(20.0)))
        assert np.array_equal(new["y"], np.where(mask, 1, 0)[:, None] * np.ones((1, 2)))


def test_the_better_point_is_the_misclassified_one_and_then_that_of_the_higher_loss():
    labels, images = jnp.zeros(4, int), jnp.zeros((4, *SHAPE))
    right, wrong = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    best = init_best(images, jnp.zeros(4))
    assert not best.fooled.any()
    logits = jnp.stack([right, wrong, right, wrong])
    best = update_best(best, images + 1, jnp.array([1.0, 1.0, 1.0, jnp.nan]), logits, labels)
    # Then: a right one of higher loss, a right one after a wrong one, a wrong one of lower loss, a wrong one.
    logits = jnp.stack([right, right, wrong, wrong])
    best = update_best(best, images + 2, jnp.array([2.0, 9.0, -5.0, 3.0]), logits, labels)
    assert isinstance(best, Best)
    assert best.images[:, 0, 0, 0].tolist() == [2, 1, 2, 1]
    assert best.fooled.tolist() == [False, True, True, True]


# Compiling each takes a second: by default in one norm.
IN_ONE_NORM = {"apgd_ce3x2": "linf", "apgd_t2": "l2", "fab_t2": "linf", "square9": "l2", "spsa2": "linf"}


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        pytest.param(name, norm, marks=() if norm == default else pytest.mark.slow)
        for name, default in IN_ONE_NORM.items()
        for norm in THREATS
    ],
)
def test_attack_does_not_depend_on_the_batch_size(name, norm, monkeypatch):
    # Chunks are smaller than the batch: the remaining images are gathered from several places.
    monkeypatch.setattr(_compaction, "chunk_size", lambda count: min(count, 3))
    images, keys, threat = images_between(0, 1, seed=5), prng.keys_at(KEY, jnp.arange(8)), THREATS[norm](0.06)
    labels = predicted(curved, images).at[2].set(0)
    whole = compiled(quick(name), curved)(keys, images, labels, threat)
    pairs = compiled(quick(name), curved)
    for index in range(0, 8, 2):
        some = slice(index, index + 2)
        alone = pairs(keys[some], images[some], labels[some], threat)
        np.testing.assert_allclose(alone, whole[some], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", [jax.vmap, jax.pmap])
def test_sequential_attacks_do_not_depend_on_the_number_of_devices(mapping):
    images, keys, threat = images_between(0, 1, seed=7), jax.random.split(KEY, 8), LinfThreat(0.015)
    labels = predicted(curved, images)
    components = tuple((name, quick(name)) for name in ("fab_t2", "square9"))
    run = functools.partial(attacks.run_sequential, components, curved)
    shares = [x.reshape(4, 2, *x.shape[1:]) for x in (keys, images, labels)]
    mapped = mapping(run, in_axes=(0, 0, 0, None))(*shares, threat)
    whole = jax.jit(run)(keys, images, labels, threat)
    np.testing.assert_allclose(np.asarray(mapped.images).reshape(images.shape), whole.images, atol=1e-5)
    assert np.array_equal(np.moveaxis(np.asarray(mapped.remaining), 0, 1).reshape(-1, 8), whole.remaining)
    assert 0 < whole.remaining[-1].sum() < 8


# Each compiles for seconds: bfloat16 in one norm for each attack.
CASES = [(name, norm, "float32") for name in QUICK for norm in THREATS] + [
    ("apgd_dlr3", "linf", "bfloat16"),
    ("apgd_t2", "l2", "bfloat16"),
    ("fab_t2", "l2", "bfloat16"),
    ("square9", "linf", "bfloat16"),
    ("square9", "l2", "bfloat16"),
    ("spsa2", "linf", "bfloat16"),
]


EPSILONS = st.sampled_from([0.0, 1e-6, 8 / 255, 0.3, 1.0])


def check_ball_and_range(name, norm, dtype, epsilon, seed):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(8, *SHAPE))
    images = jnp.asarray(np.where(rng.uniform(size=images.shape) < 0.3, images.round(), images), dtype)
    labels = jnp.where(jnp.arange(8) < 6, predicted(curved, images), 0)
    adversarial = quick_compiled(name, curved)(jax.random.key(seed), images, labels, THREATS[norm](epsilon))
    assert_inside(adversarial, images, norm, epsilon)
    if epsilon == 0:
        assert np.array_equal(adversarial, images)


@pytest.mark.parametrize(("name", "norm"), IN_ONE_NORM.items())
@given(epsilon=EPSILONS, seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_every_attack_stays_in_the_ball_and_the_range(name, norm, epsilon, seed):
    check_ball_and_range(name, norm, "float32", epsilon, seed)


@pytest.mark.slow
@given(case=st.sampled_from(CASES), epsilon=EPSILONS, seed=st.integers(0, 99))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_every_attack_stays_in_the_ball_and_the_range_in_both_norms_and_dtypes(case, epsilon, seed):
    check_ball_and_range(*case, epsilon, seed)


def constant(images):
    return jnp.ones((len(images), 1)) * jnp.array([1.0, 2.0, 0.0, 0.5])


def square_root_of_zero(images):
    """Right and finite, but with gradients that are NaN."""
    x = flat(images)
    return jnp.stack([1 + jnp.sqrt(x * 0).sum(1), *3 * [x.sum(1) * 0]], -1)


def infinite(images):
    return linear(images) * jnp.inf


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apgd_dlr3", "apgd_t2", "fab2x2", "fab_t2", "square9", "spsa2"])
def test_degenerate_classifiers_get_images_in_the_ball(name):
    images, zeros, ones = images_between(0, 1), jnp.zeros(8, jnp.int32), jnp.ones(8, jnp.int32)
    threat = LinfThreat(0.3)
    for logits_fn, labels, holds in (
        (constant, ones, True),
        (constant, zeros, False),
        (square_root_of_zero, zeros, True),
        (infinite, zeros, False),
    ):
        adversarial = compiled(quick(name), logits_fn)(KEY, images, labels, threat)
        assert_inside(adversarial, images, "linf", 0.3)
        assert np.array_equal(losses.is_correct(logits_fn(adversarial), labels), jnp.full(8, holds))


@pytest.mark.slow
def test_the_same_key_gives_the_same_images_and_another_gives_others():
    images, labels, threat = images_between(0, 1), predicted(curved, images_between(0, 1)), LinfThreat(0.01)
    for name in ("apgd_ce3x2", "square9"):
        attack = quick_compiled(name, curved)
        assert np.array_equal(attack(KEY, images, labels, threat), attack(KEY, images, labels, threat))
        assert np.array_equal(
            attack(KEY, images, labels, threat), attack(jax.random.split(KEY, 8), images, labels, threat)
        )
        assert not np.array_equal(
            attack(KEY, images, labels, threat), attack(jax.random.key(1), images, labels, threat)
        )

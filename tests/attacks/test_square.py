"""Square and SPSA: attacks without gradients that count their queries and find what is to be found."""

import functools

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
    unit_step,
)

from robust_gan import LinfThreat, attacks, losses
from robust_gan.attacks.square import count_queries, get_pattern, get_squares, get_tiles


@jax.custom_vjp
def without_gradient(images):
    """`two`, but whoever asks for its gradient fails."""
    return two(images)


def _no_gradient(*_):
    raise AssertionError("the gradient was computed")


without_gradient.defvjp(_no_gradient, _no_gradient)


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("name", ["square50", "spsa2"])
def test_black_box_attacks_use_no_gradient(name, norm):
    images = images_between(0, 1)
    with pytest.raises(AssertionError, match="the gradient was computed"):
        attacks.fgsm(without_gradient, None, images, jnp.zeros(8, int), THREATS[norm](0.1))
    adversarial = compiled(attacks.by_name(name), without_gradient)(KEY, images, jnp.zeros(8, int), THREATS[norm](0.1))
    assert_inside(adversarial, images, norm, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
def test_square_counts_its_queries(norm):
    queries = []

    def counted(images):
        jax.debug.callback(lambda value: queries.append(value), images[0, 0, 0, 0], ordered=True)
        return two(images)

    images = images_between(0.3, 0.7)
    labels = predicted(two, images)
    run = jax.jit(functools.partial(count_queries, counted, num_queries=130))
    distances = np.abs(np.float64(two(images)) @ [1, -1]) / np.abs(ascent_of_two(np.zeros(1, int))).sum()
    factors = {"linf": (0.5, 1.3), "l2": (0.5, 12.0)}[norm]
    counts = []
    for index in range(4):
        for factor in factors:
            queries.clear()
            one = slice(index, index + 1)
            found = run(KEY, images[one], labels[one], THREATS[norm](np.float32(factor * distances[index])))
            jax.block_until_ready(found)
            jax.effects_barrier()
            assert len(queries) == found.queries[0] <= 130
            assert found.fooled[0] == ~losses.is_correct(two(found.images), labels[one])[0]
            # It stops at the first success, and only there.
            assert found.fooled[0] or found.queries[0] == 130
            counts.append(int(found.queries[0]))
    assert min(counts) < 130 == max(counts)


def test_square_counts_the_queries_of_every_image_by_itself():
    images = images_between(0, 1, seed=1, count=80)
    labels, threat = predicted(two, images), LinfThreat(0.25)
    attack = functools.partial(count_queries, num_queries=60)
    found = compiled(attack, two)(KEY, images, labels, threat)
    alone = compiled(attack, two)(jax.random.split(KEY, 80)[33:34], images[33:34], labels[33:34], threat)
    assert alone.queries[0] == found.queries[33]
    queries = np.asarray(found.queries)
    assert (queries[~np.asarray(found.fooled)] == 60).all()
    assert len(set(queries.tolist())) > 3
    assert 1 <= queries.min() < queries.max() == 60


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
def test_more_queries_never_hurt(norm):
    images = images_between(0, 1, seed=2, count=24)
    labels, threat = predicted(curved, images), THREATS[norm](0.05)
    few, many = (
        compiled(functools.partial(count_queries, num_queries=count), curved)(KEY, images, labels, threat)
        for count in (10, 150)
    )
    assert (many.margins >= few.margins).all()
    assert (many.fooled | ~few.fooled).all()
    assert many.margins.mean() > few.margins.mean()
    np.testing.assert_allclose(many.margins, losses.margin(curved(many.images), labels), atol=1e-4)


def test_square_comes_near_the_optimum_of_a_linear_classifier():
    images = images_between(0.3, 0.7)
    labels = predicted(two, images)
    optimum = flat(np.float64(images)) + 0.05 * unit_step(ascent_of_two(labels), "linf")
    best = np.float64(losses.margin(two(jnp.float32(optimum)), labels))
    assert (best < 0).all()
    start = np.float64(losses.margin(two(images), labels))
    found = compiled(functools.partial(count_queries, num_queries=500), two)(KEY, images, labels, LinfThreat(0.05))
    assert (np.float64(found.margins) <= best + 1e-5).all()
    assert ((np.float64(found.margins) - start) > 0.9 * (best - start)).all()
    # Every pixel is on the border of the cube.
    np.testing.assert_allclose(np.abs(np.float64(found.images) - np.float64(images)), 0.05, atol=1e-6)


def test_square_uses_the_whole_ball_in_l2():
    images = jnp.full((8, 8, 8, 3), 0.5)

    def logits_fn(images):
        return jnp.stack([100 + flat(images)[:, 0], jnp.sin(40 * flat(images)).sum(1)], -1)

    adversarial = compiled(attacks.by_name("square40"), logits_fn)(KEY, images, jnp.zeros(8, int), THREATS["l2"](0.3))
    assert_inside(adversarial, images, "l2", 0.3)
    np.testing.assert_allclose(np.linalg.norm(flat(np.float64(adversarial) - 0.5), axis=1), 0.3, rtol=1e-5)


def test_squares_reach_the_last_row_and_column_unless_they_are_to_be_the_authors():
    # Only the pixel in the last row and column counts, and stripes that happen to be right are no square.
    def corner(images):
        value = images[:, -1, -1, 0] - images[:, 0, -1, 0]
        return jnp.stack([0.05 - value, value], -1)

    images = jnp.full((16, *SHAPE), 0.5)
    broken = {
        places: count_queries(
            corner, KEY, images, jnp.zeros(16, int), LinfThreat(0.1), num_queries=300, p_init=0.1, all_places=places
        ).fooled
        for places in (True, False)
    }
    assert broken[True].all()
    assert not broken[False].all()


@pytest.mark.parametrize(
    ("size", "norm", "expected"),
    [
        # The sides that the authors' program has at the queries 0, 10, 11, 51, 201, 501, 1001, 2001, 4001 and 4999.
        ((32, 32), "linf", (29, 29, 20, 14, 10, 7, 5, 4, 3, 3)),
        ((32, 32), "l2", (29, 29, 21, 15, 11, 7, 5, 5, 3, 3)),
        ((8, 8), "linf", (7, 7, 5, 4, 3, 2, 1, 1, 1, 1)),
        ((8, 8), "l2", (7, 7, 5, 5, 3, 3, 3, 3, 3, 3)),
    ],
)
def test_the_sides_follow_the_authors_schedule(size, norm, expected):
    sides = get_squares(size, norm, 5000, 0.8)
    queries = (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 4999)
    assert tuple(int(sides.of_query[query]) for query in queries) == expected
    for query in queries:
        pattern = np.asarray(sides.patterns[sides.level[query]])
        side = int(sides.of_query[query])
        np.testing.assert_allclose(pattern[:side, :side], get_pattern(side), atol=1e-6)
        assert not pattern[side:].any()


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 9, 29])
def test_a_pattern_has_unit_norm_and_opposite_halves(side):
    pattern = get_pattern(side)
    assert np.linalg.norm(pattern) == pytest.approx(1)
    half = side // 2
    assert (pattern[:half] >= 0).all()
    assert (pattern[half:] <= 0).all()
    if side % 2 == 0:
        np.testing.assert_allclose(pattern[:half], -pattern[half:])
    if side > 2:
        assert np.unravel_index(pattern.argmax(), pattern.shape) == (half // 2, side // 2)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (28, 28), (4, 4), (10, 5), (3, 17)])
def test_the_tiles_cover_the_image_without_overlap(size):
    patterns, tile_of = get_tiles(size)
    assert patterns.shape == (2, *size)
    assert tile_of.shape == size
    covered = patterns[0] != 0
    assert covered.mean() > 0.6
    for tile in range(tile_of.max() + 1):
        mass = (np.where(tile_of == tile, patterns, 0) ** 2).sum((1, 2))
        np.testing.assert_allclose(mass, 1, rtol=1e-5)


def test_square_refuses_what_it_cannot_do():
    arguments = (two, KEY, images_between(0, 1), jnp.zeros(8, int), LinfThreat(0.1))
    with pytest.raises(ValueError, match=r"^num_queries must be at least 1, not 0$"):
        attacks.square(*arguments, num_queries=0)
    for p_init in (0, 1.5):
        with pytest.raises(ValueError, match=f"^p_init must be above 0 and at most 1, not {p_init}$"):
            attacks.square(*arguments, p_init=p_init)
    assert attacks.square(*arguments, num_queries=1).shape == (8, *SHAPE)


@pytest.mark.parametrize("norm", THREATS)
def test_spsa_reaches_the_optimum_on_a_linear_classifier(norm):
    images = images_between(0.3, 0.7)
    labels = predicted(two, images)
    attack = functools.partial(attacks.spsa, num_steps=20, num_samples=64)
    adversarial = compiled(attack, two)(KEY, images, labels, THREATS[norm](0.1))
    optimum = flat(np.float64(images)) + 0.1 * unit_step(ascent_of_two(labels), norm)
    start, found, best = (
        np.float64(losses.margin(two(x), labels)) for x in (images, adversarial, jnp.float32(optimum))
    )
    assert (found <= best + 1e-5).all()
    # On the sphere the noise of the estimate costs more.
    assert (found - start > {"linf": 0.95, "l2": 0.8}[norm] * (best - start)).all()


def test_spsa_queries_valid_pixels_only_and_returns_the_best_point():
    extremes = []

    def spied(images):
        jax.debug.callback(lambda low, high: extremes.append((float(low), float(high))), images.min(), images.max())
        return linear(images)

    images = images_between(-0.5, 1.5, seed=3).clip(0, 1)
    labels = predicted(linear, images)
    adversarial = attacks.spsa(spied, KEY, images, labels, LinfThreat(0.02), num_steps=5, num_samples=4)
    jax.block_until_ready(adversarial)
    jax.effects_barrier()
    assert min(low for low, _ in extremes) == 0
    assert max(high for _, high in extremes) == 1
    before, after = (losses.margin(linear(x), labels) for x in (images, adversarial))
    assert (after >= before).all()
    assert (after > before).any()


@pytest.mark.parametrize("settings", [{"num_steps": 0}, {"num_samples": 0}])
def test_spsa_refuses_counts_below_one(settings):
    with pytest.raises(ValueError, match=r"^num_(steps|samples) must be at least 1, not 0$"):
        attacks.spsa(two, KEY, images_between(0, 1), jnp.zeros(8, int), LinfThreat(0.1), **settings)

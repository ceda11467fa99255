"""Alarms on what users bring: NaN, few images, sorted files, half precision, offsets, chance, no derivative."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import L2Threat, LinfThreat, attacks, evaluation, threat_model
from robust_gan.errors import DataError, UserError
from robust_gan.evaluation import Model, Scores, alarms
from robust_gan.evaluation.probes import Probe
from robust_gan.reporting import evaluation_report

THREAT = LinfThreat(0.05)
RNG = np.random.default_rng(0)
CENTRES = 0.5 + RNG.uniform(-0.12, 0.12, (4, 16))


def images_of(count=64, labels=None):
    """Images around one centre for each class, that the nearest centre classifies without a mistake."""
    rng = np.random.default_rng(1)
    labels = np.arange(count) % 4 if labels is None else labels
    images = np.clip(CENTRES[labels] + rng.uniform(-0.05, 0.05, (len(labels), 16)), 0, 1)
    return images.reshape(-1, 4, 4, 1).astype(np.float32), labels


def linear(images):
    weights = jnp.asarray(2 * CENTRES.T, jnp.float32)
    return images.reshape(len(images), -1) @ weights - jnp.asarray((CENTRES**2).sum(1), jnp.float32)


def rooted(images):
    """The same values, but the derivative of the branch that is never taken is NaN."""
    return linear(jnp.where(images < 2, images, jnp.sqrt(images - 3)))


def nan_for_class_3(images):
    logits = linear(images)
    return jnp.where((logits.argmax(-1) == 3)[:, None], jnp.nan, logits)


def examine(logits_fn, images, labels, threat=THREAT, **settings):
    return {alarm.name: alarm for alarm in alarms.check_model(logits_fn, images, labels, threat, **settings)}


def fired(found):
    return {name for name, alarm in found.items() if alarm.fired}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(alarms, "_STEPS", 10)


@pytest.mark.slow
def test_nan_gradients_are_an_alarm_of_their_own_and_counted():
    images, labels = images_of()
    found = examine(rooted, images, labels)
    assert "nan_gradients" in fired(found)
    assert found["nan_gradients"].finding.startswith("64 of 64 images have an input gradient that is NaN")
    assert not fired(examine(linear, images, labels))


@pytest.mark.slow
def test_nan_logits_are_counted_over_all_images():
    images, labels = images_of(300)
    found = examine(nan_for_class_3, images, labels, count=8)
    assert found["nan_logits"].finding.startswith("75 of 300 clean images have logits that are NaN")
    assert {"nan_logits", "zero_gradients"} <= fired(found)
    assert "near_chance" not in fired(found)


def test_nan_logits_under_attack_are_told_apart_from_clean_ones():
    def nan_where_bright(images):
        logits = linear(images)
        return jnp.where((images.mean((1, 2, 3)) > 0.6)[:, None], jnp.nan, logits)

    images, labels = images_of(40)
    images[:3] = 0.9
    scores = evaluation.evaluate_transfer(
        [Model("m", nan_where_bright)], images, labels, LinfThreat(0.3), attacks=["pgd5"]
    )
    assert (scores.predicted["m", "clean"] == -1).sum() == 3
    under = (scores.predicted["m", "pgd5"] == -1) & (scores.predicted["m", "clean"] >= 0)
    (found,) = alarms.check_scores(scores, "m")
    assert found.fired == under.any()
    assert found.finding.startswith(f"{under.sum()} of 40 images have logits that are NaN or infinite under pgd5 alone")


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_a_few_images_that_are_all_right_raise_no_alarm(count):
    assert not fired(examine(linear, *images_of(count)))


CHANCE = {
    "right": (linear, False),
    "right on three of four classes": (lambda images: linear(images).at[:, 0].add(-5.0), False),
    "one class for all": (lambda images: linear(images).at[:, 0].add(5.0), True),
    "wrong on all": (lambda images: -linear(images), True),
}


@pytest.mark.parametrize("name", CHANCE)
def test_near_chance_counts_all_images_of_a_file_in_the_order_of_its_classes(name):
    logits_fn, fires = CHANCE[name]
    images, labels = images_of(labels=np.repeat(np.arange(4), 200))
    assert alarms._near_chance(np.asarray(logits_fn(images)), labels).fired == fires


@pytest.mark.parametrize(
    ("right", "count", "num_classes", "fires"),
    [(3, 3, 4, False), (0, 3, 4, False), (0, 4, 10, True), (1, 1, 2, False), (12, 100, 10, True), (30, 100, 10, False),
     (0, 128, 1000, True), (5, 10, 1000, False), (64, 128, 2, True), (100, 128, 2, False)],
)  # fmt: skip
def test_near_chance_is_an_exact_test(right, count, num_classes, fires):
    labels = np.arange(count) % num_classes
    predicted = np.where(np.arange(count) < right, labels, (labels + 1) % num_classes)
    assert alarms._near_chance(np.eye(num_classes)[predicted], labels).fired == fires


def test_labels_of_one_class_alone_are_no_sign_of_chance():
    images, labels = images_of(labels=np.full(20, 2))
    assert not alarms._near_chance(np.asarray(linear(images)), labels).fired


class Convolutional(nn.Module):
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, images):
        images = nn.relu(nn.Conv(8, (3, 3), dtype=self.dtype)(images))
        return nn.Dense(4, dtype=self.dtype)(images.reshape(len(images), -1))


def random_noise(size, dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def logits_fn(images):
        return linear(images + np.float32(size) * rng.standard_normal((1, 4, 4, 1)).astype(np.float32)).astype(dtype)

    return logits_fn


def of_the_batch(images):
    logits = linear(images)
    return (logits - logits.mean(0)) / (logits.std(0) + 1e-3)


def half(dtype, casts_back):
    net = Convolutional(dtype)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    return lambda images: net.apply(variables, images).astype(jnp.float32 if casts_back else dtype)


REPEATED = {
    "float16": (half(jnp.float16, casts_back=False), False),
    "bfloat16, float32 logits": (half(jnp.bfloat16, casts_back=True), False),
    "a common offset": (lambda images: linear(images) + 1e4, False),
    "a tiny scale": (lambda images: 1e-6 * linear(images), False),
    "a masked class": (lambda images: linear(images).at[:, 3].set(-jnp.inf), False),
    "some logits NaN": (nan_for_class_3, False),
    "noise of NumPy": (random_noise(0.002), True),
    "little noise of NumPy": (random_noise(2e-5), True),
    "noise in bfloat16": (random_noise(2e-3, jnp.bfloat16), True),
    "batch statistics": (of_the_batch, True),
    "batch statistics and an offset": (lambda images: of_the_batch(images) + 1e4, True),
}


@pytest.mark.parametrize("name", REPEATED)
def test_randomised_differs_from_rounding(name):
    logits_fn, fires = REPEATED[name]
    found = alarms._randomised(Probe(logits_fn, 500, *images_of(48)), seed=0)
    assert found.fired == fires, found.finding


def test_chance_that_is_frozen_in_compiled_code_is_found():
    """In calls that are not compiled it is the same each time: only a new compilation shows it."""
    rng = np.random.default_rng(0)

    def frozen(images):
        traced = isinstance(images, jax.core.Tracer)
        return linear(images + np.float32(0.01 * rng.standard_normal() if traced else 0.0))

    assert alarms._randomised(Probe(frozen, 500, *images_of(8)), seed=0).fired


@pytest.mark.slow
def test_never_more_images_at_once_than_a_batch_and_only_copies():
    sizes = []

    def limited(images):
        sizes.append(len(images))
        assert len(images) <= 8
        return linear(images)

    images, labels = images_of(30)
    found = examine(limited, images, labels, batch_size=8)
    assert not fired(found)
    assert max(sizes) == 8
    with pytest.warns(UserWarning, match="donated"):
        assert not fired(examine(jax.jit(linear, donate_argnums=0), images, labels))


def test_a_model_without_a_derivative_is_not_asked_for_one():
    def answers_only(images):
        shape = jax.ShapeDtypeStruct((len(images), 4), jnp.float32)
        return jax.pure_callback(lambda x: np.asarray(linear(jnp.asarray(x))), shape, images)

    found = examine(answers_only, *images_of(8))
    silent = {name for name, alarm in found.items() if not alarm.asked}
    assert silent == {"zero_gradients", "nan_gradients", "not_converged", "does_not_reach_0"}
    values = {"targets": {"m": {"alarms": [alarm._asdict() for alarm in found.values()]}}}
    text = evaluation_report.format_alarms(values)
    # JAX 0.12 gives all four the same reason, so that they share one line.
    assert re.match(
        r"None of 4 fired\.\n\n- m: zero_gradients[a-z0_, ]*: not checked: no derivative \(ValueError: Pure", text
    )


@pytest.mark.slow
@pytest.mark.parametrize("threat", [L2Threat(1.0), LinfThreat(0.1)], ids=["l2", "linf"])
def test_the_whole_range_is_the_whole_range(threat):
    bright = np.repeat([0.9, 0.1], 4)[:, None, None, None] * np.ones((1, 32, 32, 3))
    found = examine(lambda x: (x.mean((1, 2, 3))[:, None] - 0.5) * jnp.array([10.0, -10.0]), bright,
                    np.repeat([0, 1], 4), threat)  # fmt: skip
    assert not fired(found)
    farthest = np.linalg.norm(np.ones((32, 32, 3))) if threat.norm == "l2" else 1.0
    assert threat_model.whole_range(threat, (32, 32, 3)).epsilon == pytest.approx(farthest)


def test_a_masked_class_is_legal():
    images, labels = images_of(32)
    masked = Model("m", lambda x: jnp.concatenate([linear(x), jnp.full((len(x), 2), -jnp.inf)], 1))
    scores = evaluation.evaluate_transfer([masked, Model("plain", linear)], images, labels, THREAT, attacks=["pgd5"])
    assert np.array_equal(scores.robust["m", "m", "pgd5"], scores.robust["plain", "plain", "pgd5"])
    assert scores.clean_accuracy("m") == 1


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [(np.ones((8, 1), int), "one per image"), (np.full(8, 4), "must be in 0..3"), (np.full(8, -1), "from 0"),
     (np.full(8, 0.9), "must be integers")],
)  # fmt: skip
def test_labels_that_cannot_be_scored_are_refused(labels, sentence):
    with pytest.raises(DataError, match=sentence):
        alarms.check_model(linear, images_of(8)[0], labels, THREAT)


def test_scores_without_attacks_have_no_alarm_of_nan():
    scores = Scores(("a",), ("a",), (), np.ones((1, 2), bool), {})
    assert not alarms.check_scores(scores, "a")


def test_the_gradient_of_a_masked_class_is_finite():
    images, labels = images_of(4)
    gradient = attacks.input_gradient(lambda x: linear(x).at[:, 3].set(-jnp.inf), jnp.asarray(images), labels % 3)
    assert np.isfinite(gradient).all()


def test_nothing_is_lost_of_a_curve_that_is_not_a_number():
    curve = evaluation.Curve("pgd10", (0.0, 0.1, 0.2), {"a": (0.9, float("nan"), 0.1)})
    assert alarms.check_curve(curve, "a", 100)[0].fired


def test_a_curve_ends_before_the_whole_range_and_needs_its_attack():
    images, labels = images_of(4)
    model = Model("m", lambda x: jnp.zeros((len(x), 4)).at[:, 0].set(1.0) + 0 * x.sum((1, 2, 3))[:, None])
    for threat in (L2Threat(2.0), LinfThreat(0.5)):  # In L2 the diagonal of 16 pixels is 4.
        curve = evaluation.trace_curve([model], images, labels, threat, attack="fgsm")
        assert max(curve.epsilons) == 2 * threat.epsilon
    with pytest.raises(UserError, match="m has no generator"):
        evaluation.trace_curve([model], images, labels, THREAT, attack="generator")


@pytest.mark.parametrize("threat", [L2Threat(1.0), LinfThreat(1.0)], ids=["l2", "linf"])
def test_a_distance_to_nan_is_nan(threat):
    images = jnp.full((2, 32, 32, 3), 0.5)
    found = np.asarray(threat_model.distance(images.at[0, 31, 31, 2].set(jnp.nan), images, threat))
    assert np.isnan(found[0])
    assert found[1] == 0


@pytest.mark.slow
def test_the_alarms_quote_the_figures_of_the_evaluation():
    images, labels = images_of(40)

    def curved(x):
        return jnp.tanh(3 * linear(x)) + 0.5 * linear(jnp.sin(9 * x))

    labels = np.argmax(curved(jnp.asarray(images)), -1)
    model, threat = Model("m", curved), LinfThreat(0.08)
    once, twice = f"pgd{alarms._STEPS}", f"pgd{2 * alarms._STEPS}x2"
    scores = evaluation.evaluate_transfer([model], images, labels, threat, attacks=[once, twice], seed=3)
    robust_under = {attack: scores.robust["m", "m", attack] for attack in scores.attacks}
    assert 0 < robust_under[once].sum() < 40

    def finding(robust, count=128):
        found = alarms.check_model(curved, images, labels, threat, seed=3, robust=robust, count=count)
        return next(alarm.finding for alarm in found if alarm.name == "not_converged")

    for robust in ({}, robust_under):
        first, second = robust_under[once].sum(), robust_under[twice].sum()
        sentence = f"{first} of 40 images are robust under {once}, {second} with twice the steps"
        assert finding(robust).startswith(sentence)
    table = f"; of all 40 images {first} ({100 * first / 40:.1f} %) are under {once}"
    assert table in finding(robust_under, count=20)
    assert "of all" not in finding(robust_under)
    assert finding({once: np.zeros(40, bool)}).startswith(f"0 of 40 images are robust under {once}")
    with pytest.raises(ValueError, match=r"robust and predicted must be .40., a value for each image, not \(3,\)"):
        alarms.check_model(curved, images, labels, threat, predicted=np.zeros(3, int))


def test_a_model_that_changed_since_it_was_attacked_is_found():
    images, labels = images_of(8)
    scores = evaluation.evaluate_transfer([Model("m", linear)], images, labels, THREAT, attacks=[])
    predicted = scores.predicted["m", evaluation.CLEAN]
    for now, fires in ((linear, False), (lambda x: linear(x)[:, ::-1], True)):
        found = {alarm.name: alarm for alarm in alarms.check_model(now, images, labels, THREAT, predicted=predicted)}
        assert found["changed"].fired == fires
    assert "of 8 clean images change their predicted class" in found["changed"].finding

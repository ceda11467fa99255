"""Every public entrance refuses in one sentence what it could not mean, and honours the bounds of the pixels."""

import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_problems import KEY, THREATS, WEIGHTS, curved, flat, images_between, linear, predicted

import robust_gan as rg
from robust_gan import L2Threat, LinfThreat, attacks, evaluation, losses, threat_model
from robust_gan.errors import UserError

NAMES = ["uniform_noise", "fgsm", "pgd3", "margin_pgd3x2", "apgd_ce4", "apgd_dlr4x2", "apgd_t3", "fab3", "fab_t3x2",
         "square20", "spsa2"]  # fmt: skip
IMAGES = images_between(0.3, 0.7, count=4)
LABELS = predicted(linear, IMAGES)


def make(name, images=IMAGES, labels=LABELS, threat=LinfThreat(0.1), logits_fn=linear, key=KEY):  # noqa: B008
    return attacks.by_name(name)(logits_fn, key, images, labels, threat)


@pytest.mark.parametrize("threat", [LinfThreat, L2Threat])
@pytest.mark.parametrize(
    "epsilon",
    [-0.1, np.float32(-0.1), jnp.float32(-0.1), float("nan"), np.float64("nan"), jnp.nan, float("inf"), "8", None, True,
     np.True_, jnp.array(True), 1j, np.array("8"), [0.1], jnp.array([0.1, -0.1])],
)  # fmt: skip
def test_a_radius_that_cannot_be_meant_is_refused_whatever_its_type(threat, epsilon):
    with pytest.raises(UserError, match=r"^epsilon must be a finite number of at least 0, not "):
        threat(epsilon)


@pytest.mark.parametrize("kind", [int, float, np.float32, np.int64, np.uint8, np.asarray, jnp.float32, jnp.int32])
def test_grey_levels_are_refused_whatever_their_type(kind):
    with pytest.raises(UserError, match="epsilon is 8, but pixels are in"):
        LinfThreat(kind(8))
    with pytest.raises(UserError, match="epsilon is 8, but no two images"):
        LinfThreat(kind(8), bounds=(-1, 1))
    LinfThreat(kind(8), bounds=(0, 255))
    with pytest.raises(UserError, match="epsilon is 8, but pixels are in"):
        make("fgsm", threat=L2Threat(kind(8)))  # Images of 16 pixels are at most 4 apart.


@pytest.mark.parametrize("epsilon", [np.float64(0.25), np.float16(0.25), np.array(0.25), fractions.Fraction(1, 4)])
def test_numbers_are_the_same_radius_whatever_their_type(epsilon):
    assert LinfThreat(epsilon) == LinfThreat(0.25)
    assert type(LinfThreat(epsilon).epsilon) is float


@pytest.mark.parametrize(
    "bounds", [(1, 0), (0, 0), (0, float("nan")), (0, jnp.inf), (0,), (0, 1, 2), None, 1, ("0", "1"), (False, True)]
)
def test_bounds_that_cannot_be_meant_are_refused(bounds):
    with pytest.raises(UserError, match="bounds must be the smallest and the largest valid pixel"):
        LinfThreat(0.0, bounds=bounds)


def test_bounds_may_be_numbers_of_any_type():
    assert LinfThreat(0.1, bounds=[np.float32(-1), 1]).bounds == (-1.0, 1.0)  # type: ignore[arg-type]


def test_a_traced_radius_is_taken():
    def moved(epsilon):
        return jnp.abs(make("fgsm", threat=LinfThreat(epsilon)) - IMAGES).max()

    np.testing.assert_allclose(jax.vmap(moved)(jnp.array([0.0, 0.1, 0.2])), [0.0, 0.1, 0.2], atol=1e-6)
    several = jax.vmap(lambda threat: make("fgsm", threat=threat))(LinfThreat(jnp.array([0.0, 0.1])))
    assert several.shape == (2, *IMAGES.shape)
    np.testing.assert_allclose(jax.jit(moved)(0.1), 0.1, atol=1e-6)
    with pytest.raises(UserError, match="epsilon must be one number for all images"):
        make("fgsm", threat=LinfThreat(jnp.full(4, 0.1)))


@pytest.mark.parametrize("name", NAMES)
def test_every_attack_refuses_what_it_cannot_mean(name):
    refused = [
        ("pixels must be in .0, 1., but range from", {"images": (IMAGES - 0.5) / 0.25}),
        ("pixels must be in .0, 1., but range from", {"images": 255 * IMAGES}),
        ("images must be finite", {"images": IMAGES.at[0, 0].set(jnp.nan)}),
        ("images must be floats between 0.0 and 1.0, not uint8", {"images": np.uint8(255 * IMAGES)}),
        ("images must be floats between 0.0 and 1.0, not int32", {"images": jnp.int32(255 * IMAGES)}),
        ("images must be a non-empty array", {"images": IMAGES[:0], "labels": LABELS[:0]}),
        ("images must be a non-empty array", {"images": IMAGES.tolist()}),
        (r"labels must be integers .*take labels\[:, 0\]", {"labels": LABELS[:, None]}),
        (r"labels must be integers .*argmax", {"labels": jnp.eye(5, dtype=int)[LABELS]}),
        ("labels must be integers", {"labels": LABELS + 0.5}),
        ("labels must be 4, one for each image, not 3", {"labels": LABELS[:3]}),
        ("labels must be class numbers from 0", {"labels": LABELS - 9}),
        ("threat must be LinfThreat", {"threat": 0.1}),
        ("key must be a typed key", {"key": jax.random.PRNGKey(0)}),
        ("one key for each of the 4 images, but has shape", {"key": jax.random.split(KEY, 3)}),
    ]
    if name != "uniform_noise":
        refused += [
            ("labels must be in 0..4, but range from 5 to 5", {"labels": jnp.full(4, 5)}),
            ("logits must be numbers", {"logits_fn": lambda x: linear(x)[:, 0]}),
            ("logits must be an array", {"logits_fn": lambda x: (linear(x), x)}),
            ("logits_fn returned 1 rows of logits for 4 images", {"logits_fn": lambda x: linear(x[:1])}),
            ("logits_fn must be a function", {"logits_fn": None if name == "none" else "linear"}),
            ("logits_fn needs the argument keys", {"logits_fn": lambda x, keys: linear(x)}),
        ]
    for sentence, arguments in refused:
        with pytest.raises(UserError, match=sentence):
            make(name, **arguments)


@pytest.mark.parametrize("name", ["fgsm", "pgd3", "apgd_ce4"])
def test_arrays_of_numpy_are_taken_as_those_of_jax_are(name):
    found = make(name, images=np.asarray(IMAGES), labels=np.asarray(LABELS, np.uint8))
    np.testing.assert_array_equal(found, make(name))


@pytest.mark.parametrize(
    ("attack", "settings", "sentence"),
    [
        (attacks.pgd, {"num_steps": 2.5}, "num_steps must be a whole number"),
        (attacks.pgd, {"num_steps": True}, "num_steps must be at least 1, not True"),
        (attacks.pgd, {"num_restarts": 0}, "num_restarts must be at least 1, not 0"),
        (attacks.pgd, {"step_size": 0}, "step_size must be a positive number, not 0"),
        (attacks.pgd, {"step_size": float("nan")}, "step_size must be a positive number"),
        (attacks.pgd, {"loss_fn": lambda z, y: z.sum()}, "loss_fn must return one loss for each of 4 images"),
        (attacks.pgd, {"loss_fn": lambda z, y: z[:, :1]}, "loss_fn must return one loss for each of 4 images"),
        (attacks.pgd, {"loss_fn": lambda z, y: z.argmax(-1)}, "loss_fn must return floats"),
        (attacks.apgd, {"num_samples": -1}, "num_samples must be at least 1"),
        (attacks.spsa, {"probe_size": -1}, "probe_size must be a positive number"),
        (attacks.square, {"p_init": 2}, "p_init must be above 0 and at most 1"),
        (attacks.apgd_targeted, {"targets": jnp.zeros(4, int)}, "targets must be integers"),
        (attacks.apgd_targeted, {"targets": jnp.full((4, 1), 5)}, "targets must be in 0..4"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(attack, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        attack(linear, KEY, IMAGES, LABELS, LinfThreat(0.1), **settings)


def test_whole_numbers_of_numpy_are_counts():
    found = attacks.pgd(linear, KEY, IMAGES, LABELS, LinfThreat(0.1), num_steps=np.int64(3))
    np.testing.assert_array_equal(found, make("pgd3"))


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr])
def test_labels_out_of_the_classes_are_refused_or_nan(loss):
    logits = jnp.arange(10.0).reshape(2, 5)
    for wrong in (-1, 5, -100):
        with pytest.raises(UserError, match=r"labels must be in 0..4, but range from"):
            loss(logits, jnp.array([0, wrong]))
        found = jax.jit(loss)(logits, jnp.array([0, wrong]))
        assert np.isfinite(found[0])
        assert np.isnan(found[1])
        assert losses.is_correct(logits, jnp.array([4, wrong])).tolist() == [True, False]
    np.testing.assert_array_equal(loss(logits, np.uint8([4, 1])), loss(logits, jnp.array([4, 1])))
    assert np.isnan(jax.jit(loss)(logits, jnp.array([-1, 100], jnp.int8))).all()


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr, losses.is_correct])
@pytest.mark.parametrize("compiled", [True, False])
def test_losses_never_broadcast(loss, compiled):
    loss = jax.jit(loss) if compiled else loss
    logits = jnp.arange(20.0).reshape(4, 5)
    for labels in (jnp.zeros((4, 1), int), jnp.zeros(3, int), jnp.zeros(1, int), jnp.zeros((), int), jnp.zeros(4)):
        with pytest.raises(UserError, match="labels must be"):
            loss(logits, labels)
    for wrong in (logits[0], logits[None], logits > 0):
        with pytest.raises(UserError, match="logits must be numbers"):
            loss(wrong, jnp.zeros(4, int))
    with pytest.raises(UserError, match="reference_logits must have the shape of the logits"):
        losses.kl(logits, logits[:1])


def test_points_of_another_shape_are_not_projected():
    with pytest.raises(UserError, match="must have the shape of the images"):
        rg.project(IMAGES[:1], IMAGES, LinfThreat(0.1))
    with pytest.raises(UserError, match="must have the shape of the images"):
        rg.perturb(IMAGES, IMAGES[..., 0], LinfThreat(0.1))


def test_one_key_makes_a_random_start_of_every_image():
    start = threat_model.random_start(KEY, IMAGES, LinfThreat(0.1))
    np.testing.assert_array_equal(start, make("uniform_noise"))


def test_a_norm_of_ones_own_is_no_l2():
    class L1Threat(L2Threat):
        norm = "l1"

    with pytest.raises(UserError, match="threat must be LinfThreat"):
        make("fgsm", threat=L1Threat(0.1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMES)
def test_other_bounds_give_the_same_attack_in_other_units(name, norm):
    """A range twice as wide is exact in floating point, but for the rounding of the shift."""
    labels = predicted(curved, IMAGES)

    def attacked(low, high, epsilon):
        scale = high - low
        attack = functools.partial(attacks.by_name(name), lambda x: curved((x - low) / scale))
        found = jax.jit(attack)(KEY, IMAGES * scale + low, labels, THREATS[norm](epsilon, bounds=(low, high)))
        return (found - low) / scale

    expected = attacked(0.0, 1.0, 0.25)
    np.testing.assert_allclose(attacked(-1.0, 1.0, 0.5), expected, atol=2e-4)
    np.testing.assert_allclose(attacked(0.0, 256.0, 64.0), expected, atol=2e-4)


def test_a_linear_classifier_in_grey_levels_falls_to_its_optimum():
    threat = LinfThreat(4.0, bounds=(0.0, 255.0))
    images = 255 * IMAGES
    for name in ("fgsm", "pgd10", "apgd_ce10"):
        found = make(name, images=images, threat=threat, logits_fn=lambda x: linear(x / 255)[:, :2],
                     labels=jnp.zeros(4, int))  # fmt: skip
        expected = flat(images) + 4 * np.sign(WEIGHTS[:, 1] - WEIGHTS[:, 0])
        np.testing.assert_allclose(flat(found), expected, atol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_evaluation_in_other_units_is_the_same_evaluation(norm):
    images = images_between(0, 1, count=24)
    labels, names = np.asarray(predicted(curved, images)), ["fgsm", "pgd3", "generator"]

    def noisy(logits_fn, keys, images, labels, threat):
        """An attack of one's own, which sees the images and the classifier in their own units."""
        assert logits_fn(images).shape == (len(images), 5)
        return threat_model.random_start(keys, images, threat)

    def figures(low, high, epsilon):
        width = high - low
        model = evaluation.Model("m", jax.tree_util.Partial(lambda w, x: curved((x - low) / width) * w, 1.0), noisy)
        threat, moved = THREATS[norm](epsilon * width, bounds=(low, high)), np.asarray(images) * width + low
        scores = evaluation.evaluate_transfer([model], moved, labels, threat, attacks=names)
        standing, _ = evaluation.evaluate_sequential(model, moved, labels, threat, attacks=["apgd_ce3"])
        curve = evaluation.trace_curve([model], moved, labels, threat, attack="fgsm")
        robust = [scores.robust_accuracy("m", ["m"], [name]) for name in names]
        alarms = evaluation.alarms.check_model(model.logits_fn, moved, labels, threat)
        np.testing.assert_allclose(curve.epsilons[1], epsilon * width / 4, rtol=1e-6)
        return robust, standing.tolist(), curve.robust_accuracy, [alarm.fired for alarm in alarms]

    expected = figures(0.0, 1.0, 0.03)
    assert 0 < expected[0][1] < 1
    assert figures(-1.0, 1.0, 0.03) == expected


def test_evaluations_refuse_what_they_cannot_score():
    model = evaluation.Model("m", linear)
    images, labels = np.asarray(IMAGES), np.asarray(LABELS)
    for sentence, changed in (
        ("pixels must be in .0, 1., but range from", {"images": 255 * images}),
        ("pixels must be in .0, 1., but range from", {"images": (images - 0.5) / 0.25}),
        (
            "pixels must be in .-1, 1., but range from",
            {"images": 9 * images, "threat": LinfThreat(0.1, bounds=(-1, 1))},
        ),
        ("images must be finite", {"images": images * np.nan}),
        ("labels must have shape", {"labels": labels[:, None]}),
        ("labels must be integers", {"labels": labels + 0.9}),
        ("labels must be class numbers from 0", {"labels": labels * 0 - 1}),
        ("labels must be in 0..4", {"labels": labels * 0 + 5}),
        ("threat must be LinfThreat", {"threat": 0.1}),
        ("m must return logits .B, K., but gives .1,.", {"model": evaluation.Model("m", lambda x: linear(x)[:, 0])}),
        ("m is randomised", {"model": evaluation.Model("m", attacks.randomised(lambda x, keys: linear(x)))}),
        ("unknown attack 'pgd'", {"names": ["fgsm", "pgd"]}),
    ):
        given = {"model": model, "images": images, "labels": labels, "threat": LinfThreat(0.1), "names": ["fgsm"]}
        model_, *batch, names = (given | changed).values()
        with pytest.raises(UserError, match=sentence):
            evaluation.evaluate_transfer([model_], *batch, attacks=names)
        with pytest.raises(UserError, match=sentence):
            evaluation.evaluate_sequential(model_, *batch, attacks=names)


def test_evaluations_refuse_names_that_are_not_unique_and_positions_that_are_not_there():
    model, other = evaluation.Model("m", linear), evaluation.Model("m", lambda x: -linear(x))
    batch = np.asarray(IMAGES), np.asarray(LABELS), LinfThreat(0.1)
    for sentence, evaluate in (
        ("two models are named 'm'", lambda: evaluation.evaluate_transfer([model, other], *batch, attacks=["fgsm"])),
        (
            "two models are named 'm'",
            lambda: evaluation.evaluate_transfer([model], *batch, attacks=["fgsm"], surrogates=[other]),
        ),
        ("two models are named 'm'", lambda: evaluation.trace_curve([model, other], *batch, attack="fgsm")),
        ("give at least one model", lambda: evaluation.evaluate_transfer([], *batch, attacks=["fgsm"])),
        ("shown must be positions", lambda: evaluation.evaluate_transfer([model], *batch, attacks=[], shown=[-1])),
        ("shown must be positions", lambda: evaluation.evaluate_transfer([model], *batch, attacks=[], shown=[4])),
        ("a radius above 0", lambda: evaluation.trace_curve([model], *batch[:2], LinfThreat(0.0), attack="fgsm")),
        ("batch_size must be a whole", lambda: evaluation.evaluate_transfer([model], *batch, attacks=[], batch_size=0)),
        ("batch_size must be a whole", lambda: evaluation.trace_curve([model], *batch, attack="fgsm", batch_size=2.5)),
        (
            "batch_size must be a whole",
            lambda: evaluation.evaluate_sequential(model, *batch, attacks=[], batch_size=-2),
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            evaluate()

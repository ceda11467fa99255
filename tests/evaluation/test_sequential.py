"""Attacks in turn on what stands, and alarms that fire on what they must and on nothing honest."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import L2Threat, LinfThreat, attacks, evaluation, parallel
from robust_gan.errors import UserError
from robust_gan.evaluation import Model, Scores, alarms, sharded_model

THREAT = LinfThreat(0.1)
ATTACKS = ("fgsm", "uniform_noise", "pgd5")


def two_layers(weights, images):
    return jnp.tanh(images.reshape(images.shape[0], -1) @ weights["in"]) @ weights["out"]


def make_model(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    weights = {"in": rng.normal(size=(16, 12)) * 0.5, "out": scale * rng.normal(size=(12, 4))}
    return jax.tree_util.Partial(two_layers, jax.tree.map(jnp.float32, weights))


def data(logits_fn, count=203):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 4, 4, 1), np.uint8)
    labels = np.array(np.argmax(logits_fn(evaluation.to_unit(images)), -1), np.int32)
    labels[::7] = (labels[::7] + 1) % 4  # Some are wrong from the start.
    return images, labels


def test_in_turn_is_the_worst_case_of_each():
    model = Model("a", make_model())
    images, labels = data(model.logits_fn)
    scores = evaluation.evaluate_transfer([model], images, labels, THREAT, attacks=ATTACKS)
    advanced = []
    broken_by = np.full(len(images), -1, np.int16)
    standing, results = evaluation.evaluate_sequential(
        model, images, labels, THREAT, attacks=ATTACKS, broken_by=broken_by, progress_fn=advanced.append
    )
    assert np.array_equal(broken_by == -1, standing)
    assert [(broken_by == place).sum() for place in range(len(results))] == [result.broken for result in results]
    expected = np.logical_and.reduce([scores.clean[0], *scores.robust.values()])
    assert np.array_equal(standing, expected)
    assert 0 < expected.mean() < scores.clean[0].mean()
    assert [result.attack for result in results] == ["clean", *ATTACKS]
    assert results[0].robust_accuracy == scores.clean[0].mean()
    for before, after in itertools.pairwise(results):
        assert after.attacked == before.attacked - before.broken
        assert after.robust_accuracy <= before.robust_accuracy
    assert sum(advanced) == len(images) * (1 + len(ATTACKS))
    again, _ = evaluation.evaluate_sequential(model, images, labels, THREAT, attacks=ATTACKS[::-1])
    assert np.array_equal(again, standing)


@pytest.mark.parametrize(("batch_size", "count"), [(7, 1), (64, 4), (1000, 4)])
def test_survivors_do_not_depend_on_packing_or_devices(batch_size, count):
    model = Model("a", make_model())
    images, labels = data(model.logits_fn)
    whole, _ = evaluation.evaluate_sequential(model, images, labels, THREAT, attacks=ATTACKS)
    devices = parallel.find_devices(num_devices=count)
    packed, _ = evaluation.evaluate_sequential(
        model, images, labels, THREAT, attacks=ATTACKS, batch_size=batch_size, devices=devices
    )
    assert np.array_equal(whole, packed)


class Killed(Exception):
    """Stands for a kill."""


class Fragile(evaluation.EvaluationState):
    """Is killed after it was saved some times."""

    def __init__(self, path, saves):
        super().__init__(path)
        self.left = saves

    def save(self):
        super().save()
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model": Model("a", make_model(scale=1.01))}, "another a"),
        ({"threat": type(THREAT)(2 * THREAT.epsilon)}, "another threat model"),
        ({"seed": 1}, "another seed"),
        ({"backwards": True}, "other images"),
        ({"labels": 3}, "other labels"),
    ],
)
@pytest.mark.parametrize("how", ["evaluate_transfer", "evaluate_sequential"])
def test_what_was_found_in_another_evaluation_is_refused(tmp_path, how, change, what):
    model = Model("a", make_model())
    images, truth = data(model.logits_fn)

    def run(model=model, threat=THREAT, seed=0, backwards=False, labels=0):
        order = np.s_[::-1] if backwards else np.s_[:]
        kept = evaluation.EvaluationState(tmp_path / "kept.npz")
        first = [model] if how == "evaluate_transfer" else model
        function = getattr(evaluation, how)
        function(first, images[order], (truth[order] + labels) % 4, threat, attacks=["fgsm"], seed=seed, state=kept)

    run()
    run()
    with pytest.raises(UserError, match=rf"kept.npz is of {what}: give a new file for this evaluation"):
        run(**change)


def test_a_model_whose_logits_are_not_finite_is_itself_again():
    images, labels = np.zeros((3, 2, 2, 1), np.float32), np.zeros(3, np.int32)
    logits = jnp.array([[jnp.inf, 1.0, jnp.nan]])
    kept = evaluation.EvaluationState()
    for model, differs in ((Model("a", lambda x: logits), ""), (Model("a", lambda x: logits), ""),
                           (Model("a", lambda x: 2 * logits), "another a")):  # fmt: skip
        assert kept.differs([model], images, labels, THREAT, 0) == differs


def test_what_was_finished_is_not_attacked_again(tmp_path, monkeypatch):
    model = Model("a", make_model())
    images, labels = data(model.logits_fn)
    kept = evaluation.EvaluationState(tmp_path / "kept.npz")
    first, _ = evaluation.evaluate_sequential(model, images, labels, THREAT, attacks=ATTACKS[:2], state=kept)
    kept = evaluation.EvaluationState(tmp_path / "kept.npz")
    with monkeypatch.context() as patch:
        patch.setattr(sharded_model.ShardedModel, "craft", None)
        finished, _ = evaluation.evaluate_sequential(model, images, labels, THREAT, attacks=ATTACKS[:2], state=kept)
    assert np.array_equal(first, finished)
    whole, _ = evaluation.evaluate_sequential(model, images, labels, THREAT, attacks=ATTACKS)
    resumed, _ = evaluation.evaluate_sequential(model, images, labels, THREAT, attacks=ATTACKS, state=kept)
    assert np.array_equal(whole, resumed)


@pytest.mark.parametrize("saves", [1, *(pytest.param(saves, marks=pytest.mark.slow) for saves in (3, 6, 9))])
def test_a_stopped_evaluation_goes_on_to_the_same_scores(tmp_path, saves):
    model, other = Model("a", make_model()), Model("b", make_model(1))
    images, labels = data(model.logits_fn)

    def everything(path, kept):
        settings = {"attacks": ATTACKS, "batch_size": 60, "state": kept}
        scores = evaluation.evaluate_transfer([model], images, labels, THREAT, surrogates=[other], **settings)
        standing, results = evaluation.evaluate_sequential(model, images, labels, THREAT, **settings)
        return scores, standing, [result._replace(seconds=0) for result in results]

    whole = everything(None, evaluation.EvaluationState())
    while True:  # Killed again and again, each time after as many batches.
        try:
            resumed = everything(tmp_path, Fragile(tmp_path / "kept.npz", saves))
            break
        except Killed:
            continue
    assert whole[0].clean.tolist() == resumed[0].clean.tolist()
    assert {key: value.tolist() for key, value in whole[0].robust.items()} == {
        key: value.tolist() for key, value in resumed[0].robust.items()
    }
    assert np.array_equal(whole[1], resumed[1])
    assert whole[2] == resumed[2]
    assert [path.name for path in tmp_path.iterdir()] == ["kept.npz"]


def test_the_images_that_broke_are_in_the_ball_and_are_wrong():
    model = Model("a", make_model())
    images, labels = data(model.logits_fn)
    clean = evaluation.to_unit(images)
    broken = clean.copy()
    standing, results = evaluation.evaluate_sequential(model, images, labels, THREAT, attacks=ATTACKS, batch_size=60,
                                         adversarial=broken)  # fmt: skip
    moved = np.abs(broken - clean).max((1, 2, 3))
    assert (moved > 0).sum() == sum(result.broken for result in results[1:]) > 0
    assert moved.max() <= THREAT.epsilon + 2**-24
    assert broken.min() >= 0
    assert broken.max() <= 1
    assert np.array_equal(np.argmax(np.asarray(model.logits_fn(broken)), -1) == labels, standing)


def test_damaged_findings_are_told(tmp_path):
    (tmp_path / "kept.npz").write_bytes(b"PK garbled")
    with pytest.raises(UserError, match=r"is damaged .* remove it"):
        evaluation.EvaluationState(tmp_path / "kept.npz")
    kept = evaluation.EvaluationState()
    kept.part("a", 3)
    with pytest.raises(UserError, match="another number of images"):
        kept.part("a", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", evaluation.RETRAINED)
def test_a_fresh_generator_breaks_the_same_images_whatever_the_batch_size(name, monkeypatch):
    short = functools.partial(attacks.train_generator, num_steps=60)
    monkeypatch.setattr(evaluation.sharded_model.attacks_lib, "train_generator", short)
    evaluation.sharded_model._jitted.cache_clear()
    rng = np.random.default_rng(0)
    weights = {"in": jnp.float32(rng.normal(size=(64, 12)) * 0.3), "out": jnp.float32(rng.normal(size=(12, 4)))}
    model = Model("a", jax.tree_util.Partial(two_layers, weights))
    images = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
    labels = np.asarray(np.argmax(model.logits_fn(evaluation.to_unit(images)), -1), np.int32)
    runs = [
        evaluation.evaluate_transfer([model], images, labels, LinfThreat(0.1), attacks=["fgsm", name], batch_size=size)
        for size in (40, 16)
    ]
    key = ("a", "a", name)
    assert np.array_equal(runs[0].robust[key], runs[1].robust[key])
    assert runs[0].robust_accuracy("a", ["a"], [name]) < 0.5 < runs[0].clean_accuracy("a")
    evaluation.sharded_model._jitted.cache_clear()


def test_nothing_is_attacked_where_nothing_stands():
    model = Model("a", make_model())
    images, labels = data(model.logits_fn)
    standing, results = evaluation.evaluate_sequential(
        model, images, (labels + 1) % 4, LinfThreat(1.0), attacks=["fgsm", "pgd5"]
    )
    assert not standing.any()
    assert results[-1].attacked == results[-1].broken == 0


def examine(logits_fn, threat=THREAT, count=64):
    images, _ = data(make_model())
    labels = np.argmax(logits_fn(jnp.asarray(evaluation.to_unit(images))), -1)
    return {alarm.name for alarm in alarms.fired(alarms.check_model(logits_fn, images, labels, threat, count=count))}


@pytest.mark.slow
@pytest.mark.parametrize("threat", [THREAT, L2Threat(0.25)], ids=["linf", "l2"])
def test_honest_classifiers_trip_nothing(threat):
    for seed in range(5):
        assert examine(make_model(seed), threat) == set()


def batch_mode(images):
    """BatchNorm in batch mode."""
    flat = images.reshape(images.shape[0], -1)
    return (flat - flat.mean(0)) / (flat.std(0) + 1e-3) @ make_model().args[0]["in"][:, :4]


def resized(images):
    """A random shift for each batch, drawn from the batch itself, as a seeded defence would."""
    shift = jnp.int32(1e4 * images.sum()) % 4
    return make_model()(jnp.roll(images, shift, axis=1))


def quantised(images):
    return make_model()(jnp.round(images * 4) / 4)


def masked(images):
    """The loss is flat where the classifier is sure of itself: logits so large that the softmax saturates."""
    return 1e4 * make_model()(images)


DISHONEST = {
    "batch mode": (batch_mode, "randomised"),
    "random resizing": (resized, "randomised"),
    "softmax": (lambda images: jax.nn.softmax(make_model()(images)), "probabilities"),
    "quantised input": (quantised, "zero_gradients"),
    "masked gradients": (masked, "zero_gradients"),
    "quantised input survives all": (quantised, "does_not_reach_0"),
    "loss plateau": (lambda images: jnp.tanh(200 * (make_model()(images) - 1)) * 10, "does_not_reach_0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DISHONEST)
def test_dishonest_classifiers_trip_their_alarm(name):
    logits_fn, alarm = DISHONEST[name]
    assert alarm in examine(logits_fn)


@pytest.mark.slow
def test_a_classifier_whose_classes_are_in_another_order_is_near_chance():
    images, labels = data(make_model(), count=64)
    for shift, fires in ((0, False), (1, True)):
        found = alarms.check_model(lambda x, shift=shift: jnp.roll(make_model()(x), shift, -1), images, labels, THREAT)
        assert ("near_chance" in {alarm.name for alarm in alarms.fired(found)}) == fires


@pytest.mark.slow
def test_a_short_attack_that_a_longer_one_beats_is_not_converged(monkeypatch):
    monkeypatch.setattr(alarms, "_STEPS", 1)
    assert "not_converged" in examine(make_model(scale=3.0), count=200)


def test_alarms_of_scores():
    model, count = Model("a", make_model()), 1000
    images, labels = data(model.logits_fn, count)
    scores = evaluation.evaluate_transfer(
        [model], images, labels, THREAT, attacks=["fgsm", "pgd10"], surrogates=[Model("b", make_model(0))]
    )
    found = {alarm.name: alarm for alarm in alarms.check_scores(scores, "a")}
    assert set(found) == {"nan_logits_under_attack", "black_box_beats_white", "one_step_beats_many"}
    assert not alarms.fired(list(found.values()))
    broken = {key: value.copy() for key, value in scores.robust.items()}
    broken["a", "a", "fgsm"] |= broken["a", "a", "pgd10"]
    stands = np.flatnonzero(broken["a", "a", "pgd10"] & broken["a", "a", "fgsm"])
    for key, name, lost in (
        (("a", "b", "pgd10"), "black_box_beats_white", 3), (("a", "a", "fgsm"), "one_step_beats_many", 6)
    ):  # fmt: skip
        changed = {k: v.copy() for k, v in broken.items()}
        changed[key][stands[: lost - 1]] = False
        sequential = {"apgd_ce": ~broken["a", "a", "pgd10"]}
        within = alarms.check_scores(dataclasses.replace(scores, robust=changed), "a", sequential)
        assert name not in {alarm.name for alarm in alarms.fired(within)}
        changed[key][stands[:lost]] = False
        beyond = alarms.check_scores(dataclasses.replace(scores, robust=changed), "a", sequential)
        assert name in {alarm.name for alarm in alarms.fired(beyond)}


@pytest.mark.parametrize(
    ("attacks", "pgd_breaks", "fires"),
    [
        (["clean", "apgd_ce", "square"], 0, True),
        (["clean", "generator", "apgd_ce", "square50", "spsa"], 0, True),
        (["clean", "apgd_ce", "square"], 3, False),  # An attack of the matrix breaks what Square did.
        (["clean", "square", "apgd_ce"], 0, False),  # Nobody knows what APGD would have done there.
        (["clean", "square"], 0, False),
    ],
)
def test_a_query_attack_in_turn_that_breaks_what_gradients_left_is_an_alarm(attacks, pgd_breaks, fires):
    robust = {("a", "a", "pgd10"): np.arange(1000) >= pgd_breaks} if pgd_breaks else {}
    scores = Scores(("a",), ("a",), ("pgd10",) if robust else (), np.ones((1, 1000), bool), robust)
    broke = {attack: np.zeros(1000, bool) for attack in attacks}
    broke[next(attack for attack in attacks if attack.startswith("square"))][:3] = True
    found = alarms.fired(alarms.check_scores(scores, "a", broke))
    assert [alarm.name for alarm in found] == ["black_box_beats_white"] * fires
    assert all(alarm.finding.startswith("square") and " breaks 0.3 points" in alarm.finding for alarm in found)


@pytest.mark.parametrize(
    ("odi_breaks", "fires", "verdict"),
    [(0, True, "gradients are masked"), (3, False, "these were weak"), (None, True, "")],
)
def test_the_alarm_on_black_box_attacks_tells_masked_gradients_from_weak_attacks(odi_breaks, fires, verdict):
    robust = {("a", "a", "pgd10"): np.ones(1000, bool)}
    if odi_breaks is not None:
        robust["a", "a", "pgd10_odi"] = np.arange(1000) >= odi_breaks
    scores = Scores(("a",), ("a",), tuple(name for _, _, name in robust), np.ones((1, 1000), bool), robust)
    broke = {"apgd_ce": np.zeros(1000, bool), "square": np.arange(1000) < 3}
    [alarm] = [alarm for alarm in alarms.check_scores(scores, "a", broke) if alarm.name == "black_box_beats_white"]
    assert alarm.fired == fires
    assert alarm.finding.endswith(verdict or "under the white-box attacks")


@pytest.mark.parametrize(("width", "count"), [(500, 270), (500, 913), (500, 1), (500, 500), (8, 3), (360, 359), (4, 9)])
def test_batches_of_the_remaining_images_have_little_padding(width, count):
    devices = jax.devices()
    narrow = sharded_model.narrow_width(width, count, devices)
    batches = -(-count // narrow)
    assert narrow % len(devices) == 0
    assert narrow <= width
    assert batches == -(-count // width)
    assert batches * (narrow - len(devices) - width // 16) < count  # A sixteenth of the width, rounded up.

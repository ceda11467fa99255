"""Scores: every image counted once, whatever the batch size and the number of devices."""

import functools
import json

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

from robust_gan import L2Threat, LinfThreat, attacks, evaluation, losses, parallel
from robust_gan.data import batching
from robust_gan.errors import DataError, UserError
from robust_gan.evaluation import Model, statistics
from robust_gan.evaluation.plan import fit_classes, plan_attacks
from robust_gan.networks import inference
from robust_gan.reporting import evaluation_record, evaluation_report, plots

THREAT = LinfThreat(0.1)


def linear(seed, name=None, classes=3, size=4):
    weights = jnp.asarray(np.random.default_rng(seed).normal(size=(size * size, classes)), jnp.float32)
    logits_fn = jax.tree_util.Partial(_linear_logits, weights)
    return Model(name or f"linear{seed}", logits_fn)


TRACES = []


def _linear_logits(weights, images):
    TRACES.append(None)
    return images.reshape(images.shape[0], -1) @ weights


# Registered as the networks of the package are, so that compiled functions are shared.
inference.as_architecture(_linear_logits, "linear, for tests")


def data(count=100, classes=3, size=4):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 1), np.uint8)
    return images, rng.integers(0, classes, count).astype(np.int32)


def labelled_by(model, images):
    return np.argmax(np.asarray(model.logits_fn(evaluation.to_unit(images))), axis=-1).astype(np.int32)


@pytest.mark.parametrize("batch_size", [7, 64, 500])
def test_every_image_is_counted_once(batch_size):
    model = linear(0)
    images, _ = data(203)
    labels = labelled_by(model, images)
    labels[::5] = (labels[::5] + 1) % 3
    advanced = []
    scores = evaluation.evaluate_transfer(
        [model], images, labels, THREAT, attacks=["fgsm"], batch_size=batch_size, progress_fn=advanced.append
    )
    assert scores.clean.sum() == 203 - 41
    assert scores.clean_accuracy(model.name) == (203 - 41) / 203
    assert sum(advanced) == 203 == evaluation.num_attacked([model], [], ["fgsm"], 203)


def test_ten_thousand_and_seven_images_in_batches_of_64_are_counted_exactly():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, 10_007).astype(bool)
    counted = [(values[indices][mask].sum(), mask.sum()) for indices, mask in batching.padded_batches(10_007, 64)]
    assert np.sum(counted, axis=0).tolist() == [values.sum(), 10_007]


@pytest.mark.slow
def test_scores_do_not_depend_on_batch_size_or_devices():
    model, source = linear(0), linear(1)
    images, _ = data(50)
    labels = labelled_by(model, images)
    runs = [
        evaluation.evaluate_transfer(
            [model], images, labels, THREAT, attacks=["uniform_noise", "fgsm", "pgd3x2"], surrogates=[source],
            batch_size=batch_size, devices=parallel.find_devices(num_devices=count),
        )
        for batch_size, count in ((50, 1), (7, 1), (16, 4), (3, 4))
    ]  # fmt: skip
    for other in runs[1:]:
        assert np.array_equal(runs[0].clean, other.clean)
        assert runs[0].robust.keys() == other.robust.keys()
        assert all(np.array_equal(runs[0].robust[key], other.robust[key]) for key in runs[0].robust)


def test_robust_is_right_clean_and_under_attack_and_the_worst_case_is_per_image():
    model, images = linear(0), data(60)[0]
    labels = labelled_by(model, images)
    labels[:10] = (labels[:10] + 1) % 3
    scores = evaluation.evaluate_transfer([model], images, labels, THREAT, attacks=["uniform_noise", "fgsm"])
    noise, fgsm = (scores.robust[model.name, model.name, name] for name in ("uniform_noise", "fgsm"))
    assert not noise[:10].any()
    assert not fgsm[:10].any()
    assert scores.robust_accuracy(model.name, [model.name]) == (noise & fgsm).mean()
    assert scores.robust_accuracy(model.name, [model.name], ["fgsm"]) == fgsm.mean() < scores.clean_accuracy(model.name)
    assert scores.robust_accuracy(model.name, ["nobody"]) is None


def test_fgsm_on_a_linear_classifier_gives_the_closed_form_robust_accuracy():
    rng = np.random.default_rng(0)
    images = rng.uniform(0.2, 0.8, (200, 4, 4, 1)).astype(np.float32)
    weights = rng.normal(size=(16, 2)) / 4
    model = Model("centred", lambda x: (x.reshape(x.shape[0], -1) - 0.5) @ jnp.asarray(weights, jnp.float32))
    labels = labelled_by(model, images)
    flat = images.reshape(200, -1).astype(np.float64) - 0.5
    gap = (flat @ weights)[np.arange(200), labels] - (flat @ weights)[np.arange(200), 1 - labels]
    sign = np.where(labels == 0, 1, -1)[:, None]
    loss_of = 0.1 * np.abs(sign * (weights[:, 0] - weights[:, 1])).sum(-1)
    scores = evaluation.evaluate_transfer([model], images, labels, THREAT, attacks=["fgsm"])
    expected = (gap > loss_of).mean()
    assert 0 < expected < 1
    assert scores.robust_accuracy(model.name, [model.name]) == expected


def test_a_wrong_classifier_scores_zero_and_a_constant_one_survives():
    constant = Model("constant", lambda x: jnp.tile(jnp.asarray([0.0, 1.0, 0.0]), (x.shape[0], 1)))
    nan = Model("nan", lambda x: jnp.full((x.shape[0], 3), jnp.nan))
    images, _ = data(20)
    scores = evaluation.evaluate_transfer([constant, nan], images, np.ones(20, np.int32), THREAT, attacks=["pgd2"])
    assert scores.robust_accuracy("constant", ["constant"]) == 1.0
    assert scores.clean_accuracy("nan") == 0.0
    scores = evaluation.evaluate_transfer([constant], images, np.zeros(20, np.int32), THREAT, attacks=["pgd2"])
    assert scores.robust_accuracy("constant", ["constant"]) == 0.0


def test_transfer_makes_the_attack_on_the_source():
    target, source = linear(0), linear(1)
    images, _ = data(40)
    labels = labelled_by(target, images)
    scores = evaluation.evaluate_transfer([target], images, labels, THREAT, attacks=["fgsm"], surrogates=[source])
    unit = evaluation.to_unit(images)
    gradient = jax.grad(lambda x: losses.cross_entropy(source.logits_fn(x), labels).sum())(unit)
    moved = np.clip(unit + 0.1 * np.sign(gradient), 0, 1)
    expected = (np.argmax(target.logits_fn(moved), -1) == labels) & scores.clean[0]
    assert np.array_equal(scores.robust[target.name, source.name, "fgsm"], expected)
    assert (source.name, source.name, "fgsm") not in scores.robust


def test_the_co_trained_generator_attacks_its_own_classifier_and_others():
    noisy = linear(0, size=8)
    attack = functools.partial(attacks.generator, noise_fn=jnp.ones_like)
    noisy = Model(noisy.name, noisy.logits_fn, attack)
    other = linear(1, size=8)
    images, _ = data(30, size=8)
    labels = labelled_by(noisy, images)
    scores = evaluation.evaluate_transfer([noisy, other], images, labels, THREAT, attacks=["generator"])
    assert set(scores.robust) == {(noisy.name, noisy.name, "generator"), (other.name, noisy.name, "generator")}
    moved = np.clip(evaluation.to_unit(images) + 0.1, 0, 1)
    expected = np.argmax(noisy.logits_fn(moved), -1) == labels
    assert np.array_equal(scores.robust[noisy.name, noisy.name, "generator"], expected)
    assert scores.robust_accuracy(other.name, [other.name]) is None


def test_two_models_of_one_architecture_share_what_is_compiled():
    images, labels = data(20)
    evaluation.evaluate_transfer([linear(0)], images, labels, THREAT, attacks=["pgd2"], batch_size=20)
    before = len(TRACES)
    evaluation.evaluate_transfer([linear(1)], images, labels, LinfThreat(0.2), attacks=["pgd2"], batch_size=20)
    assert len(TRACES) == before + 1, "it is traced for its number of classes alone"


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (np.zeros((0, 2, 2, 1)), np.zeros(0, int), "non-empty"),
        (np.zeros((2, 2, 2)), np.zeros(2, int), r"\[N, H, W, C\]"),
        (np.zeros((2, 2, 2, 1), np.int64), np.zeros(2, int), "uint8 or float"),
        (np.full((2, 2, 2, 1), np.nan), np.zeros(2, int), "finite"),
        (np.full((2, 2, 2, 1), 255.0), np.zeros(2, int), "range from 255 to 255"),
        (np.full((2, 2, 2, 1), -0.1), np.zeros(2, int), "in \\[0, 1\\]"),
        (np.zeros((2, 2, 2, 1)), np.zeros(3, int), "one per image"),
        (np.zeros((2, 2, 2, 1)), np.zeros((2, 10), int), "one per image"),
        (np.zeros((2, 2, 2, 1)), np.zeros(2), "integers"),
        (np.zeros((2, 2, 2, 1)), np.array([0, -1]), "but one is -1"),
        (np.zeros((2, 2, 2, 1)), np.array([0, 10]), r"0\.\.9"),
    ],
)
def test_images_and_labels_on_which_a_figure_means_nothing_are_refused(images, labels, sentence):
    with pytest.raises(DataError, match=sentence):
        evaluation.check_images(images, labels, 10)


def test_pixels_outside_by_rounding_are_tolerated_and_clipped():
    images = np.array([-3e-8, 1 + 1e-7], np.float32).reshape(1, 1, 2, 1)
    evaluation.check_images(images, np.zeros(1, int), 2)
    assert evaluation.to_unit(images).ravel().tolist() == [0.0, 1.0]


def test_unknown_and_repeated_attacks_are_refused():
    with pytest.raises(UserError, match="unknown attack 'pdg10'"):
        evaluation.attack_names("clean,pdg10")
    with pytest.raises(UserError, match="named twice"):
        evaluation.attack_names("fgsm,fgsm")
    assert evaluation.attack_names("clean") == ()


def test_the_tables_hold_the_figures_and_a_dash_where_there_is_none(tmp_path):
    models = [
        Model("alpha", linear(0).logits_fn, functools.partial(attacks.generator, noise_fn=jnp.ones_like)),
        linear(1, "beta"),
    ]
    images, _ = data(40)
    labels = labelled_by(models[0], images)
    scores = evaluation.evaluate_transfer(models, images, labels, THREAT, attacks=["fgsm", "generator"])
    table = evaluation_report.white_and_black_box(scores).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == ["model", "clean", "fgsm, white box", "generator, white box",
                        "fgsm, black box", "generator, black box"]  # fmt: skip
    alpha = dict(zip(cells[0], cells[2], strict=True))
    assert alpha["clean"] == "100.0 (91.2 to 100.0)"
    assert alpha["generator, black box"] == "-"
    assert alpha["fgsm, white box"] == statistics.format_accuracy(scores.robust["alpha", "alpha", "fgsm"].mean(), 40)
    assert alpha["fgsm, black box"] == statistics.format_accuracy(scores.robust["alpha", "beta", "fgsm"].mean(), 40)
    values = evaluation_record.record(
        scores,
        THREAT,
        data={"name": "x", "split": "test", "count": 40},
        models={},
        settings={"seed": 0},
        runs=[evaluation_record.made_with(500, 1)],
    )
    evaluation_report.write(tmp_path / "report", scores, values)
    assert "fgsm" in (tmp_path / "report" / evaluation_record.TABLES).read_text()
    assert values["targets"]["alpha"]["robust_accuracy"]["fgsm"]["beta"] == scores.robust_accuracy(
        "alpha", ["beta"], ["fgsm"]
    )
    assert values["targets"]["alpha"]["worst_case"]["all"] <= values["targets"]["alpha"]["worst_case"]["white_box"]


@pytest.mark.slow
def test_batch_statistics_are_an_option_that_the_report_names(launch, tiny_run, tmp_path):
    flags = [f"--checkpoint={tiny_run}", "--attacks=clean,fgsm", "--num_examples=32", "--batch_size=32"]
    running = launch("evaluate", *flags, f"--output={tmp_path}/running")
    batch = launch("evaluate", *flags, "--use_batch_stats", f"--output={tmp_path}/batch")
    assert (running.code, batch.code) == (0, 0)
    records = {name: json.loads((tmp_path / name / "report.json").read_text()) for name in ("running", "batch")}
    assert [records[name]["settings"]["batch_norm"] for name in ("running", "batch")] == ["running", "batch"]
    # After two steps the running statistics are still near their start: the figures must differ.
    assert records["running"]["targets"] != records["batch"]["targets"]
    for text in (batch.out, (tmp_path / "batch/report.md").read_text()):
        assert evaluation_report.USE_BATCH_STATS in text
    assert evaluation_report.USE_BATCH_STATS not in running.out


def test_accuracies_and_costs_are_drawn(tmp_path):
    matplotlib_image = pytest.importorskip("matplotlib.image")
    rows = {"pgd": {"clean": [0.9, 1.0], "white box": [0.5, 0.6]}}
    plots.save(plots.accuracies(rows, {"pgd": 0}), tmp_path / "a.png")
    point = {"seconds": 1.0, "gradient_evaluations": 11, "robust_accuracy": 0.5}
    histories = {"pgd": [[point, point], [point]], "generator": [[point], [point]]}
    plots.save(plots.costs(histories), tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        pixels = matplotlib_image.imread(tmp_path / name)[..., :3]
        assert min(pixels.shape[:2]) > 200
        assert (pixels.min(-1) < 0.9).mean() > 0.003  # Not a blank sheet.


@pytest.mark.slow
def test_a_suite_attacks_in_turn_and_its_report_says_what_stood_and_what_the_alarms_found(launch, tiny_run, tmp_path):
    flags = [f"--checkpoint={tiny_run}", "--suite=autoattack", "--num_examples=24", "--attacks=fgsm"]
    turns = "--sequential=apgd_ce3,fab_t2,square20"
    ended = launch("evaluate", *flags, turns, f"--output={tmp_path}/report")
    assert ended.code == 0, ended.err
    values = json.loads((tmp_path / "report/report.json").read_text())
    target = values["targets"]["tiny"]
    results = target["sequential"]
    assert [result["attack"] for result in results] == ["clean", "apgd_ce3", "fab_t2", "square20"]
    assert results[0]["robust_accuracy"] == target["clean_accuracy"]
    assert target["worst_case"]["white_box"] <= min(
        results[-1]["robust_accuracy"], target["robust_accuracy"]["fgsm"]["tiny"]
    )
    assert {alarm["name"] for alarm in target["alarms"]} == {
        "randomised", "changed", "probabilities", "near_chance", "nan_logits", "zero_gradients", "nan_gradients",
        "not_converged", "does_not_reach_0", "nan_logits_under_attack",
        "black_box_beats_white",  # Square comes after the others.
    }  # fmt: skip
    text = (tmp_path / "report/report.md").read_text()
    for table in (evaluation_report.sequential(values), evaluation_report.format_alarms(values)):
        assert table in text
        assert table in ended.out
    wrong = launch("evaluate", *flags, "--suite=auto")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err == "error: the suite must be one of quick, paper, autoattack, full, corruptions, not 'auto'\n"


def test_every_suite_names_attacks_that_there_are():
    for name, suite in evaluation.SUITES.items():
        assert name == "corruptions" or any(evaluation.attack_names(text) for text in suite)


def test_the_report_compares_models_pair_by_pair_on_the_same_images():
    models = [linear(seed) for seed in range(10)]
    images, labels = data(50)
    scores = evaluation.evaluate_transfer(models, images, labels, THREAT, attacks=["fgsm", "uniform_noise"])
    values = evaluation_record.record(
        scores,
        THREAT,
        data={"name": "x", "split": "test", "count": 50},
        models={},
        settings={"seed": 0},
        runs=[evaluation_record.made_with(500, 1)],
    )
    pairs = {(row["first"], row["second"]) for row in values["paired"]}
    assert len(pairs) == 10 * 9 / 2
    for row in values["paired"]:
        one, other = row["first"], row["second"]
        if row["under"] in scores.attacks:
            first, second = (scores.robust[name, name, row["under"]] for name in (one, other))
            assert row["p_value"] == statistics.mcnemar(first, second)
        elif row["under"] == statistics.WORST_WHITE:
            shares = [values["targets"][name]["worst_case"]["white_box"] for name in (one, other)]
            assert row["difference"] == pytest.approx(shares[0] - shares[1])
    found = {row["under"] for row in values["paired"]}
    assert found == {"clean", "fgsm", "uniform_noise", statistics.WORST_WHITE, statistics.WORST_BLACK}
    # The table of many pairs shows the first eight models in the worst cases only.
    assert evaluation_report.paired_comparisons(values).count("\n") == 1 + 28 * 3
    target = values["targets"]["linear3"]
    share = target["robust_accuracy"]["fgsm"]["linear5"]
    assert target["intervals"]["robust_accuracy"]["fgsm"]["linear5"] == statistics.interval_of(share, 50)


@pytest.mark.parametrize(("classes", "second"), [(2, "margin_pgd100x5"), (3, "margin_pgd100x5"), (4, "apgd_t")])
def test_autoattack_for_few_classes_takes_the_place_of_the_standard_one(classes, second):
    plan = plan_attacks(evaluation.EvaluationConfig(suite="full", attacks="fgsm"))
    fitted = fit_classes(plan, "mine", classes)
    assert fitted.sequential[:2] == ("apgd_ce", second)
    assert fitted.sequential[2:] == plan.sequential[2:]
    result = {"robust_accuracy": 0.5, "seconds": 1.0}
    targets = {"mine": {"sequential": [result | {"attack": name} for name in ("clean", *fitted.sequential)]}}
    text = evaluation_report.sequential({"data": {"count": 9}, "targets": targets})
    assert ("AutoAttack for fewer than 4 classes" in text) == (classes < 4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_run_of_fmn_gives_the_distances_and_the_curve_of_a_linear_classifier(norm, tmp_path):
    model, count = linear(0), 12
    images = np.random.default_rng(2).integers(64, 192, (count, 4, 4, 1), np.uint8)
    labels = labelled_by(model, images)
    labels[0] = (labels[0] + 1) % 3
    threat = {"linf": LinfThreat(0.02), "l2": L2Threat(0.08)}[norm]
    curve = evaluation.trace_curve([model], images, labels, threat, attack="fmn100")
    weights = np.float64(model.logits_fn.args[0]).T
    logits = np.float64(evaluation.to_unit(images)).reshape(count, -1) @ weights.T
    steps = weights[None] - weights[labels][:, None]
    sizes = np.abs(steps).sum(2) if norm == "linf" else np.linalg.norm(steps, axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.nanmin(np.abs(logits - logits[np.arange(count), labels][:, None]) / sizes, axis=1)
    expected[0] = 0.0
    np.testing.assert_allclose(curve.distances[model.name], expected, rtol=0.03)
    assert curve.robust_accuracy[model.name][0] == 11 / 12
    assert curve.robust_accuracy[model.name][-1] == 0
    assert all(
        share == np.mean(curve.distances[model.name] > radius)
        for radius, share in zip(curve.epsilons, curve.robust_accuracy[model.name], strict=True)
    )
    scores = evaluation.evaluate_transfer([model], images, labels, threat, attacks=["fgsm"])
    values = evaluation_record.record(scores, threat, data={"name": "x", "split": "test", "count": count}, models={},
                           settings={"seed": 0, "batch_norm": "running"}, runs=[evaluation_record.made_with(12, 1)],
                           curve=curve)  # fmt: skip
    written = json.loads(json.dumps(values["curve"]))
    jsonschema.validate(
        written, evaluation_record.schema()["properties"]["curve"] | {"$defs": evaluation_record.schema()["$defs"]}
    )
    evaluation_report.write(tmp_path, scores, values)
    assert f"| {model.name} | " in (tmp_path / "report.md").read_text().split("## Smallest perturbations")[1]

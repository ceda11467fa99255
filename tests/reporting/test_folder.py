"""The folder of an evaluation: gone on with after a kill, refused to another evaluation, and what it holds."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jsonschema
import numpy as np
import pytest

from robust_gan import LinfThreat, checkpoint, evaluation
from robust_gan.errors import UserError
from robust_gan.evaluation import Curve, EvaluationConfig, alarms
from robust_gan.reporting import details, evaluation_record
from robust_gan.reporting import folder as folder_lib
from robust_gan.reporting import run as run_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEQUENTIAL = "fgsm,pgd3,square20"


def compare(run, output, **settings):
    given = {"attacks": "fgsm,pgd2", "sequential": SEQUENTIAL, "num_examples": 60, "progress": False, **settings}
    return run_lib.run(EvaluationConfig([str(run)], output=output, **given))[1]


def timeless(values):
    """A report without what the clock says."""
    values = json.loads(json.dumps(values))
    for name in ("created", "seconds", "images_per_second"):
        del values[name]
    for target in values["targets"].values():
        for result in target["sequential"]:
            del result["seconds"]
    return values


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports") / "whole"
    values = compare(tiny_run, folder, save_adversarial=True, plots=evaluation.PLOTS)
    return folder, values


@pytest.mark.slow
def test_the_folder_holds_what_is_documented(evaluated):
    folder, values = evaluated
    assert {path.name for path in folder.iterdir()} == {
        "scores.npz", "details.npz", "report.json", "report.md", "cards", "adversarial.npz",
        "examples.png", "curve.png", "transfer.png", "trace.png", ".lock",
    }  # fmt: skip  # No scores.parts: the classifier is constant, so that no attack replaces an image.
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(values))
    assert values["curve"]["epsilons"][0] == 0
    assert values["curve"]["robust_accuracy"]["tiny"][0] == values["targets"]["tiny"]["clean_accuracy"]
    card = json.loads((folder / "cards" / "tiny.json").read_text())
    assert card["eps"] == 0.15
    assert card["autoattack_acc"] is None  # Those were not AutoAttack's.


@pytest.mark.slow
def test_the_details_agree_with_the_figures(evaluated):
    folder, values = evaluated
    found, target = details.read(folder), values["targets"]["tiny"]
    assert len(found.labels) == len(found.robust["tiny"]) == 60
    assert found.robust["tiny"].mean() == target["worst_case"]["white_box"]
    for attack in ("fgsm", "pgd2"):
        right = found.predicted["tiny", attack] == found.labels
        clean = found.predicted["tiny", "clean"] == found.labels
        assert (right & clean).mean() == target["robust_accuracy"][attack]["tiny"]
        assert np.trace(details.confusion(found, "tiny", attack)) == right.sum()
    sequential = found.predicted["tiny", details.SEQUENTIAL] == found.labels
    assert sequential.mean() == target["sequential"][-1]["robust_accuracy"]
    assert found.attack == "pgd2"
    moved = np.abs(found.adversarial["tiny"] - found.images).max(axis=(1, 2, 3))
    assert len(moved) == 10
    assert (moved > 0.1).all()
    assert moved.max() <= 0.15 + 1e-6
    logits = checkpoint.load_classifier(values["models"]["tiny"]["checkpoint"])(found.adversarial["tiny"])
    assert (np.argmax(np.asarray(logits), -1) == found.predicted["tiny", "pgd2"][found.positions]).all()
    assert np.nanmean(details.per_class(found, np.ones(60))) == 1


def test_damaged_details_are_told(tmp_path):
    (tmp_path / details.FILE).write_bytes(b"garbled")
    with pytest.raises(UserError, match=r"details.npz is damaged"):
        details.read(tmp_path)


@pytest.mark.slow
def test_the_report_is_what_its_schema_says_and_the_schema_refuses_others(evaluated):
    _, values = evaluated
    validator = jsonschema.Draft202012Validator(evaluation_record.schema())
    validator.check_schema(evaluation_record.schema())
    values = json.loads(json.dumps(values))
    validator.validate(values)
    for name, value in (("schema", "robust_gan.evaluation/3"), ("threat", {"norm": "linf"}), ("more", 1)):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(values | {name: value})
    values["targets"]["tiny"]["clean_accuracy"] = 98.0
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(values)


@pytest.mark.slow
def test_the_images_of_the_file_are_what_stood_at_the_end(evaluated, tiny_run):
    folder, values = evaluated
    with np.load(folder / "adversarial.npz", allow_pickle=False) as file:
        images, labels = file["tiny"], file["labels"]
    right = np.argmax(np.asarray(checkpoint.load_classifier(tiny_run)(images)), -1) == labels
    assert right.mean() == values["targets"]["tiny"]["sequential"][-1]["robust_accuracy"]


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_report(evaluated, tiny_run, tmp_path):
    program = f"""
import sys
from robust_gan import evaluation
from robust_gan.reporting import run
save = evaluation.EvaluationState.save
count = 0
def slowly(kept):
    global count
    save(kept)
    count += 1
    if count == 7:
        print("saved", flush=True)
        import time; time.sleep(60)
evaluation.EvaluationState.save = slowly
evaluation.state.SECONDS = 0.0
config = evaluation.EvaluationConfig(
    [{str(tiny_run)!r}], output={str(tmp_path / "killed")!r}, attacks="fgsm,pgd2", sequential={SEQUENTIAL!r},
    num_examples=60, batch_size=16, progress=False,
)
run.run(config)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "saved\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed" / "report.json").exists()
    before = (tmp_path / "killed" / "scores.npz").stat().st_mtime_ns
    resumed = compare(tiny_run, tmp_path / "killed")
    whole = compare(tiny_run, tmp_path / "whole")
    assert timeless(resumed) == timeless(whole)
    assert (tmp_path / "killed" / "scores.npz").stat().st_mtime_ns > before
    assert timeless(whole)["targets"] == timeless(evaluated[1])["targets"] | {
        "tiny": timeless(evaluated[1])["targets"]["tiny"] | {"alarms": timeless(whole)["targets"]["tiny"]["alarms"]}
    }


@pytest.mark.slow
def test_the_same_again_attacks_nothing(evaluated, tiny_run, monkeypatch):
    folder, values = evaluated
    written = (folder / "scores.npz").read_bytes()
    monkeypatch.setattr(evaluation.sharded_model.ShardedModel, "craft", None)
    again = compare(tiny_run, folder, save_adversarial=True, batch_size=7, plots=["curve"])
    assert timeless(again)["targets"] == timeless(values)["targets"]
    assert (folder / "scores.npz").read_bytes() == written


@pytest.mark.slow
def test_another_evaluation_is_refused_the_folder_unless_told_to_overwrite(tiny_run, tmp_path, launch):
    compare(tiny_run, tmp_path / "report", sequential="")
    before = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"holds another evaluation \(of other threat, seed\): give another folder, or"):
        compare(tiny_run, tmp_path / "report", sequential="", seed=1, epsilon=0.1)
    flags = [f"--checkpoint={tiny_run}", f"--output={tmp_path}/report", "--attacks=fgsm,pgd2", "--num_examples=61"]
    ended = launch("evaluate", *flags)
    assert (ended.code, ended.out) == (2, "")
    assert "holds another evaluation (of other data)" in ended.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir() if path.is_file()} == before
    ended = launch("evaluate", *flags, "--overwrite")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "report" / "report.json").read_text())["data"]["count"] == 61


@pytest.mark.slow
def test_a_folder_whose_findings_are_damaged_is_told(tiny_run, tmp_path):
    compare(tiny_run, tmp_path / "report", sequential="")
    (tmp_path / "report" / folder_lib.STATE).write_bytes(b"garbled")
    with pytest.raises(UserError, match=r"scores.npz is damaged .* remove it, and the evaluation begins anew"):
        compare(tiny_run, tmp_path / "report", sequential="")


def test_a_card_holds_autoattack_where_it_was_made():
    results = [{"attack": name, "robust_accuracy": share} for name, share in
             (("clean", 0.9), ("apgd_ce", 0.5), ("apgd_t", 0.45), ("fab_t", 0.45), ("square", 0.444))]  # fmt: skip
    target = {"sequential": results, "clean_accuracy": 0.9, "worst_case": {"all": 0.44}, "alarms": []}
    values = {
        "models": {"a": {"function": "m:f"}}, "targets": {"a": target}, "threat": {"norm": "l2", "epsilon": 0.5},
        "data": {"name": "digits", "split": "test", "count": 100},
    }  # fmt: skip
    assert evaluation_record.card(values, "a")["autoattack_acc"] == "44.4"
    assert evaluation_record.card(values, "a")["best_known_robust_acc"] == "44.0"
    assert evaluation_record.card(values, "a")["confidence_intervals"]["clean_acc"] == ["82.6", "94.5"]


def test_a_curve_ends_where_nothing_stands_and_a_rising_one_is_an_alarm():
    weights = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    model = evaluation.Model("a", lambda x: x.reshape(len(x), -1) @ weights)
    images = np.random.default_rng(1).integers(0, 256, (200, 4, 4, 1), np.uint8)
    labels = np.argmax(model.logits_fn(evaluation.to_unit(images)), -1).astype(np.int32)
    curve = evaluation.trace_curve([model], images, labels, LinfThreat(0.05), attack="pgd10")
    row = curve.robust_accuracy["a"]
    assert row[0] == 1.0
    assert list(row) == sorted(row, reverse=True)
    assert row[-1] == 0.0 < row[-2]
    assert not alarms.check_curve(curve, "a", 200)[0].fired
    assert alarms.check_curve(Curve("pgd10", (0, 0.1, 0.2), {"a": (0.9, 0.3, 0.4)}), "a", 200)[0].fired


MODEL = """
import jax.numpy as jnp, numpy as np
W = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
def classifier():
    return lambda x: (x.reshape(len(x), -1) - 0.5) @ W
def rounded():
    return lambda x: (jnp.round(x * 255) / 255 - 0.5).reshape(len(x), -1) @ W
"""


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """Evaluates a model of one name, which may be mended between two calls."""
    (tmp_path / "brought_model.py").write_text(MODEL)
    images = np.random.default_rng(1).integers(0, 256, (24, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(24) % 3)
    monkeypatch.chdir(tmp_path)

    def run(**settings):
        given = {"attacks": "fgsm", "sequential": "pgd2", "epsilon": 0.1, "progress": False, **settings}
        return run_lib.run(
            EvaluationConfig(models=["brought_model:classifier"], data="data.npz", output="out", **given)
        )[1]

    return run


@pytest.mark.slow
def test_a_mended_model_is_another_and_overwrite_leaves_nothing_of_the_one_before(brought, tmp_path, monkeypatch):
    sys.modules.pop("brought_model", None)
    (tmp_path / "brought_model.py").write_text(
        MODEL.replace("def classifier", "def c").replace("rounded", "classifier")
    )
    masked = brought(save_adversarial=True)
    sys.modules.pop("brought_model", None)
    (tmp_path / "brought_model.py").write_text(MODEL)
    with pytest.raises(UserError, match="holds an evaluation of another brought_model:classifier: give another folder"):
        brought(save_adversarial=True)
    with pytest.raises(UserError, match="holds another evaluation"):
        brought()
    (tmp_path / "out" / "scores.npz").write_bytes(b"garbled")
    mended = brought(overwrite=True)
    name = "brought_model:classifier"
    accuracies = [values["targets"][name]["robust_accuracy"]["fgsm"][name] for values in (masked, mended)]
    assert accuracies[0] > accuracies[1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".lock", "scores.npz", "details.npz", "report.json", "report.md", "cards",
    }  # fmt: skip


@pytest.mark.slow
def test_saved_images_of_sequential_attacks_are_the_examples(brought, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (24, 4, 4, 1), np.uint8)
    weights = np.random.default_rng(0).normal(size=(16, 3))
    labels = np.argmax((evaluation.to_unit(images).reshape(24, -1) - 0.5) @ weights, -1)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    brought(attacks="clean", save_adversarial=True)
    found = details.read(tmp_path / "out")
    name = "brought_model:classifier"
    assert found.attack == details.SEQUENTIAL
    logits = sys.modules["brought_model"].classifier()(found.adversarial[name])
    assert (np.argmax(logits, -1) == found.predicted[name, details.SEQUENTIAL][found.positions]).all()
    assert 0 < np.abs(found.adversarial[name] - found.images).max() <= 0.1 + 1e-6


@pytest.mark.slow
def test_the_record_is_that_of_the_run_that_attacked(brought, monkeypatch):
    first = brought()
    again = brought(batch_size=7)
    assert again == first
    monkeypatch.setattr(evaluation.state, "__version__", "9.9")
    with pytest.raises(
        UserError, match=r"holds an evaluation of another version \(robust_gan 0\..*this is robust_gan 9"
    ):
        brought()


@pytest.mark.packaging
def test_a_folder_is_one_processs_at_a_time(tmp_path):
    program = f"""
from etils import epath
from robust_gan.reporting import folder
with folder.lock(epath.Path({str(tmp_path / "out")!r})):
    print("held", flush=True)
    input()
"""
    folder = folder_lib.check(tmp_path / "out")
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:  # fmt: skip
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=r"another process evaluates in .*out: wait for it"),
            folder_lib.lock(folder),
        ):
            pass
        process.communicate("\n")
    with folder_lib.lock(folder):
        pass

"""Several threat models in one evaluation: each as if it were alone, joined by image."""

import json

import jax
import numpy as np
import pytest
from attack_problems import images_between, linear, predicted

import robust_gan as rg
from robust_gan import evaluation
from robust_gan.errors import UserError
from robust_gan.evaluation import EvaluationConfig, alarms
from robust_gan.evaluation.sharded_model import ShardedModel
from robust_gan.reporting import html, threats
from robust_gan.reporting import run as run_lib

IMAGES = np.asarray(images_between(0.3, 0.7, count=12))
LABELS = np.asarray(predicted(linear, IMAGES))
PAIRS = {"norm": "linf,l2", "epsilon": "25/255,0.4"}


def test_norms_and_radii_pair():
    def pairs(**given):
        return [(part.norm, part.epsilon) for part in EvaluationConfig(**given).per_threat()]

    assert pairs() == [("", None)]
    assert pairs(epsilon=0.1) == pairs(epsilon="0.1") == pairs(epsilon=(0.1,)) == [("", 0.1)]
    assert pairs(**PAIRS) == [("linf", 25 / 255), ("l2", 0.4)]
    assert pairs(norm=("linf", "l2"), epsilon=0.1) == [("linf", 0.1), ("l2", 0.1)]
    assert pairs(norm="l2", epsilon=[0.1, 1]) == [("l2", 0.1), ("l2", 1.0)]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"norm": "linf,l2,linf", "epsilon": "0.1,0.2"}, "3 norms and 2 radii do not pair: give as many --norm"),
        ({"norm": "linf,l2"}, "--epsilon is missing: radii of two norms differ"),
        ({"norm": "linf", "epsilon": "8/255,0.03137255"}, "the threat model linf epsilon 0.0313725 is given twice"),
        ({"norm": "linf,l1"}, "the norm must be one of linf, l2, not 'l1'"),
        ({"epsilon": "0.1,big"}, "epsilon must be a number, or several, such as 4/255,8/255, not '0.1,big'"),
        ({"epsilon": "1/0"}, "epsilon must be a number"),
        ({"epsilon": "0.1,0.2", "adversarial": "theirs.npz"}, "--adversarial has images of one threat model"),
    ],
)
def test_threat_models_that_cannot_be_meant_are_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        EvaluationConfig(**given)


@pytest.mark.slow
def test_each_threat_model_is_evaluated_as_if_alone(monkeypatch):
    monkeypatch.setattr(alarms, "_STEPS", 2)
    given = {"attacks": "fgsm", "sequential": "apgd_ce4", "batch_size": 5}
    config = EvaluationConfig(**PAIRS, **given)
    results = evaluation.evaluate_threats({"m": linear}, (IMAGES, LABELS), config)
    for result, part in zip(results, config.per_threat(), strict=True):
        alone = rg.evaluate({"m": linear}, (IMAGES, LABELS), part)
        np.testing.assert_array_equal(alone.robust("m"), result.robust("m"))
        np.testing.assert_array_equal(alone.scores.robust["m", "m", "fgsm"], result.scores.robust["m", "m", "fgsm"])
        assert 0 < result.robust_accuracy("m") < 1
    values = threats.record(results)
    union = np.mean(results[0].robust("m") & results[1].robust("m"))
    assert values["targets"]["m"]["worst case, white box"] == {
        "accuracy": [result.robust_accuracy("m") for result in results],
        "all": union,
    }
    with pytest.raises(UserError, match=r"one norm and one epsilon are expected here: .* evaluation.evaluate_threats"):
        rg.evaluate({"m": linear}, (IMAGES, LABELS), config)
    config = EvaluationConfig(norm="l2", epsilon="0.1,0.2", certify="ibp")
    with pytest.raises(UserError, match="--certify=ibp covers the norm linf, but the evaluation has l2"):
        evaluation.evaluate_threats({"m": linear}, (IMAGES, LABELS), config)


@pytest.mark.slow
def test_the_reports_of_threat_models_are_resumed_and_joined(tmp_path, monkeypatch, own_model):
    monkeypatch.setattr(alarms, "_STEPS", 2)
    config = EvaluationConfig(
        **own_model(lambda: linear, IMAGES, LABELS), output=tmp_path / "out", attacks="fgsm", sequential="apgd_ce4",
        progress=False, save_adversarial=True, require="fgsm>=0.999", **PAIRS,
    )  # fmt: skip
    made, found = run_lib.run_threats(config, devices=jax.devices()[:1])
    joined = json.loads((tmp_path / "out" / threats.RECORD).read_text())
    assert joined == json.loads(json.dumps(found))
    assert found == threats.record([result for result, _ in made])
    for threat, (_, values) in zip(joined["threats"], made, strict=True):
        folder = tmp_path / "out" / threat["folder"]
        assert json.loads((folder / "report.json").read_text())["threat"]["epsilon"] == threat["epsilon"]
        assert (folder / "adversarial.npz").exists()
        assert [row["is_met"] for row in values["requirements"]] == [False]
    monkeypatch.setattr(ShardedModel, "craft", None)
    _, again = run_lib.run_threats(config, devices=jax.devices()[:1])
    assert again == found
    page = html.write([tmp_path / "out"], tmp_path / "page.html", tmp_path / "csv").read_text()
    assert page.count("all threat models") == 1
    first = min((tmp_path / "csv").iterdir()).read_text().splitlines()
    assert first[0].startswith("model,attack,linf epsilon 0.09804,")
    assert "l2 epsilon 0.4," in first[0]

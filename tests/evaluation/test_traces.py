"""The steps of an attack in the report."""

import json

import jax
import jsonschema
import numpy as np
import pytest
from attack_problems import images_between, linear, predicted

from robust_gan import LinfThreat, attacks, prng
from robust_gan.evaluation import EvaluationConfig, Model, alarms
from robust_gan.evaluation.sharded_model import attack_key, shard_models
from robust_gan.evaluation.traces import trace_steps
from robust_gan.reporting import evaluation_record, html
from robust_gan.reporting import run as run_lib

IMAGES = np.asarray(images_between(0.3, 0.7, count=12))
LABELS = np.asarray(predicted(linear, IMAGES))
THREAT = LinfThreat(0.05)


@pytest.mark.parametrize(
    ("attack", "traced"), [("apgd_ce5", "apgd_ce5"), ("pgd3x2", "pgd40"), ("square5", "pgd40"), ("pgd4", "pgd4")]
)
def test_the_steps_are_those_of_the_attack(attack, traced):
    models = shard_models([Model("m", linear)], IMAGES, LABELS, jax.devices()[:1])
    found = trace_steps(models, IMAGES, LABELS, THREAT, attack=attack)
    assert (found["attack"], found["images"]) == (traced, 12)
    keys = prng.keys_at(attack_key(traced, 0), np.arange(12, dtype=np.int32))
    steps = attacks.trace(attacks.by_name(traced), linear, keys, IMAGES, LABELS, THREAT)
    rows = found["models"]["m"]
    np.testing.assert_allclose(rows["loss"], steps.losses.mean(1), rtol=1e-5)
    np.testing.assert_allclose(rows["best_loss"], steps.best_losses.mean(1), rtol=1e-5)
    np.testing.assert_allclose(rows["misclassified"], steps.fooled.mean(1), rtol=1e-5)
    assert 0 < rows["misclassified"][-1] < 1


def test_the_report_has_the_steps_and_draws_them(tmp_path, monkeypatch, own_model):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(alarms, "_STEPS", 2)
    config = EvaluationConfig(
        **own_model(lambda: linear, IMAGES, LABELS), output=tmp_path / "out", attacks="pgd3", epsilon=0.05,
        progress=False, plots="trace",
    )  # fmt: skip
    _, values = run_lib.run(config, devices=jax.devices()[:1])
    assert (values["traces"]["attack"], values["notes"]) == ("pgd3", [])
    assert (tmp_path / "out" / evaluation_record.TRACE).stat().st_size > 1000
    jsonschema.validate(
        json.loads((tmp_path / "out" / evaluation_record.RECORD).read_text()), evaluation_record.schema()
    )
    page = html.write([tmp_path / "out"], tmp_path / "page.html").read_text()
    assert "Steps of pgd3, means of 12 images" in page

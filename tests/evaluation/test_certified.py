"""Certification within an evaluation."""

import json

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

from robust_gan import certification, evaluation
from robust_gan.errors import CertificateError, UserError
from robust_gan.evaluation import EvaluationConfig, evaluate
from robust_gan.reporting import evaluation_record, evaluation_report, html
from robust_gan.reporting.run import additions

IMAGES = np.linspace(0, 1, 9, dtype=np.float32).reshape(9, 1, 1, 1)
LABELS = (IMAGES[:, 0, 0, 0] < 0.5).astype(np.int32)


def dark(x):
    """Says 1 for dark images, with a margin of twice the distance from 1/2."""
    value = x.mean((1, 2, 3))
    return jnp.stack([jax.nn.relu(value), jax.nn.relu(1 - value)], -1)


def run(**settings):
    config = EvaluationConfig(epsilon=0.2, attacks="fgsm", sequential="pgd5,square50", certify="ibp", **settings)
    return evaluate({"dark": dark}, (IMAGES, LABELS), config)


def test_certified_images_are_robust_and_not_attacked_again():
    result = run()
    # The affine part is exact, and nowhere on these intervals does a ReLU change its side.
    np.testing.assert_array_equal(result.certified["dark"], np.abs(IMAGES[:, 0, 0, 0] - 0.5) > 0.2)
    clean, pgd, square = result.sequential["dark"].attacks
    assert clean.attacked == 9
    assert pgd.attacked == 9 - result.certified["dark"].sum() - (1 - clean.robust_accuracy) * 9
    assert square.attacked == 0
    assert result.robust_accuracy("dark") == pytest.approx(result.certified["dark"].mean())
    values = additions.record(result, [evaluation_record.made_with(9, 1)])
    assert evaluation_record.bracket(values["targets"]["dark"]) == [pytest.approx(6 / 9), pytest.approx(6 / 9)]
    assert "66.7" in evaluation_report.certification(values)
    json.dumps(values)


@pytest.mark.slow
def test_the_result_is_the_same_without_skipping():
    config = EvaluationConfig(epsilon=0.2, attacks="fgsm", sequential="pgd5,square50")
    plain = evaluate({"dark": dark}, (IMAGES, LABELS), config)
    np.testing.assert_array_equal(plain.sequential["dark"].robust, run().sequential["dark"].robust)
    assert plain.certified == {}
    assert evaluation_report.certification(additions.record(plain, [evaluation_record.made_with(9, 1)])) == ""


def test_an_attack_that_breaks_a_certified_image_stops_the_evaluation(monkeypatch):
    monkeypatch.setattr(certification, "certify", lambda fn, images, *_, method: jnp.ones(len(images), bool))
    with pytest.raises(CertificateError, match="image 3 is certified for dark, but fgsm made on dark breaks it"):
        run(seed=1)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"certify": "milp"}, "the methods of --certify are ibp, crown_ibp, crown, smoothing, not 'milp'"),
        ({"certify": "ibp", "norm": "l2"}, "--certify=ibp covers the norm linf, but the evaluation has l2"),
        ({"certify": "smoothing"}, "--certify=smoothing covers the norm l2, but the evaluation has linf"),
        ({"certify": "smoothing", "norm": "l2", "smoothing_sigma": 0.0}, "must be above 0, not 0.0"),
        ({"certify": "smoothing", "norm": "l2", "smoothing_samples": 0}, "needs at least 1 sample"),
    ],
)
def test_what_cannot_be_certified_is_refused(settings, sentence):
    config = EvaluationConfig(epsilon=0.2, attacks="fgsm", **settings)
    with pytest.raises(UserError, match=sentence):
        evaluate({"dark": dark}, (IMAGES, LABELS), config)


def test_a_model_without_bounds_is_refused_before_it_is_attacked():
    def model(x):
        return jnp.sin(x.mean((1, 2))) @ jnp.ones((1, 2))

    with pytest.raises(UserError, match="no interval rule for the operation 'sin'"):
        evaluate({"m": model}, (IMAGES, LABELS), EvaluationConfig(epsilon=0.2, attacks="fgsm", certify="ibp"))


def test_a_certified_image_is_not_misclassified_by_any_attack():
    # A network of random weights, small enough to certify a part of its own predictions.
    weights = jax.random.normal(jax.random.key(0), (16, 8)) / 4, jax.random.normal(jax.random.key(1), (8, 3))

    def model(x):
        return jax.nn.relu(x.reshape(len(x), -1) @ weights[0]) @ weights[1]

    images = np.asarray(jax.random.uniform(jax.random.key(2), (40, 4, 4, 1)))
    labels = np.asarray(model(images).argmax(-1), np.int32)
    config = EvaluationConfig(epsilon=0.05, attacks="fgsm,pgd20,square200", sequential="apgd_ce", certify="ibp,crown")
    result = evaluate({"m": model}, (images, labels), config)  # Raises where an attack breaks a certified image.
    assert 0 < result.certified["m"].mean() < 1
    state = evaluation.EvaluationState()
    assert (
        evaluate({"m": model}, (images, labels), config, state=state).robust_accuracy("m")
        >= result.certified["m"].mean()
    )


def smoothed(**settings):
    config = EvaluationConfig(
        epsilon=0.1, norm="l2", attacks="fgsm", sequential="pgd5", certify="smoothing", smoothing_sigma=0.2,
        smoothing_samples=300, **{"batch_size": 4, **settings},
    )  # fmt: skip
    return lambda **given: evaluate({"dark": dark}, (IMAGES, LABELS), config, **given)


def test_the_smoothed_classifier_has_columns_of_its_own(tmp_path):
    result = smoothed()()
    found, distance = result.smoothed["dark"], np.abs(IMAGES[:, 0, 0, 0] - 0.5)
    # The radius of a classifier of one pixel is at most the distance from its boundary.
    assert (found.radius <= distance + 1e-6).all()
    np.testing.assert_array_equal(found.radius > 0.1, distance > 0.2)
    assert result.certified == {}
    assert [attack.attacked for attack in result.sequential["dark"].attacks] == [9, 9]  # No image is left out.
    values = additions.record(result, [evaluation_record.made_with(9, 1)])
    jsonschema.validate(json.loads(json.dumps(values)), evaluation_record.schema())
    assert values["targets"]["dark"]["smoothed"] == {
        "clean_accuracy": pytest.approx(8 / 9), "certified_accuracy": pytest.approx(6 / 9),
        "abstained": pytest.approx(1 / 9),
    }  # fmt: skip
    assert evaluation_report.certification(values) == ""
    assert evaluation_record.card(values, "dark")["smoothed_certified"] == "66.7"
    evaluation_report.write(tmp_path, result.scores, values)
    assert "sigma 0.2, 300 samples, alpha 0.001" in (tmp_path / evaluation_record.TABLES).read_text()
    html.write([tmp_path], tmp_path / "page.html", tmp_path / "csv")
    assert any("smoothed abstained, sigma 0.2" in file.read_text() for file in (tmp_path / "csv").iterdir())


def test_the_smoothed_classifier_does_not_depend_on_batches_and_stops():
    whole, state = smoothed(batch_size=9)(), evaluation.EvaluationState()
    parts = smoothed()(state=state)
    for first, second in zip(whole.smoothed["dark"], parts.smoothed["dark"], strict=True):
        np.testing.assert_array_equal(first, second)
    assert (smoothed(seed=1)().smoothed["dark"].radius != whole.smoothed["dark"].radius).any()

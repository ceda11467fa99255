"""Common corruptions: what each does to an image, and the accuracy under them."""

import colorsys

import numpy as np
import pytest
from attack_problems import images_between, linear, predicted

import robust_gan as rg
from robust_gan.errors import UserError
from robust_gan.evaluation import EvaluationConfig, EvaluationState, alarms
from robust_gan.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from robust_gan.evaluation.sharded_model import ShardedModel
from robust_gan.reporting import evaluation_report

IMAGES = np.asarray(images_between(0.3, 0.7, count=12))
LABELS = np.asarray(predicted(linear, IMAGES))
COLOUR = np.random.default_rng(0).random((3, 9, 12, 3)).astype(np.float32)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 12, 3), (1, 1, 1), (70, 65, 3)])
def test_an_image_depends_on_seed_and_position_alone_and_worsens_with_severity(name, shape):
    images = np.random.default_rng(1).random((3, *shape)).astype(np.float32)
    found = {severity: corrupt(images, name, severity) for severity in SEVERITIES}
    for corrupted in found.values():
        assert corrupted.shape == images.shape
        assert corrupted.dtype == np.float32
        assert corrupted.min() >= 0
        assert corrupted.max() <= 1
    np.testing.assert_array_equal(corrupt(images[1:2], name, 3, positions=[1]), found[3][1:2])
    if min(shape[:2]) > 1:
        sizes = [np.abs(found[severity] - images).mean() for severity in (1, 3, 5)]
        assert 0 < sizes[0] < sizes[1] < sizes[2]
        others = [corrupt(images, name, 3, seed=1), corrupt(images, name, 3, positions=[3, 4, 5])]
        for other in others:
            assert np.array_equal(other, found[3]) == ("noise" not in name)


def test_corruptions_against_their_definitions():
    noise = corrupt(np.full((1, 50, 50, 1), 0.5), "gaussian_noise", 5) - 0.5
    assert noise.std() == pytest.approx(0.1, rel=0.1)
    photons = corrupt(np.full((1, 50, 50, 1), 0.5), "shot_noise", 5) - 0.5
    assert photons.std() == pytest.approx((0.5 / 50) ** 0.5, rel=0.1)
    impulses = corrupt(np.full((1, 50, 50, 1), 0.5), "impulse_noise", 5)
    assert [np.mean(impulses == value) for value in (0, 1)] == pytest.approx([0.035, 0.035], abs=0.015)
    contrast = corrupt(COLOUR, "contrast", 5)
    np.testing.assert_allclose(contrast.mean((1, 2)), COLOUR.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(contrast.std((1, 2)), 0.15 * COLOUR.std((1, 2)), atol=1e-6)
    for pixel, brighter in zip(
        COLOUR[0].reshape(-1, 3), corrupt(COLOUR, "brightness", 5)[0].reshape(-1, 3), strict=True
    ):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixel))
        np.testing.assert_allclose(brighter, colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3)), atol=1e-6)
    blurred = corrupt(np.eye(9)[None, :, :, None], "gaussian_blur", 5)[0, :, :, 0]
    np.testing.assert_allclose(blurred, blurred.T, atol=1e-6)
    assert blurred[4, 4] == pytest.approx(1 / (2 * np.pi**0.5), rel=0.01)  # Of a line, sigma 1 pixel.
    half = corrupt(np.kron(np.eye(32), np.ones((2, 2)))[None, :, :, None], "pixelate", 4)[0, ::2, ::2, 0]
    assert half.shape == (32, 32)
    assert len(np.unique(half)) > 2


def test_accuracies_do_not_depend_on_the_batch_size_and_stay_out_of_the_worst_case(monkeypatch):
    monkeypatch.setattr(alarms, "_STEPS", 2)
    given = {"suite": "corruptions", "epsilon": 0.05, "require": "corruptions>=0.1,clean>=1"}
    state = EvaluationState()
    results = [
        rg.evaluate({"m": linear}, (IMAGES, LABELS), EvaluationConfig(batch_size=size, **given), state=state)
        for size, state in ((12, state), (5, None))
    ]
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            expected = np.asarray(predicted(linear, corrupt(IMAGES, name, severity))) == LABELS
            for result in results:
                np.testing.assert_array_equal(result.corrupted["m"][name][severity - 1], expected)
    first = results[0]
    mean = np.mean([correct.mean() for correct in first.corrupted["m"].values()])
    assert 0 < mean < 1
    assert [(row.found, row.is_met) for row in first.requirements()] == [(mean, True), (1.0, True)]
    assert first.robust_accuracy("m") == first.clean_accuracy("m") == 1
    monkeypatch.setattr(ShardedModel, "score", None)
    again = rg.evaluate({"m": linear}, (IMAGES, LABELS), EvaluationConfig(batch_size=12, **given), state=state)
    np.testing.assert_array_equal(again.corrupted["m"]["jpeg"], first.corrupted["m"]["jpeg"])


def test_the_table_has_means_over_severities_and_corruptions():
    rows = {"jpeg": {"accuracy": [1, 1, 1, 1, 0.5], "mean": 0.9}, "contrast": {"accuracy": [0.5] * 5, "mean": 0.5}}
    table = evaluation_report.corruptions({"data": {"count": 10}, "targets": {"a": {"corruptions": rows}, "b": {}}})
    assert table.rows[-1] == ["a", "mean", "75.0", "75.0", "75.0", "75.0", "50.0", "70.0"]
    assert len(table.rows) == 3


def test_images_and_threat_models_that_do_not_fit_are_refused():
    config = EvaluationConfig(suite="corruptions", epsilon=0.05)
    with pytest.raises(
        UserError, match="--suite=corruptions takes grey images or colour ones, of 1 or 3 channels, not"
    ):
        rg.evaluate({"m": lambda x: x.sum((1, 2))}, (np.zeros((2, 4, 4, 2), np.float32), np.zeros(2, int)), config)
    with pytest.raises(UserError, match="--suite=corruptions has no threat model: give one norm and one epsilon"):
        EvaluationConfig(suite="corruptions", epsilon=(0.05, 0.1))

"""The one-liner of AutoAttack, and accuracies that an evaluation must reach."""

import json

import numpy as np
import pytest
from attack_problems import THREATS, assert_inside, images_between, linear, predicted

import robust_gan as rg
from robust_gan import attacks, cli, evaluation
from robust_gan.errors import UserError
from robust_gan.evaluation.requirements import parse_requirements

IMAGES = np.asarray(images_between(0.3, 0.7, count=16))
LABELS = np.asarray(predicted(linear, IMAGES))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_in_one_call(norm, monkeypatch):
    parts = ("fgsm", "square20")
    monkeypatch.setattr(attacks, "autoattack", lambda version: tuple((name, attacks.by_name(name)) for name in parts))
    epsilon = {"linf": 0.1, "l2": 0.4}[norm]
    adversarial, result = rg.autoattack(linear, IMAGES, LABELS, epsilon, norm=norm, batch_size=5)
    assert_inside(adversarial, IMAGES, norm, epsilon)
    np.testing.assert_array_equal(np.asarray(predicted(linear, adversarial)) == LABELS, result.robust)
    np.testing.assert_array_equal(adversarial[result.robust], IMAGES[result.robust])
    robust, _ = evaluation.evaluate_sequential(
        evaluation.Model("m", linear), IMAGES, LABELS, THREATS[norm](epsilon), attacks=parts
    )
    np.testing.assert_array_equal(result.robust, robust)
    assert 0 < result.robust_accuracy < 1
    first, *_, size, last = str(result).splitlines()
    assert first == "initial accuracy: 100.00%"
    assert last == f"robust accuracy: {100 * robust.mean():.2f}%"
    assert size.startswith(f"max {norm.capitalize()} perturbation: {epsilon:.5f}")


def test_accuracies_that_are_not_measured_are_refused():
    standard = attacks.VERSIONS["standard"]
    found = parse_requirements("autoattack>=0.45, fgsm >= 0.5,worst_case>=0", ["fgsm"], standard)
    assert [tuple(part)[:2] for part in found] == [("autoattack", 0.45), ("fgsm", 0.5), ("worst_case", 0.0)]
    for text in ("autoattack>=0.4", "square>=0.4"):
        with pytest.raises(UserError, match=f"names {text[:-5]}, which this evaluation does not measure"):
            parse_requirements(text, ["fgsm"], ["apgd_ce"])
    for text in ("clean", "clean>0.5", "clean>=", "clean>=45", "clean>=nan", ">=0.5", "clean>=half"):
        with pytest.raises(UserError, match="--require is no comparison"):
            parse_requirements(text, [], [])


def test_requirements_are_met_or_missed_by_the_figures_of_the_evaluation():
    config = evaluation.EvaluationConfig(
        epsilon=0.1, attacks="fgsm", sequential="square5", require="clean>=1,fgsm>=0.999,worst_case>=0.001,square5>=0"
    )
    result = rg.evaluate({"m": linear}, (IMAGES, LABELS), config)
    clean, fgsm, worst, square = result.requirements()
    assert [part.is_met for part in (clean, fgsm, worst, square)] == [True, False, True, True]
    assert fgsm.found == result.scores.robust_accuracy("m", ["m"], ["fgsm"])
    assert worst.found == result.robust_accuracy("m")
    assert square.found == result.sequential["m"].attacks[-1].robust_accuracy
    assert str(fgsm) == f"fgsm of m is {fgsm.found:.4f}, below what is required (at least 0.999)"


@pytest.mark.slow
def test_a_missed_requirement_is_exit_code_3(tmp_path, tiny_run, launch):
    arguments = [f"--checkpoint={tiny_run}", "--attacks=fgsm", "--num_examples=20", f"--output={tmp_path / 'out'}"]
    ended = launch("evaluate", *arguments, "--require=clean>=0")
    assert ended.code == 0
    ended = launch("evaluate", *arguments, "--require=clean>=0,fgsm>=1")
    assert ended.code == cli.MISSED
    assert "error: fgsm of " in ended.err
    (clean, fgsm) = json.loads((tmp_path / "out" / "report.json").read_text())["requirements"]
    assert clean["is_met"]
    assert not fgsm["is_met"]

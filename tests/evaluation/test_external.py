"""Adversarial images of another program: checked, scored, and joined into the worst case."""

import jax
import numpy as np
import pytest
from attack_problems import KEY, images_between, linear, predicted

from robust_gan import LinfThreat, attacks, evaluation
from robust_gan.errors import DataError
from robust_gan.evaluation.external import ExternalImages, check_external, load_external
from robust_gan.evaluation.sharded_model import shard_models
from robust_gan.evaluation.state import EvaluationState

IMAGES = np.asarray(images_between(0.3, 0.7, count=12))
LABELS = np.asarray(predicted(linear, IMAGES))
THREAT = LinfThreat(0.1)
FGSM = np.asarray(attacks.fgsm(linear, KEY, IMAGES, LABELS, THREAT))


def test_images_of_a_file_are_an_attack(tmp_path):
    np.savez(tmp_path / "theirs.npz", images=FGSM, labels=LABELS)
    external = load_external(str(tmp_path / "theirs.npz"))
    check_external(external, IMAGES, LABELS, THREAT)
    model = evaluation.Model("m", linear)
    scores = evaluation.evaluate_transfer([model], IMAGES, LABELS, THREAT, attacks=[("theirs", external)], batch_size=5)
    expected = np.asarray(predicted(linear, FGSM)) == LABELS
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(scores.robust["m", "m", "theirs"], expected)
    assert scores.robust_accuracy("m", ["m"]) == expected.mean()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"images": IMAGES[:-1]}, r"have shape \(11, 4, 4, 1\), but \(12, 4, 4, 1\) are evaluated"),
        ({"images": IMAGES[::-1]}, r"leaves the ball: a perturbation has size .* made from the evaluated ones"),
        ({"images": IMAGES + 0.11}, r"leaves the ball: a perturbation has size 0.11, and epsilon is 0.1"),
        ({"images": 255 * IMAGES}, r"leaves the range of pixels \[0, 1\]"),
        ({"labels": (LABELS + 1) % 5}, "the labels of theirs.npz are not those of the evaluated images"),
    ],
)
def test_images_that_are_not_of_the_evaluated_ones_are_refused(changed, sentence):
    external = ExternalImages("theirs.npz", FGSM, LABELS)._replace(**changed)
    with pytest.raises(DataError, match=sentence):
        check_external(external, IMAGES, LABELS, THREAT)


def test_files_without_images_are_refused(tmp_path):
    for name, arrays, sentence in (
        ("a.npz", {"labels": LABELS}, "lacks the array images: it has labels"),
        ("b.npz", {"images": LABELS}, "are int32: give floats"),
    ):
        np.savez(tmp_path / name, **arrays)
        with pytest.raises(DataError, match=sentence):
            load_external(str(tmp_path / name))
    (tmp_path / "c.npz").write_text("no zip")
    with pytest.raises(DataError, match=r"is no .npz of plain arrays"):
        load_external(str(tmp_path / "c.npz"))


def test_other_images_are_another_evaluation():
    model, state, devices = evaluation.Model("m", linear), EvaluationState(), jax.devices()[:1]
    for made, differs in ((FGSM, ""), (FGSM, ""), (IMAGES, "another theirs")):
        functions = {"theirs": ExternalImages("theirs.npz", made, None)}
        models = shard_models([model], IMAGES, LABELS, devices, functions)
        found = state.differs(models, IMAGES, LABELS, THREAT, 0, attacks=["theirs"], batch_size=5, devices=devices)
        assert found == differs

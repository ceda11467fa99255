"""No attack breaks an image that is certified, on the shipped models."""

import jax
import numpy as np
import pytest

from robust_gan import LinfThreat, certification, data, zoo
from robust_gan.config import DataConfig
from robust_gan.evaluation import Model, evaluate_sequential

ATTACKS = ["fgsm", "pgd40", "apgd_ce", "fab_t", "square300"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epsilon"), [("digits/ibp", 0.15), ("digits/pgd", 0.0005)])
def test_no_attack_breaks_a_certified_image(name, epsilon):
    split = data.load_split(DataConfig(name="digits", validation_size=0), "test", count=20)
    images, labels = np.asarray(split.images, np.float32) / 255, np.asarray(split.labels, np.int32)
    logits_fn, threat = zoo.load(name), LinfThreat(epsilon)
    certified = np.asarray(
        jax.jit(lambda x, y: certification.certify(logits_fn, x, y, threat, method="crown_ibp"))(images, labels)
    )
    assert certified.any()
    # Each attack on all certified images: none leaves one out.
    robust, results = evaluate_sequential(
        Model(name, logits_fn), images[certified], labels[certified], threat, attacks=ATTACKS
    )
    assert robust.all(), [result.attack for result in results if result.broken]
    assert all(result.attacked == certified.sum() for result in results)

"""A dry run estimates a run and writes nothing."""

import re

import pytest

from robust_gan import networks, parallel
from robust_gan.config import AdversaryConfig, Config, DataConfig, GeneratorConfig, ValidationConfig
from robust_gan.networks import inference
from robust_gan.training import dry_run


@pytest.fixture(autouse=True)
def tiny(tiny_networks, monkeypatch):
    """The networks that play, and the same as they evaluate."""
    for name in ("build_classifier", "build_generator"):
        monkeypatch.setattr(inference, name, getattr(networks, name))
    monkeypatch.setattr(dry_run, "_MAX_SECONDS", 0.1)
    for cached in (inference.classify, inference.generate):
        cached.cache_clear()
    yield
    for cached in (inference.classify, inference.generate):
        cached.cache_clear()


@pytest.mark.slow
def test_dry_run_measures_this_run():
    num_devices = 2
    config = Config(
        data=DataConfig(validation_size=32, train_size=64),
        adversary=AdversaryConfig(generator=GeneratorConfig(steps=1, inputs=("gradient",))),
        validation=ValidationConfig(every=30, batch_size=16, pgd_steps=1),
        batch_size=8,
        num_steps=100,
    )
    found = dry_run.measure(config, parallel.find_devices(num_devices=num_devices))
    classifier, generator = found.players
    assert (classifier.input_shape, classifier.output_shape) == ((8 // num_devices, 8, 8, 1), (8 // num_devices, 10))
    assert (generator.input_shape, generator.output_shape) == ((8 // num_devices, 8, 8, 2), (8 // num_devices, 8, 8, 1))
    parameters = 3 * 3 * 1 * 4 + 2 * 4 + 4 * 10 + 10
    assert networks.count_params(classifier.params) == parameters
    assert (found.num_validations, found.num_steps, found.sizes) == (4, 100, (64, 32, 360))
    assert found.memory["training images, once for all devices"] == 64 * (64 + 4)
    assert found.memory["temporary arrays of a step"] > 0
    assert found.seconds > 100 * found.step_seconds > 0
    text = dry_run.format_dry_run(found)
    assert re.search(r"\| Dense_0 +\| bias \[10\], kernel \[4, 10\] +\| +50 \|", text)
    assert f"[4, 10], {parameters} parameters" in text
    assert "batches of 8, 4 on each of 2 devices" in text
    assert re.search(r"100 steps of .* ms, 4 validations of .* s: about \d+ (s|min|h)", text)


def test_a_dry_run_writes_nothing_and_reports_mistakes(launch, tmp_path):
    flags = ["--config=configs/digits.py:none", "--config.validation.pgd_steps=1", "--config.data.train_size=64",
             "--num_devices=1", "--dry_run"]  # fmt: skip
    ended = launch("train", *flags, f"--workdir={tmp_path}/run")
    assert ended.code == 0, ended.err
    assert "classifier digits_cnn: [64, 8, 8, 1] -> [64, 10]" in ended.out
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    ended = launch("train", *flags, f"--workdir={tmp_path}/file")
    assert (ended.code, ended.out) == (2, "")
    assert "is a file" in ended.err
    ended = launch("train", *flags, "--config.data.validation_size=5000")
    assert (ended.code, ended.out) == (2, "")

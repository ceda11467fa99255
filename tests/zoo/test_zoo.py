"""The shipped models: each loads, is as accurate as its card says, and is named in one sentence where it is missing."""

import json
import pathlib
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import attacks, checkpoint, data, prng, threat_model, zoo
from robust_gan.checkpoint import exported
from robust_gan.config import AdversaryConfig, Config, EnsembleConfig, ThreatConfig
from robust_gan.errors import CheckpointError, DataError, UserError
from robust_gan.evaluation import statistics, to_unit
from robust_gan.training import setup

NAMES = zoo.names()
FIELDS = {
    "alarms", "autoattack", "certified", "clean", "command", "commit", "data", "date", "evaluation", "hardware",
    "method", "network", "seed", "split", "threat", "versions",
}  # fmt: skip


def test_images(name):
    """The images on which a card was measured; the test is skipped where they are not prepared."""
    card, record = zoo.card(name), checkpoint.read_record(f"zoo:{name}")
    try:
        found = data.load_split(record.config.data, card["split"], was_trained_on=True)
    except DataError as error:
        pytest.skip(str(error))
    return to_unit(found.images), np.asarray(found.labels, np.int32), card


test_images.__test__ = False


def count_correct(logits_fn, images, labels):
    classify = jax.jit(logits_fn)
    parts = range(0, len(images), 500)
    return sum(int((classify(images[i : i + 500]).argmax(-1) == labels[i : i + 500]).sum()) for i in parts)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_as_accurate_as_its_card_says(name):
    images, labels, card = test_images(name)
    count = card["clean"]["count"]
    images, labels = images[:count], labels[:count]
    assert len(images) == count
    # Two classes may be level to the last bit, which another processor rounds otherwise.
    assert abs(count_correct(zoo.load(name), images, labels) - card["clean"]["correct"]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_as_robust_on_200_images_as_its_card_says(name):
    images, labels, card = test_images(name)
    images, labels, logits_fn = images[:200], labels[:200], zoo.load(name)
    threat = threat_model.from_config(ThreatConfig(**card["threat"]))
    keys = prng.per_image_keys(jax.random.key(0), 200)
    attack = jax.jit(attacks.by_name("apgd_ce"), static_argnums=4)
    adversarial = attack(logits_fn, keys, images, labels, threat)
    assert threat_model.distance(adversarial, images, threat).max() <= card["threat"]["epsilon"] * (1 + 1e-5)
    robust = count_correct(logits_fn, adversarial, labels) / 2
    # The first of the four attacks leaves a few more, and 200 of the images differ from all by three standard errors.
    expected = (card["autoattack"] or {"percent": robust})["percent"]
    assert expected - 10 <= robust <= expected + 15


def test_a_model_is_compiled_and_differentiated():
    logits_fn, images = zoo.load("digits/pgd"), jnp.linspace(0, 1, 128).reshape(2, 8, 8, 1)
    gradient = jax.jit(jax.grad(lambda x: logits_fn(x)[:, 3].sum()))(images)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max(axis=(1, 2, 3)).min() > 0
    np.testing.assert_allclose(logits_fn(images)[:1], logits_fn(images[:1]), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_agrees_with_its_file_and_with_itself(name):
    card, record = zoo.card(name), checkpoint.read_record(f"zoo:{name}")
    config = record.config
    assert set(card) == FIELDS
    assert (card["data"], card["network"]) == (record.data.name, config.classifier.network)
    assert (card["seed"], card["threat"]) == (
        config.seed,
        {"norm": config.threat.norm, "epsilon": config.threat.epsilon},
    )
    assert not config.data.data_dir
    assert not config.init_from
    for accuracy in filter(None, (card["clean"], card["certified"], card["autoattack"])):
        interval = statistics.wilson_interval(accuracy["correct"], accuracy["count"])
        assert accuracy["interval"] == [round(100 * end, 1) for end in interval]
        assert accuracy["percent"] == round(100 * accuracy["correct"] / accuracy["count"], 1)


def test_the_weights_fit_into_the_wheel():
    files = [path for path in pathlib.Path(exported.FOLDER).rglob("*") if path.suffix in (".safetensors", ".json")]
    assert len(files) == 2 * len(NAMES)
    assert sum(path.stat().st_size for path in files) <= 10e6


def test_the_page_holds_the_table_of_the_cards():
    page = runpy.run_path(str(pathlib.Path(__file__).resolve().parents[2] / "docs" / "zoo.py"))
    text = page["PAGE"].read_text()
    assert all(f"| `{name}` |" in text for name in NAMES)
    assert page["fill"](text) == text, "run python docs/zoo.py"


def test_names_that_are_unknown_and_weights_that_are_missing_are_one_sentence(tmp_path, monkeypatch):
    for name in ("digits/nosuch", "", "../zoo/digits/pgd"):
        for ask in (zoo.load, zoo.card):
            with pytest.raises(
                CheckpointError, match=r"there is no model '.*' in the zoo: the models are .*digits/pgd"
            ):
                ask(name)
    with pytest.raises(CheckpointError, match=r"zoo:digits/pgd holds step .* alone, not 7"):
        checkpoint.read_record(*checkpoint.parse_location("zoo:digits/pgd@7"))
    (tmp_path / "digits").mkdir()
    shutil.copy(exported.FOLDER / "digits" / "pgd.json", tmp_path / "digits")
    monkeypatch.setattr(exported, "FOLDER", type(exported.FOLDER)(tmp_path))
    assert zoo.card("digits/pgd")["data"] == "digits"
    with pytest.raises(CheckpointError, match=r"zoo:digits/pgd has a card, but its weights .* are missing: install"):
        zoo.load("digits/pgd")


def test_shipped_models_are_the_sources_of_an_ensemble():
    sources = EnsembleConfig(("zoo:digits/pgd", "zoo:digits/none"))
    config = Config(adversary=AdversaryConfig("ensemble", ensemble=sources))
    info = checkpoint.DataInfo("digits", (8, 8, 1), 10, ())
    assert [source(jnp.zeros((1, 8, 8, 1))).shape for source in setup.load_sources(config, info)] == [(1, 10)] * 2
    with pytest.raises(UserError, match="the source zoo:digits/pgd was trained on digits"):
        setup.load_sources(config, info._replace(name="mnist"))


@pytest.mark.slow
def test_shipped_models_are_evaluated_and_are_surrogates_by_name(launch, tiny_run, tmp_path):
    for output, given in (("a", ("zoo:digits/pgd", f"{tiny_run}@2")), ("b", (f"{tiny_run}@2", "zoo:digits/pgd"))):
        ended = launch(
            "evaluate", f"--checkpoint={given[0]}", f"--surrogates={given[1]}", "--attacks=clean,fgsm",
            "--num_examples=20", f"--output={tmp_path / output}", "--num_devices=1", "--noprogress",
        )  # fmt: skip
        assert ended.code == 0, ended.err
        report = json.loads((tmp_path / output / "report.json").read_text())
        assert report["models"]["pgd"]["checkpoint"] == "zoo:digits/pgd"
        ((target, found),) = report["targets"].items()
        assert target == ("pgd" if given[0] == "zoo:digits/pgd" else "tiny")
        assert set(found["robust_accuracy"]["fgsm"]) == {"pgd", "tiny"}

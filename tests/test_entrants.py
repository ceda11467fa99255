"""Classifiers and images that people bring, from the command line; and what they may get wrong."""

import json
import sys
import zipfile

import numpy as np
import pytest

from robust_gan.evaluation import bringing

MODULE = """
import jax.numpy as jnp

def linear(scale=1.0):
    weights = jnp.linspace(-1, 1, 8 * 8 * 10).reshape(64, 10) ** 3
    return lambda images: scale * images.reshape(images.shape[0], -1) @ weights

def softmax():
    import jax
    return lambda images: jax.nn.softmax(linear()(images))

def constant():
    return 3

def needs(argument):
    return linear()

def narrow():
    return lambda images: images.reshape(images.shape[0], -1)[:, :4]

def three():
    return lambda images: images.reshape(images.shape[0], -1)[:, :3]

def flat():
    return lambda images: images.sum((1, 2, 3))

def nan():
    return lambda images: linear()(images) * jnp.nan

def broken():
    return no_such_name

def with_state():
    return lambda images: (linear()(images), {})

def of_numpy():
    import numpy as np
    return lambda images: np.asarray(linear()(images))

def training():
    import flax.linen as nn
    import jax
    net = nn.BatchNorm(use_running_average=False)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    return lambda images: net.apply(variables, images)

def raises():
    def logits_fn(images):
        raise RuntimeError("no weights\\nhere")
    return logits_fn
"""


@pytest.fixture
def brought(tmp_path, monkeypatch, launch):
    """A folder with a module and images of one's own, and the launcher."""
    (tmp_path / "my_models.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
    weights = np.linspace(-1, 1, 640).reshape(64, 10) ** 3
    labels = np.argmax(images.reshape(40, -1) / 255 @ weights, -1)
    labels[0], labels[1] = (labels[0] + 1) % 10, 9
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)

    def evaluate(*flags, model="linear", data="mine.npz", epsilon="0.01", module="my_models"):
        return launch(
            "evaluate", f"--model={module}:{model}", f"--data={tmp_path / data}", f"--epsilon={epsilon}",
            "--attacks=fgsm,pgd3", *flags,
        )  # fmt: skip

    evaluate.folder, evaluate.images, evaluate.labels, evaluate.launch = tmp_path, images, labels, launch
    return evaluate


@pytest.mark.slow
def test_ones_own_model_on_ones_own_images(brought):
    ended = brought(f"--output={brought.folder}/report", "--in_turn=apgd_ce3")
    assert ended.code == 0, ended.err
    values = json.loads((brought.folder / "report/report.json").read_text())
    assert values["data"] == {"name": "mine.npz", "split": "all", "count": 40}
    assert values["models"] == {"my_models:linear": {"function": "my_models:linear"}}
    target = values["targets"]["my_models:linear"]
    weights = np.linspace(-1, 1, 640).reshape(64, 10) ** 3
    logits = brought.images.reshape(40, -1) / 255 @ weights
    assert target["clean_accuracy"] == np.mean(logits.argmax(-1) == brought.labels)
    assert target["in_turn"][-1]["robust_accuracy"] <= target["clean_accuracy"]
    assert not [alarm for alarm in target["alarms"] if alarm["fired"] and alarm["name"] == "probabilities"]


@pytest.mark.slow
def test_probabilities_raise_the_alarm(brought):
    ended = brought(model="softmax")
    assert ended.code == 0, ended.err
    assert "**probabilities**" in ended.out


@pytest.mark.slow
def test_ones_own_model_beside_a_checkpoint_on_its_data(brought, tiny_run, launch):
    flags = [f"--checkpoint={tiny_run}", "--model=my_models:linear", "--count=20", "--attacks=fgsm"]
    ended = launch("evaluate", *flags)
    assert ended.code == 0, ended.err
    assert "| my_models:linear |" in ended.out
    assert "| tiny " in ended.out


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"module": "no_such_module"}, "the module no_such_module of the model cannot be imported"),
        ({"model": "no_such"}, "the module my_models has no function 'no_such'"),
        ({"model": "linaer"}, "the module my_models has no function 'linaer'; is it linear?"),
        (
            {"module": "my_models.py"},
            "a model is given as package.module:function, without .py, not 'my_models.py:linear'",
        ),
        ({"model": "with_state"}, "my_models:with_state returns a tuple for images: return the logits alone"),
        ({"model": "of_numpy"}, "my_models:of_numpy cannot be traced by JAX, so that nothing can attack it"),
        ({"model": "training"}, "(in training mode? evaluate with use_running_average=True)"),
        ({"data": "mine.npy"}, "--data is a data set such as mnist, or an .npz of images and labels, not"),
        ({"model": ""}, "a model is given as package.module:function, not 'my_models:'"),
        ({"model": "broken"}, "my_models:broken fails: NameError: name 'no_such_name' is not defined"),
        ({"model": "constant"}, "must return a function of images, not int"),
        ({"model": "needs"}, "cannot be called without arguments"),
        ({"model": "narrow"}, r"must return logits of shape [2, K], K at least 10, not [2, 4]"),
        ({"model": "flat"}, r"must return logits of shape [2, K], K at least 10, not [2]"),
        ({"model": "nan"}, "returns logits that are NaN on the first images"),
        ({"model": "raises"}, "fails on float32 images of shape (2, 8, 8, 1): RuntimeError: no weights"),
        ({"data": "other.npz"}, "there is no file"),
        ({"data": "my_models.py.npz"}, "is no .npz of plain arrays"),
        ({"epsilon": "8"}, "epsilon is 8, but pixels are in [0, 1]: for 8 grey levels of 255 write 8/255"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(brought, settings, sentence):
    (brought.folder / "my_models.py.npz").write_text("not a zip")
    ended = brought(f"--output={brought.folder}/report", **settings)
    assert ended.code == 2
    assert sentence in ended.err
    assert ended.err.count("\n") == 1
    assert not (brought.folder / "report").exists()


def test_attacks_that_need_more_classes_are_refused_before_anything_is_written(brought):
    np.savez(brought.folder / "three.npz", images=brought.images, labels=brought.labels % 3)
    ended = brought(f"--output={brought.folder}/report", "--suite=autoattack", model="three", data="three.npz")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: apgd_t needs a classifier of at least 4 classes, but my_models:three has 3: leave it out with "
        "--attacks or --in_turn\n"
    )
    assert not (brought.folder / "report").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda images, labels: {"images": images, "y": labels}, "lacks the array labels: it has images, y"),
        (lambda images, labels: {"images": images, "labels": np.eye(10)[labels]}, "are one-hot: give class numbers"),
        (lambda images, labels: {"images": images.astype(int), "labels": labels}, "int64: give uint8 in 0..255"),
        (lambda images, labels: {"images": images.astype(float), "labels": labels}, "pixels must be in [0, 1]"),
        (lambda images, labels: {"images": images / 255 * np.nan, "labels": labels}, "NaN or infinite pixels"),
        (
            lambda images, labels: {"images": images.transpose(0, 3, 1, 2), "labels": labels},
            "channels first: give [N, H, W, C]",
        ),
        (lambda images, labels: {"images": images[..., 0], "labels": labels}, "non-empty array [N, H, W, C]"),
        (
            lambda images, labels: {"images": images, "labels": labels - 10},
            "labels must be class numbers from 0, but one is -10",
        ),
        (lambda images, labels: {"images": images, "labels": labels[:-1]}, "labels must have shape (40,)"),
        (lambda images, labels: {"images": images, "labels": labels * 1.0}, "labels must be integers"),
        (lambda images, labels: {"images": images, "labels": labels.astype(object)}, "is no .npz of plain arrays"),
        (lambda images, labels: {"images": images, "labels": labels.astype(str)}, "give class numbers from 0"),
        (lambda images, labels: {"images": images, "labels": labels + 1}, "are the classes numbered from 0?"),
        (lambda images, labels: {"x": images, "y": labels}, "bad.npz lacks the array images: it has x, y"),
        (lambda images, labels: {"images": images * 1.0, "labels": labels}, "divide by 255, or store them as uint8"),
        (lambda images, labels: {"images": images / 127.5 - 1, "labels": labels}, "normalise inside the model"),
    ],
)
def test_arrays_that_cannot_be_scored_are_one_sentence(brought, change, sentence):
    np.savez(brought.folder / "bad.npz", **change(brought.images, brought.labels))
    ended = brought(data="bad.npz")
    assert (ended.code, ended.out) == (2, "")
    assert sentence in ended.err


@pytest.mark.slow
def test_a_suite_leaves_out_the_generator_where_nobody_has_one(brought):
    flags = ["--model=my_models:linear", f"--data={brought.folder}/mine.npz", "--epsilon=0.01"]
    quick, named = (brought.launch("evaluate", *flags, end) for end in ("--suite=quick", "--attacks=fgsm,generator"))
    assert quick.code == named.code == 0
    assert "| clean | fgsm, white box | pgd10, white box |\n" in quick.out
    assert "generator, white box |" in named.out


@pytest.mark.slow
def test_a_model_that_was_trained_on_is_another_model(brought):
    flags = [f"--output={brought.folder}/report"]
    first = brought(*flags, model="linear")
    assert first.code == 0
    (brought.folder / "my_models.py").write_text(MODULE.replace("** 3", "* -1.0"))
    sys.modules.pop("my_models", None)
    refused = brought(*flags)
    assert (refused.code, refused.out) == (2, "")
    assert "report holds an evaluation of another my_models:linear: give another folder, or --overwrite" in refused.err
    again, elsewhere = brought(*flags, "--overwrite"), brought(f"--output={brought.folder}/elsewhere")
    assert again.code == elsewhere.code == 0
    told = [ended.out.partition("\nReport: ")[0] for ended in (first, again, elsewhere)]
    assert told[1] == told[2] != told[0]


@pytest.mark.slow
def test_a_file_that_unpacks_to_more_than_it_may_is_not_unpacked(brought, monkeypatch):
    monkeypatch.setattr(bringing, "_MAX_UNPACKED", 2_000_000_000)
    with (
        zipfile.ZipFile(brought.folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("images.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(30):
            member.write(bytes(100_000_000))
    assert (brought.folder / "bomb.npz").stat().st_size < 20_000_000
    ended = brought(data="bomb.npz")
    assert (ended.code, ended.out) == (2, "")
    assert "bomb.npz unpacks to 3 GB: give at most 2 GB of images at a time" in ended.err


def test_what_is_missing_is_asked_for(launch):
    for flags, sentence in (
        ([], "--checkpoint is missing"),
        (["--model=os:getcwd", "--epsilon=0.1"], "os:getcwd must return a function of images, not str"),
        (["--model=jax.numpy:zeros"], "cannot be called without arguments"),
        (["--model=tests.no:no"], "cannot be imported"),
    ):
        ended = launch("evaluate", *flags)
        assert ended.code == 2
        assert sentence in ended.err

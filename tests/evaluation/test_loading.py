"""Classifiers and images that people bring, from the command line; and what they may get wrong."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import warnings
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from robust_gan.data import own
from robust_gan.errors import DataError, UserError
from robust_gan.evaluation import checks, loading

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
    ended = brought(f"--output={brought.folder}/report", "--sequential=apgd_ce3")
    assert ended.code == 0, ended.err
    values = json.loads((brought.folder / "report/report.json").read_text())
    assert values["data"] == {"name": "mine.npz", "split": "all", "count": 40}
    assert values["models"] == {"my_models:linear": {"function": "my_models:linear"}}
    target = values["targets"]["my_models:linear"]
    weights = np.linspace(-1, 1, 640).reshape(64, 10) ** 3
    logits = brought.images.reshape(40, -1) / 255 @ weights
    assert target["clean_accuracy"] == np.mean(logits.argmax(-1) == brought.labels)
    assert target["sequential"][-1]["robust_accuracy"] <= target["clean_accuracy"]
    assert not [alarm for alarm in target["alarms"] if alarm["fired"] and alarm["name"] == "probabilities"]


@pytest.mark.slow
def test_probabilities_raise_the_alarm(brought):
    ended = brought(model="softmax")
    assert ended.code == 0, ended.err
    assert "**probabilities**" in ended.out


@pytest.mark.slow
def test_ones_own_model_beside_a_checkpoint_on_its_data(brought, tiny_run, launch):
    flags = [f"--checkpoint={tiny_run}", "--model=my_models:linear", "--num_examples=20", "--attacks=fgsm"]
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
        (
            {"data": "mine.npy"},
            "an .npz of images and labels, IMAGES.npy,LABELS.npy, or a folder with one per class, not ",
        ),
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
    ended = brought(f"--output={brought.folder}/report", "--sequential=apgd_t", model="three", data="three.npz")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: apgd_t needs a classifier of at least 4 classes, but my_models:three has 3: leave it out with "
        "--attacks or --sequential\n"
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
    header = next(line for line in quick.out.splitlines() if line.startswith("| model"))
    assert [cell.strip() for cell in header.split("|")[2:-1]] == ["clean", "fgsm, white box", "pgd10, white box"]
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
    monkeypatch.setattr(own, "_MAX_UNPACKED", 2_000_000_000)
    with (
        zipfile.ZipFile(brought.folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("images.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(30):
            member.write(bytes(100_000_000))
    assert (brought.folder / "bomb.npz").stat().st_size < 20_000_000
    ended = brought(data="bomb.npz")
    assert (ended.code, ended.out) == (2, "")
    assert "bomb.npz is no .npz of plain arrays (it unpacks to 3 GB, more than the 2 GB allowed)" in ended.err


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


@pytest.mark.parametrize("name", ["train", "report", "random", "details"])
def test_a_module_of_the_working_directory_goes_before_any_other_of_its_name(name, tmp_path, monkeypatch):
    """`random` is Python's own and imported long since; `train` and `report` are launchers too."""
    (tmp_path / f"{name}.py").write_text("def model():\n    return lambda images: images[:, 0, 0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(pathlib.Path(__file__).parents[2] / "launch"), *sys.path])
    before = sys.modules.get(name)
    try:
        assert loading.load_model(f"{name}:model")(np.zeros((1, 2, 2, 3))).shape == (1, 3)
        assert before is None or sys.modules[name] is before
    finally:
        if before is None:
            sys.modules.pop(name, None)


def test_a_package_of_a_name_that_is_taken_is_named(tmp_path, monkeypatch):
    (tmp_path / "json").mkdir()
    (tmp_path / "json/__init__.py").write_text("")
    (tmp_path / "json/mine.py").write_text("def model():\n    return len\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=r"there is another module json, .*: rename the folder json"):
        loading.load_model("json.mine:model")


@pytest.mark.packaging
def test_the_launchers_folder_is_left(tmp_path):
    (tmp_path / "train.py").write_text("def model():\n    return 3\n")
    script = pathlib.Path(__file__).parents[2] / "launch" / "evaluate.py"
    for path in ("", str(tmp_path)):
        ended = subprocess.run(
            [sys.executable, script, "--model=train:model", "--epsilon=0.1", "--data=none.npz"], cwd=tmp_path,
            capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "train:model must return a function of images, not int" in ended.stderr


IMAGES = {
    "grey": ((6, 1, 28, 28), True), "colour": ((6, 3, 32, 32), True), "wide pictures": ((6, 3, 48, 64), True),
    "signals of twelve leads": ((6, 1, 64, 12), False), "three rows": ((6, 3, 8, 5), False),
    "channels last": ((6, 32, 32, 3), False), "one row": ((6, 1, 64, 1), False),
    "many channels": ((6, 8, 8, 13), False),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_channels_first_are_named_and_everything_else_is_taken(name, tmp_path):
    shape, refused = IMAGES[name]
    images = np.random.default_rng(0).random(shape)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6))
    if refused:
        with pytest.raises(DataError, match=r"channels first: give \[N, H, W, C\], .*takes --channels=last where"):
            own.read(str(tmp_path / "a.npz"))
    assert own.read(str(tmp_path / "a.npz"), channels="last").train.images.shape == shape


LABELS = {
    "a column of ones": (np.ones((6, 1), int), r"have shape \(6, 1\): give one number per image, labels\[:, 0\]"),
    "a column": (np.arange(6)[:, None] * 1.0, r"labels\[:, 0\]"),
    "one-hot": (np.eye(6), "one-hot: give class numbers, labels.argmax"),
    "soft": (0.1 + 0.4 * np.eye(6), "are probabilities: give class numbers, labels.argmax"),
    "several classes": (np.ones((6, 4), int), "name several classes of an image"),
    "ignored": (np.array([0, 1, 2, -1, 3, -1]), r"2 labels .* are -1, which often stands for 'ignore': leave these"),
    "floats": (np.arange(6.0), r"must be integers, but .* float64: give labels.astype\(int\)"),
    "words": (np.array(list("abcdef")), "class numbers from 0"),
    "complex": (np.arange(6) * 1j, "class numbers from 0"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_no_class_numbers_say_what_to_do(name, tmp_path):
    labels, sentence = LABELS[name]
    np.savez(tmp_path / "a.npz", images=np.full((6, 2, 2, 1), 0.5), labels=labels)
    with pytest.raises(DataError, match=sentence):
        own.read(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1) % 2, "uint8 in 0..1, all but black: give 0..255"),
        (np.linspace(0, 1 / 255, 12).reshape(3, 2, 2, 1), "divided by 255 twice"),
        (np.zeros((3, 2, 2, 1), np.int64), "int64: give uint8 in 0..255"),
    ],
)
def test_images_in_another_unit_are_named(images, sentence, tmp_path):
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(3))
    with pytest.raises(DataError, match=sentence):
        own.read(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2"])
def test_the_layout_of_the_arrays_does_not_matter(dtype, tmp_path):
    images = np.random.default_rng(0).random((3, 4, 5, 2)).astype(dtype)
    np.savez(tmp_path / "a.npz", images=np.asfortranarray(images), labels=np.arange(3, dtype=">i8"))
    found = own.read(str(tmp_path / "a.npz")).train
    assert np.array_equal(found.images, images)
    assert found.images.dtype.isnative
    assert found.labels.dtype.isnative


def check(logits_fn, num_classes=4):
    checks.check_outputs("mine", logits_fn, np.full((2, 4, 4, 1), 0.5, np.float32), num_classes)


def flat(images):
    return images.reshape(len(images), -1)[:, :4]


class Outputs(NamedTuple):
    logits: jax.Array


@dataclasses.dataclass
class Answer:
    logits: jax.Array


def test_a_model_in_training_mode_is_told_to_leave_it():
    class Net(nnx.Module):
        def __init__(self):
            self.norm, self.drop = nnx.BatchNorm(16, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, images):
            return self.drop(self.norm(images.reshape(len(images), -1)))[:, :4]

    with pytest.raises(UserError, match=r"mine changes its own state.*\(in training mode\? call model.eval\(\)"):
        check(Net())
    net = Net()
    net.eval()
    check(net)


@pytest.mark.parametrize(
    ("logits_fn", "sentence"),
    [
        (lambda x: Outputs(flat(x)), r"returns a Outputs for images: return the logits alone, model\(images\)\.logits"),
        (lambda x: Answer(flat(x)), r"returns a Answer for images: return the logits alone, model\(images\)\.logits"),
        (lambda x: {"logits": flat(x)}, r"returns a dict for images: .*, model\(images\)\['logits'\]"),
        (lambda x: (flat(x), x), "returns a tuple for images: return the logits alone$"),
        (lambda x: None, "returns a NoneType for images"),
        (lambda x: x.ravel()[:4], "not .4.: one number per class and image; jax.vmap a function of one image"),
        (lambda x: flat(x) * jnp.nan, "logits that are NaN on the first images"),
        (lambda x: flat(x) - jnp.inf, "infinite on the first images"),
        (lambda x: flat(x).at[:, 0].set(jnp.inf), "infinite on the first images"),
    ],
)
def test_outputs_that_are_no_logits_are_named(logits_fn, sentence):
    with pytest.raises(UserError, match=sentence):
        check(logits_fn)


def test_legal_models_are_taken():
    check(lambda x: flat(x).at[0].set(jnp.nan))  # One image of two: the alarm `nan_logits` counts them.
    check(lambda x: flat(x).at[:, 0].set(-jnp.inf))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # That a donated buffer is of no use.
        check(jax.jit(flat, donate_argnums=0))
    with pytest.raises(UserError, match="the largest label is 255, which often stands for 'ignore'"):
        check(flat, num_classes=256)


@pytest.mark.slow
def test_a_model_may_choose_strict_promotion(brought):
    (brought.folder / "my_models.py").write_text(
        "import jax\njax.config.update('jax_numpy_dtype_promotion', 'strict')\n" + MODULE
    )
    try:
        ended = brought("--sequential=apgd_ce3,square5")
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "standard")
    assert ended.code == 0, ended.err

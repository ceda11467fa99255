"""Bad input: one sentence that says what was wrong and what would be right, exit code 2, nothing written.

What a command line alone gets wrong is in docs/errors.md, and test_errors.py; here is what needs more.

The launchers run in this process, on four fake devices; in a command line `{tmp}` is an empty folder, `{run}` a run of
steps 1 and 2, and `{copy}` a copy of it that is the test's own.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from robust_gan import checkpoint, data
from robust_gan.checkpoint import metadata
from robust_gan.config import AdversaryConfig, ClassifierConfig, Config, to_dict

SECONDS = 120
TRAIN = ("--config=configs/digits.py", "--workdir={tmp}/run")
EVALUATE = ("--checkpoint={run}", "--output={tmp}/report")


def tree(*folders):
    """What lies below folders: names, and the contents of files."""
    paths = [path for folder in folders for path in pathlib.Path(folder).rglob("*")]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def mistake(launch, tiny_run, tmp_path, capfd):
    """Runs a launcher, holds that it ended as a mistake must, and returns the sentence."""

    def run(script, *arguments, source=None):
        if source is not None:
            (tmp_path / "config.py").write_text(source)
        names = {"tmp": tmp_path, "run": tiny_run, "copy": tmp_path / "copy"}
        before, started = tree(tmp_path, tiny_run), time.monotonic()
        ended = launch(script, *(argument.format(**names) for argument in arguments))
        assert time.monotonic() - started < SECONDS
        caches = {path for path in tree(tmp_path) if "__pycache__" in path.parts}
        assert {path: text for path, text in tree(tmp_path, tiny_run).items() if path not in caches} == before
        written = capfd.readouterr()
        assert (ended.code, ended.out, written.out) == (2, "", "")
        for text in (ended.err, written.err):
            assert "Traceback" not in text
        # Libraries may not speak either.
        assert written.err == ""
        assert re.fullmatch(r"error: [^\n]+\n", ended.err)
        return ended.err.removeprefix("error: ")

    return run


CONFIGS = {
    "raises at import": (
        "x = 1\ny = x / 0",
        r"config \S+/config.py cannot be run \(line 2\): ZeroDivisionError: division",
    ),
    "raises": ("def get_config():\n  raise RuntimeError('boom')", r"cannot be run \(line 2\): RuntimeError: boom"),
    "raises a ValueError": ("def get_config():\n  int('a')", r"cannot be run \(line 2\): ValueError: invalid literal"),
    "raises an OSError": (
        "def get_config():\n  open('/nosuch')",
        r"cannot be run \(line 2\): FileNotFoundError: .*/nosuch",
    ),
    "raises our error": (
        "from robust_gan.errors import UserError\ndef get_config():\n  raise UserError('of a config')",
        r"^of a config$",
    ),
    "does not parse": ("def get_config(:", r"config \S+/config.py cannot be run \(line 1\): invalid syntax"),
    "imports what is absent": ("import nosuchmodule", r"ModuleNotFoundError: No module named 'nosuchmodule'"),
    "has no get_config": ("x = 1", r"has no attribute 'get_config'"),
    "takes no method": ("def get_config(a, b): pass", r"missing 2 required positional arguments"),
    "returns a dict": ("def get_config(): return {'a': 1}", r"must return a robust_gan.config.Config, not dict"),
    "returns nothing": ("def get_config(): pass", r"must return a robust_gan.config.Config, not NoneType"),
    "has a wrong type": (
        "from robust_gan.config import Config\ndef get_config(): return Config(batch_size=6.5)",
        r"batch_size must be of type int, not 6.5",
    ),
    "has a group that is none": (
        "from robust_gan.config import Config\ndef get_config(): return Config(data='digits')",
        r"data must be of type DataConfig, not 'digits'",
    ),
}


# Of what a config returns, a field is set before it is looked at.
RUN_AT_ONCE = [name for name in CONFIGS if not name.startswith(("returns", "has a "))]


@pytest.mark.parametrize(
    ("name", "further"),
    [*((name, ()) for name in CONFIGS), *((name, ("--config.batch_size=32",)) for name in RUN_AT_ONCE)],
)
def test_a_config_that(mistake, name, further):
    source, sentence = CONFIGS[name]
    said = mistake("train", "--config={tmp}/config.py", *further, "--workdir={tmp}/run", source=source)
    assert re.search(sentence, said)


def test_training_on_images_that_the_networks_cannot_take(mistake, monkeypatch):
    split = data.Split(np.zeros((200, 10, 10, 1), np.uint8), np.zeros(200, np.int32))
    odd = data.Dataset("odd", split, split, split, 10, tuple("0123456789"))
    monkeypatch.setattr(data, "from_config", lambda _: odd)
    said = mistake("train", *TRAIN, "--config.data.name=odd")
    assert re.search(
        r"digits_cnn and digits_generator do not accept images of shape \(10, 10, 1\)|divisible by 4", said
    )


def test_labels_that_are_out_of_range(mistake, monkeypatch):
    split = data.Split(np.zeros((200, 8, 8, 1), np.uint8), np.full(200, 10, np.int32))
    odd = data.Dataset("odd", split, split, split, 10, tuple("0123456789"))
    monkeypatch.setattr(data, "from_config", lambda _: odd)
    assert "labels must be in 0..9, but range from 10 to 10" in mistake("train", *TRAIN)


def test_a_copy_that_only_tensorflow_can_read(mistake, tmp_path):
    prepared = data.prepare("digits", data_dir=tmp_path).directory
    info = prepared / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord", "alternativeFileFormats": []}))
    said = mistake("train", *TRAIN, "--config.data.data_dir={tmp}")
    assert re.search(r"is not stored as array_record and cannot be read without TensorFlow, so prepare digits", said)
    assert "robust-gan-prepare-data --dataset=digits" in said


def test_a_damaged_data_set(mistake, tmp_path):
    prepared = data.prepare("digits", data_dir=tmp_path).directory
    for path in prepared.glob("*array_record*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = mistake("train", *TRAIN, "--config.data.data_dir={tmp}")
    assert re.search(r"is damaged \(.*\): remove it and prepare the data set again", said)


def test_a_workdir_without_permission(mistake, monkeypatch):
    # Permissions do not hold root back, so what the system says is said here.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert re.search(r"the workdir \S+ cannot be written \(permission denied\)", mistake("train", *TRAIN))


def test_a_run_of_another_configuration_names_the_fields(mistake):
    said = mistake("train", TRAIN[0], "--workdir={run}", "--config.seed=3")
    for field in ("seed: 0 != 3", "batch_size: 16 != 64", "data.train_size: 64 != 0"):
        assert field in said
    assert "give another workdir, or the same configuration to resume it" in said


def test_checkpoints_where_a_file_lies(mistake, tmp_path, tiny_run):
    values = to_dict(read_config(tiny_run))
    source = f"from robust_gan.config import from_dict\ndef get_config(): return from_dict({values!r})"
    (tmp_path / "copy").mkdir()
    shutil.copy(tiny_run / "config.json", tmp_path / "copy")
    (tmp_path / "copy" / checkpoint.FOLDER).write_text("mine")
    (tmp_path / "copy" / ".lock").write_text("")
    said = mistake("train", "--config={tmp}/config.py", "--workdir={copy}", source=source)
    assert re.search(r"checkpoints cannot be written to \S+/copy/checkpoints", said)


def read_config(run):
    return checkpoint.read_record(run).config


def of_other_data(directory, **changes):
    """Saves a step that says it was trained on other data; its arrays are not reached."""
    info = checkpoint.DataInfo("digits", (8, 8, 1), 10, tuple("0123456789"))._replace(**changes)
    config = Config()
    config.data.name = info.name
    writer = checkpoint.Writer(directory, config, info)
    writer.save(1, {"x": np.zeros(2, np.float32)}, {checkpoint.SELECTION: 0.5})
    writer.close()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"image_shape": (28, 28, 1)},
            r"copy was trained on images of shape \(28, 28, 1\), the first .* on \(8, 8, 1\)",
        ),
        ({"num_classes": 7}, r"copy was trained on classes: 7, the first checkpoint on 10"),
        ({"name": "mnist"}, r"copy was trained on the data set mnist, the first checkpoint on digits"),
    ],
)
def test_a_source_of_other_data(mistake, tmp_path, changes, sentence):
    of_other_data(tmp_path / "copy", **changes)
    said = mistake("evaluate", *EVALUATE, "--surrogates={copy}")
    assert re.search(sentence, said)
    assert "attacks transfer only between models of the same data" in said


def test_a_checkpoint_of_another_architecture(mistake, tmp_path):
    # A generator under the name of a classifier, so to say: the arrays are not those of the network it names.
    of_other_data(tmp_path / "copy")
    said = mistake("evaluate", "--checkpoint={copy}", "--output={tmp}/report")
    assert re.search(r"checkpoints/1 is of another architecture: it has no array classifier/", said)


def test_a_checkpoint_of_a_network_that_is_unknown(mistake, tmp_path, tiny_run):
    shutil.copytree(tiny_run, tmp_path / "copy")
    for step in (1, 2):
        path = tmp_path / "copy" / checkpoint.FOLDER / str(step) / "config" / "metadata"
        config = dataclasses.replace(read_config(tiny_run), classifier=ClassifierConfig(network="resnet1000"))
        path.write_text(json.dumps(metadata.signed(json.loads(path.read_text()) | {"config": to_dict(config)})))
    assert "resnet1000" in mistake("evaluate", "--checkpoint={copy}", "--output={tmp}/report")


def flip(path):
    whole = bytearray(path.read_bytes())
    for position in range(len(whole) // 2, len(whole), 99):
        whole[position] ^= 1
    path.write_bytes(whole)


def largest(step):
    return max((path for path in (step / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


GARBLED = {
    "flipped bytes": (lambda step: flip(largest(step)), r"2 is damaged \(.*\): name another step, of 1"),
    "an array file cut": (lambda step: os.truncate(largest(step), 1000), r"2 is damaged \(its arrays cannot be read"),
    "a garbled manifest": (
        lambda step: flip(step / "state" / "manifest.ocdbt"),
        r"2 is damaged \(its arrays cannot be",
    ),
    "a garbled record": (
        lambda step: flip(step / "config" / "metadata"),
        r"2 is damaged \(its configuration cannot be",
    ),
    "an empty folder": (
        lambda step: (shutil.rmtree(step), step.mkdir()),
        r"2 is damaged \(its configuration cannot be",
    ),
}


@pytest.mark.parametrize("damage", GARBLED)
def test_a_checkpoint_with(mistake, tmp_path, tiny_run, damage):
    shutil.copytree(tiny_run, tmp_path / "copy")
    change, sentence = GARBLED[damage]
    change(tmp_path / "copy" / checkpoint.FOLDER / "2")
    assert re.search(sentence, mistake("evaluate", "--checkpoint={copy}@2", "--output={tmp}/report"))


def test_a_checkpoint_that_is_half_written(mistake, tmp_path, tiny_run):
    folder = tmp_path / "copy" / checkpoint.FOLDER
    shutil.copytree(tiny_run / checkpoint.FOLDER / "1", folder / "1.orbax-checkpoint-tmp")
    said = mistake("evaluate", "--checkpoint={copy}", "--output={tmp}/report")
    assert re.search(r"holds no finished checkpoint: train first", said)


@pytest.mark.packaging
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"JAX_PLATFORMS": "cuda"}, r"jax finds no device"),
        ({"JAX_PLATFORMS": "nosuch"}, r"jax finds no device"),
    ],
)
def test_a_platform_asked_for_by_the_environment_that_is_absent(tmp_path, environment, sentence):
    command = [sys.executable, "launch/train.py", TRAIN[0], f"--workdir={tmp_path}/run"]
    ended = subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, timeout=60,
                           check=False)  # fmt: skip
    assert ended.returncode == 2
    assert re.fullmatch(rf"error: {sentence}[^\n]*\n", ended.stderr)
    assert not tree(tmp_path)


@pytest.mark.packaging
def test_a_whole_process_says_one_sentence_and_nothing_else(tmp_path, tiny_run):
    """What this process cannot show: logs of libraries on stderr, and the exit."""
    run = shutil.copytree(tiny_run, tmp_path / "copy")
    (run / checkpoint.FOLDER / "2" / "state" / "manifest.ocdbt").write_bytes(b"garbled")
    started = time.monotonic()
    command = [sys.executable, "launch/evaluate.py", f"--checkpoint={run}@2", f"--output={tmp_path}/report"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"error: the checkpoint \S+/checkpoints/2 is damaged [^\n]*\n", ended.stderr)
    assert time.monotonic() - started < SECONDS
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_a_run_without_an_adversary_evaluates_with_the_default_attacks(launch, tmp_path):
    """The other side: what is no mistake is not refused. A model without a generator has no figure for it."""
    source = (
        "from robust_gan.config import *\ndef get_config():\n"
        f"  return from_dict({to_dict(dataclasses.replace(Config(), adversary=AdversaryConfig(name='none')))!r})"
    )
    (tmp_path / "config.py").write_text(source)
    fields = ["data.train_size=64", "data.validation_size=32", "batch_size=16", "num_steps=1", "validation.pgd_steps=1"]
    arguments = [
        f"--config={tmp_path}/config.py",
        *(f"--config.{field}" for field in fields),
        f"--workdir={tmp_path}/run",
    ]
    trained = launch("train", *arguments, "--num_devices=1")
    assert (trained.code, trained.err) == (0, "")
    assert trained.out.count("clean_accuracy") >= 1  # The line of the only validation.
    again = launch("train", *arguments, "--num_devices=1")
    assert again.code == 0
    assert "nothing is left to do" in again.out
    evaluated = launch(
        "evaluate", f"--checkpoint={tmp_path}/run@last", "--attacks=clean,fgsm,generator", "--epsilon=8/255",
        "--num_examples=8", f"--output={tmp_path}/a/report", "--num_devices=1",
    )  # fmt: skip
    assert (evaluated.code, evaluated.err) == (0, "")
    assert evaluated.out.startswith("digits test, 8 images, linf epsilon 0.0313725\n")
    assert json.loads((tmp_path / "a" / "report" / "report.json").read_text())["threat"]["epsilon"] == pytest.approx(
        8 / 255
    )

"""The host loop: exact resume, signals, metrics, the choice of the best."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
import tiny_config

from robust_gan import checkpoint, parallel, threat_model, training
from robust_gan.config import (
    AdversaryConfig,
    Config,
    OptimizerConfig,
    PenaltyConfig,
    ValidationConfig,
    to_dict,
)
from robust_gan.errors import CheckpointError, DataError, NotFiniteError, UserError
from robust_gan.storage import workdir
from robust_gan.training import diagnostics, evaluator, multi_step, setup

pytestmark = pytest.mark.usefixtures("tiny_names")


def tiny(name="generator", **settings):
    """A run of seconds on digits."""
    penalty = PenaltyConfig(coefficient=0.01 if name == "generator" else 0.0)
    return tiny_config.make(name, **{"penalty": penalty, **settings})


def endless(num_steps):
    """A run that neither validates nor logs before its end."""
    return tiny("none", num_steps=num_steps, log_every=100000, validation=ValidationConfig(every=100000, pgd_steps=1))


def train(config, directory, count=1, **settings):
    devices, log_fn = parallel.find_devices(num_devices=count), settings.pop("log_fn", lambda text: None)

    def log_all_but_warnings(text):
        # Whether so few steps make a classifier that deserves one is not what is tested.
        if not text.startswith("warning at step"):
            log_fn(text)

    return training.train(config, directory, devices=devices, progress=False, log_fn=log_all_but_warnings, **settings)


def lines(directory, name=workdir.METRICS):
    return [json.loads(line) for line in (pathlib.Path(directory) / name).read_text().splitlines()]


def assert_bit_equal(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("generator", 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("none", 1), ("pgd", 1), ("generator", 4)]),
    ],
)
def test_stopped_and_resumed_equals_undisturbed(tmp_path, name, count):
    whole = train(tiny(name), tmp_path / "whole", count)
    # num_steps may change between the two: what a step computes does not depend on it. Step 4 is no validation step.
    train(tiny(name, num_steps=4), tmp_path / "parts", count)
    said = []
    parts = train(tiny(name), tmp_path / "parts", count, log_fn=said.append)
    assert said == [f"resuming from step 4 of {tmp_path / 'parts'}"]
    starts = [json.loads(line) for line in (tmp_path / "parts" / "starts.jsonl").read_text().splitlines()]
    assert [(start["step"], bool(start["command"])) for start in starts] == [(0, True), (4, True)]
    assert whole.step == parts.step == 6
    assert_bit_equal(whole.state, parts.state)
    assert whole.validation == parts.validation
    # The end of the first part was validated and logged; every other line is the same, none lost or doubled.
    extra = [line for line in lines(tmp_path / "parts") if line not in lines(tmp_path / "whole")]
    assert [line["step"] for line in extra] == [4]
    assert [line for line in lines(tmp_path / "parts") if line not in extra] == lines(tmp_path / "whole")


COSINE = {"classifier.optimizer.schedule": "cosine", "classifier.optimizer.schedule_steps": 9}
GROWN = {
    "inputs": ("gradient", "perturbation", "label"),
    "num_refinements": 2,
    "latent_size": 2,
    "final_fgsm_step": 0.5,
    "start": "uniform",
    "update_every": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("fgsm", {}, 1),
        ("fgsm", {"classifier.ema_decay": 0.9}, 4),
        ("pgd", {"classifier.loss": "trades", "classifier.awp_gamma": 0.01}, 1),
        ("generator", {f"adversary.generator.{field}": value for field, value in GROWN.items()}, 1),
        ("generator", {"adversary.generator.start": "memory", "adversary.generator.batches_per_step": 1}, 4),
        (
            "generator",
            {
                "classifier.ema_decay": 0.9,
                "classifier.optimizer.schedule": "cosine",
                "classifier.optimizer.schedule_steps": 9,
            },
            4,
        ),
    ],
    ids=["fgsm", "fgsm, averaged", "trades, weights perturbed", "generator, grown", "memory", "generator, averaged"],
)
def test_every_option_resumes_bit_for_bit_wherever_it_was_stopped(tmp_path, name, settings, count):
    def config(num_steps=6):
        config = tiny(name, num_steps=num_steps, steps_per_call=2)
        for path, value in settings.items():
            *owners, field = path.split(".")
            owner = functools.reduce(getattr, owners, config)
            assert hasattr(owner, field)
            setattr(owner, field, value)
        return config

    whole = train(config(), tmp_path / "whole", count)
    for num_steps in (1, 4, 6):
        parts = train(config(num_steps), tmp_path / "parts", count)
    assert_bit_equal(whole.state, parts.state)
    assert whole.validation == parts.validation


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("pgd", 1), ("generator", 1), ("generator", 4)])
def test_many_steps_in_one_call_are_as_many_calls_bit_for_bit(tmp_path, name, count):
    settings = {"num_steps": 7, "log_every": 5, "validation": ValidationConfig(every=4, pgd_steps=1)}
    one = train(tiny(name, steps_per_call=1, **settings), tmp_path / "one", count)
    many = train(tiny(name, steps_per_call=3, **settings), tmp_path / "many", count)
    assert_bit_equal(one.state, many.state)
    assert lines(tmp_path / "one") == lines(tmp_path / "many")
    # Also where the run was stopped, and went on with another number.
    train(tiny(name, steps_per_call=3, **settings | {"num_steps": 2}), tmp_path / "parts", count)
    assert_bit_equal(one.state, train(tiny(name, steps_per_call=2, **settings), tmp_path / "parts", count).state)


@pytest.mark.parametrize(
    ("cores", "batch_size", "size", "processes", "count"),
    [
        (4, 64, 8, 1, 1),  # Digits: too little work to share.
        (2, 128, 28, 1, 2),
        (4, 128, 28, 1, 4),
        (64, 128, 32, 1, 4),  # Of the 5 that there would be work for, those that split 128 evenly.
        (3, 64, 32, 1, 2),
        (6, 96, 32, 1, 3),
        (4, 127, 32, 1, 1),
        (4, 128, 32, 2, 2),  # Of the cores of each of two processes.
        (4, 64, 8, 2, 1),
    ],
)
def test_a_run_takes_the_cores_that_its_batch_keeps_busy(monkeypatch, cores, batch_size, size, processes, count):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    found = [
        types.SimpleNamespace(platform="cpu", process_index=p, id=i) for p in range(processes) for i in range(cores)
    ]
    kept = setup.keep_busy(found, batch_size, (size, size, 3))
    assert [device.process_index for device in kept] == [p for p in range(processes) for _ in range(count)]
    assert len({id(device) for device in kept}) == processes * count
    for device in found:
        device.platform = "gpu"
    assert setup.keep_busy(found, batch_size, (size, size, 3)) == found


@pytest.mark.slow
def test_a_run_without_devices_chooses_them_and_one_with_devices_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "_PIXELS_PER_CORE", 8 * 8 * 8)
    config = tiny("none", batch_size=16)
    assert len(setup.build(config).devices) == len(setup.build(config, platform="cpu").devices) == 2
    assert len(setup.build(config, parallel.find_devices(num_devices=4)).devices) == 4
    with pytest.raises(UserError, match="no gpu was found"):
        setup.build(config, platform="gpu")
    chosen = training.train(config, tmp_path / "chosen", progress=False, log_fn=None)
    assert_bit_equal(chosen.state, train(config, tmp_path / "given", 2).state)


def test_packed_images_are_gathered_as_images():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    packed, positions = multi_step.PackedImages(images.reshape(5, -1), images.shape[1:]), np.array([3, 0, 3])
    np.testing.assert_array_equal(jax.jit(lambda packed, at: packed[at])(packed, positions), images[positions])


@pytest.mark.slow
def test_what_a_killed_run_wrote_after_its_last_checkpoint_is_written_anew(tmp_path):
    train(tiny("none"), tmp_path / "whole")
    train(tiny("none", num_steps=3), tmp_path / "killed")
    with open(tmp_path / "killed" / workdir.METRICS, "a") as file:
        file.write('{"step": 5, "train/clean_loss": 123.0}\n{"step": 6, "train/cle')
    train(tiny("none"), tmp_path / "killed")
    kept = [line for line in lines(tmp_path / "killed") if line["step"] > 3]
    assert kept == [line for line in lines(tmp_path / "whole") if line["step"] > 3]


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_bits_and_another_seed_others(tmp_path):
    first, second = train(tiny("none"), tmp_path / "a"), train(tiny("none"), tmp_path / "b")
    assert_bit_equal(first.state, second.state)
    other = train(tiny("none", seed=1), tmp_path / "c")
    assert not np.array_equal(first.state.classifier.params["Dense_0"]["kernel"],
                              other.state.classifier.params["Dense_0"]["kernel"])  # fmt: skip


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    first = train(tiny("none"), tmp_path)
    before = (tmp_path / workdir.METRICS).read_text()
    said = []
    second = train(tiny("none"), tmp_path, log_fn=said.append)
    assert "nothing is left to do" in said[-1]
    assert_bit_equal(first.state, second.state)
    assert (tmp_path / workdir.METRICS).read_text() == before


def test_metrics_name_what_was_measured(tmp_path):
    train(tiny(), tmp_path)
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps == [2, 3, 4, 6, 6]
    trained = lines(tmp_path)[0]
    for name in ("classifier_loss", "clean_loss", "adversarial_loss", "clean_accuracy", "adversarial_accuracy",
                 "generator_loss", "penalty", "classifier_gradient_norm"):  # fmt: skip
        assert np.isfinite(trained[f"train/{name}"])
    assert np.isclose(trained["train/classifier_loss"], trained["train/clean_loss"] + trained["train/adversarial_loss"])
    validated = lines(tmp_path)[1]
    assert set(validated) == {
        "step", "validation/clean_accuracy", "validation/fgsm", "validation/pgd1", "validation/generator",
        "health/classes_predicted", "health/logit_variation", "health/noise_variation", "health/generator_gain",
        *(f"warning/{name}" for name in diagnostics.WARNINGS),
    }  # fmt: skip
    assert all(line["images_per_second"] > 0 for line in lines(tmp_path, workdir.TIMING))


def test_tensorboard_gets_the_same_scalars(tmp_path):
    train(tiny("none", num_steps=2), tmp_path, tensorboard=True)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_the_best_is_chosen_on_validation_by_robust_accuracy_and_without_an_adversary_by_clean_accuracy():
    figures = {"validation/clean_accuracy": 0.9, "validation/pgd10": 0.4}
    assert evaluator.get_selection_metric(Config(adversary=AdversaryConfig(name="pgd")), figures) == 0.4
    assert evaluator.get_selection_metric(Config(adversary=AdversaryConfig(name="none")), figures) == 0.9
    figures["validation/worst_case"] = 0.3
    assert evaluator.get_selection_metric(Config(adversary=AdversaryConfig(name="pgd")), figures) == 0.3


@pytest.mark.slow
def test_further_attacks_of_validation_choose_by_the_worst_case(tmp_path):
    settings = ValidationConfig(every=2, pgd_steps=1, attacks="margin_pgd1,square20", size=40)
    train(tiny("fgsm", num_steps=2, validation=settings), tmp_path)
    found = lines(tmp_path)[-1]
    names = ("pgd1", "margin_pgd1", "square20")
    assert 0 <= found["validation/worst_case"] <= min(found[f"validation/{name}"] for name in names)


@pytest.mark.parametrize(
    ("attacks", "sentence"), [("sqare", "unknown attack 'sqare'"), ("generator", "made on the classifier alone")]
)
def test_an_attack_of_validation_that_cannot_be_is_refused(tmp_path, attacks, sentence):
    with pytest.raises(UserError, match=sentence):
        train(tiny("fgsm", validation=ValidationConfig(attacks=attacks)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_best_and_the_last_checkpoint_are_there_and_load(tmp_path):
    result = train(tiny("pgd"), tmp_path)
    last = checkpoint.read_record(tmp_path, "last")
    best = checkpoint.read_record(tmp_path, "best")
    assert last.step == result.step == 6
    values = {line["step"]: line["validation/pgd1"] for line in lines(tmp_path) if "validation/pgd1" in line}
    assert values[best.step] == max(values.values())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoints_alone(tmp_path):
    config = tiny("none")
    train(config, tmp_path / "sound")
    config.classifier.optimizer = OptimizerConfig(learning_rate=1e30)
    with pytest.raises(NotFiniteError, match=r"of the classifier is (nan|inf) at step \d"):
        train(config, tmp_path / "run")
    steps = [path.name for path in (tmp_path / "run" / checkpoint.FOLDER).iterdir() if path.name.isdigit()]
    assert steps == []


def test_nothing_is_written_when_the_data_do_not_fit(tmp_path):
    with pytest.raises(DataError, match=r"validation.size is 50, but data.validation_size holds out only 40"):
        train(tiny(validation=ValidationConfig(size=50)), tmp_path / "run")
    config = tiny()
    config.classifier.network = "nosuch"
    with pytest.raises(UserError, match="digits_cnn"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_of_networks_and_the_folder_are_checked_before_the_data_are_read(tmp_path, monkeypatch):
    def read(*_, **__):
        raise AssertionError("the data are read")

    monkeypatch.setattr(setup, "load_data", read)
    config = tiny()
    for player in (config.classifier, config.adversary.generator):
        before, player.network = player.network, "nosuch"
        with pytest.raises(UserError, match=r"unknown (classifier|generator) 'nosuch'; choose from"):
            train(config, tmp_path / "run")
        player.network = before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / workdir.CONFIG).write_text(json.dumps(to_dict(tiny(seed=1))))
    with pytest.raises(UserError, match=r"holds a run of another configuration \(there != here: seed: 1 != 0\)"):
        train(config, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == [workdir.CONFIG]


@pytest.mark.parametrize(
    ("learning_rate", "error", "notes"),
    [
        (
            1e30,
            NotFiniteError,
            ["its state could not be saved: the disk is full", "and then, in closing: the disk is full"],
        ),
        (0.1, CheckpointError, []),
    ],
    ids=["after a failure", "alone"],
)
def test_a_failure_in_closing_is_reported_but_hides_no_other(tmp_path, monkeypatch, learning_rate, error, notes):
    close = checkpoint.Writer.close

    def fail(writer):
        close(writer)
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(checkpoint.Writer, "close", fail)
    config = tiny("none", num_steps=2)
    config.classifier.optimizer = OptimizerConfig(learning_rate=learning_rate)
    with pytest.raises(error) as caught:
        train(config, tmp_path)
    assert getattr(caught.value, "__notes__", []) == notes


PROGRAM = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
import test_training, tiny_networks
from robust_gan import training
tiny_networks.register()
result = training.train(test_training.endless(100000), {directory!r}, progress=False)
print("finished", result.finished, "step", result.step)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_saves_and_the_run_goes_on_from_there(tmp_path, number):
    program = PROGRAM.format(tests=os.path.dirname(__file__), directory=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / workdir.TIMING).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(4)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "saved a checkpoint; rerun the same command to resume" in output
    step = int(output.split()[-1])
    assert output.splitlines()[-1] == f"finished False step {step}"
    record = checkpoint.read_record(tmp_path / "run", "last")
    assert record.step == step > 0
    result = train(endless(step + 1), tmp_path / "run")
    assert result.step == step + 1


@pytest.mark.packaging
def test_a_second_signal_leaves_at_once(tmp_path):
    program = """
import os, signal, time
from robust_gan.parallel import interruption
with interruption.signals() as received:
    os.kill(os.getpid(), signal.SIGINT)
    print("collected", received, flush=True)
    time.sleep(2 * interruption._TOGETHER)  # Within it, two signals count as one.
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "collected [2]\n")


@pytest.mark.slow
def test_training_ends_when_patience_does_and_stays_ended(tmp_path):
    # With a rate of next to nothing no validation is better than the first.
    config = tiny("none", num_steps=20, validation=ValidationConfig(every=2, pgd_steps=1, patience=2))
    config.classifier.optimizer = OptimizerConfig(learning_rate=1e-12)
    config.classifier.ema_decay = 0.5
    said = []
    ended = train(config, tmp_path / "run", log_fn=said.append)
    # Accuracies are equal then, and the newest of equals is the best: patience never ends.
    assert ended.step == 20
    assert ended.finished
    config.num_steps, config.classifier.optimizer.learning_rate = 60, 10.0
    ended = train(config, tmp_path / "diverging", log_fn=said.append)
    best = checkpoint.read_record(tmp_path / "diverging", "best").step
    assert ended.finished
    assert ended.step == best + 4 < 60
    assert said == [f"ended at step {ended.step}: no improvement since step {best}"]
    again = train(config, tmp_path / "diverging", log_fn=said.append)
    assert again.step == ended.step


@pytest.mark.slow
def test_an_ensemble_trains_on_checkpoints_of_the_same_data_and_resumes(tmp_path):
    train(tiny("none"), tmp_path / "source")
    config = tiny("ensemble")
    config.adversary.ensemble.sources = (str(tmp_path / "source"), f"{tmp_path / 'source'}@last")
    config.adversary.ensemble.scheme = "tramer"
    whole = train(config, tmp_path / "whole", 4)
    config.num_steps = 3
    train(config, tmp_path / "parts", 4)
    config.num_steps = 6
    assert_bit_equal(whole.state, train(config, tmp_path / "parts", 4).state)
    loaded = checkpoint.load_classifier(tmp_path / "source")
    assert_bit_equal(whole.state.adversary.sources[0][0], jax.device_get(loaded.args))


def test_sources_that_are_missing_or_of_other_data_are_one_sentence_and_nothing_is_written(tmp_path):
    config = tiny("ensemble")
    config.adversary.ensemble.sources = (str(tmp_path / "none"),)
    with pytest.raises(CheckpointError, match="there is no folder"):
        train(config, tmp_path / "run")
    train(tiny("none", num_steps=1), tmp_path / "source")
    config.adversary.ensemble.sources = (str(tmp_path / "source"),)
    info = checkpoint.DataInfo("digits", (8, 8, 1), 10, ())
    for other in (
        info._replace(name="mnist"), info._replace(image_shape=(8, 8, 3)), info._replace(num_classes=11)
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"was trained on digits, images \(8, 8, 1\), 10 classes, but this run"):
            setup.load_sources(config, other)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_averaged_weights_are_what_is_validated_and_evaluated(tmp_path):
    config = tiny("generator", num_steps=3)
    config.classifier.ema_decay = 0.5
    config.adversary.generator.inputs, config.adversary.generator.num_refinements = (
        ("gradient", "perturbation", "label"),
        2,
    )
    config.adversary.generator.latent_size = 2
    ended = train(config, tmp_path / "run")
    record = checkpoint.read_record(tmp_path / "run", "last")
    images = np.random.default_rng(0).uniform(size=(6, 8, 8, 1)).astype(np.float32)
    labels, threat = np.arange(6), threat_model.from_config(config.threat)
    model = evaluator.get_model(config, ended.state, record.data)
    logits_fn = checkpoint.load_classifier(tmp_path / "run", "last")
    assert_bit_equal(logits_fn.args[0], ended.state.average.params)
    assert_bit_equal(model.logits_fn(images), logits_fn(images))
    attack = checkpoint.load_attack(tmp_path / "run", "last")
    made = [attack_fn(logits_fn, jax.random.key(0), images, labels, threat) for attack_fn in (attack, model.generator)]
    assert_bit_equal(*made)
    assert 0 < float(threat_model.distance(made[0], images, threat).max()) <= config.threat.epsilon * (1 + 1e-6)
    noise_fn = checkpoint.load_generator(tmp_path / "run", "last")
    assert noise_fn(np.zeros((1, 8, 8, 1 + 1 + 1 + 10 + 2), np.float32)).shape == (1, 8, 8, 1)


def test_a_run_whose_folder_was_removed_and_made_anew_writes_nothing_more(tmp_path, monkeypatch):
    config = tiny("none", num_steps=2)
    evaluate, other = evaluator.Evaluator.evaluate, tiny("none", num_steps=2, seed=1)

    def replaced(*arguments):
        shutil.rmtree(tmp_path / "run")
        with workdir.lock(tmp_path / "run", other):
            pass
        return evaluate(*arguments)

    monkeypatch.setattr(evaluator.Evaluator, "evaluate", replaced)
    with pytest.raises(UserError, match="was removed or replaced while this run was going: nothing more is written"):
        train(config, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == [".lock", "config.json"]

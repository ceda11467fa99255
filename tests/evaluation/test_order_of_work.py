"""What can fail on a model fails before the first attack, and nothing that comes after the attacks loses the report."""

import json
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from robust_gan import evaluation
from robust_gan.errors import UserError
from robust_gan.evaluation import alarms, batching, checks
from robust_gan.evaluation.state import Rows
from robust_gan.reporting import details, evaluation_record, evaluation_report, html, plots, record, tables
from robust_gan.reporting import folder as folder_lib
from robust_gan.reporting import run as run_lib
from robust_gan.reporting.run import additions

WEIGHTS = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.2, 0.8, (6, 4, 4, 1)).astype(np.float32)


def linear(images):
    return images.reshape(len(images), -1) @ WEIGHTS


LABELS = np.argmax(linear(IMAGES), -1)


def elsewhere():
    def ask(images):
        return np.asarray(linear(np.asarray(images)), np.float32)

    return lambda x: jax.pure_callback(ask, jax.ShapeDtypeStruct((len(x), 4), np.float32), x)


def loop():
    def logits_fn(x):
        return linear(jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * 1.0), (0, x))[1])

    return logits_fn


def whole_numbers():
    return lambda x: jnp.round(100 * linear(x)).astype(jnp.int32)


def callback_in_the_gradient():
    """Fails in the backward pass alone, and only when that runs."""

    @jax.custom_vjp
    def same(x):
        return x

    def fail(gradient):
        raise OSError("no backward pass here")

    same.defvjp(lambda x: (x, None), lambda _, g: (jax.pure_callback(fail, jax.ShapeDtypeStruct(g.shape, g.dtype), g),))
    return lambda x: linear(same(x))


WITHOUT = {"elsewhere": elsewhere, "loop": loop, "whole_numbers": whole_numbers, "gradient": callback_in_the_gradient}


def donates():
    shift = jax.jit(lambda x: x + 0.0, donate_argnums=0)
    return lambda x: linear(shift(x))


def at_most_two():
    def logits_fn(x):
        if len(x) > 2:
            raise MemoryError(f"out of memory with {len(x)} images")
        return linear(x)

    return logits_fn


def exactly_two():
    def logits_fn(x):
        if len(x) != 2:
            raise ValueError(f"exported for batches of 2, not {len(x)}")
        return linear(x)

    return logits_fn


def with_at():
    return lambda x: linear(x.at[:, 0, 0, 0].set(0.5))


@pytest.fixture
def run(tmp_path, monkeypatch, own_model):
    """Evaluates a model of a module of its own, on a few images; returns the record and the folder."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(alarms, "_STEPS", 2)

    def evaluate(make, images=IMAGES, labels=LABELS, name="f", output="out", **settings):
        given = {"attacks": "fgsm", "epsilon": 0.05, "batch_size": 2, "progress": False} | settings
        folder = tmp_path / output
        config = evaluation.EvaluationConfig(**own_model(make, images, labels, name), output=folder, **given)
        _, values = run_lib.run(config, devices=jax.devices()[:1])
        assert json.loads((folder / evaluation_record.RECORD).read_text()) == json.loads(json.dumps(values))
        return values, folder

    return evaluate


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_without_derivative_is_attacked_by_queries_and_has_its_report(run, name):
    values, _ = run(WITHOUT[name], attacks="square3")
    (target,) = values["targets"].values()
    silent = {alarm["name"]: alarm["finding"] for alarm in target["alarms"] if not alarm["asked"]}
    assert set(silent) == {"zero_gradients", "nan_gradients", "not_converged", "does_not_reach_0"}
    assert all(finding.startswith("not checked: no derivative (") for finding in silent.values())
    assert target["clean_accuracy"] == 1
    assert values["notes"] == []


@pytest.mark.parametrize("name", WITHOUT)
def test_attacks_that_follow_a_gradient_are_refused_before_anything_is_written(run, name, tmp_path):
    with pytest.raises(UserError, match=r"^fgsm, pgd2 follow the gradient of models_of_order:f, which has no derivati"):
        run(WITHOUT[name], attacks="square3,fgsm", sequential="pgd2")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("found", [False, True])
def test_a_folder_in_which_nothing_was_found_is_nobodys(tmp_path, found):
    path = epath.Path(tmp_path / "out")

    def evaluate():
        with folder_lib.lock(path):
            assert path.exists()
            kept = evaluation.EvaluationState(path / folder_lib.STATE)
            if found:
                kept.part("clean: m", 1)
                kept.save()
                kept.flush()
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        evaluate()
    assert path.exists() == found


@pytest.mark.slow
@pytest.mark.parametrize("make", [donates, at_most_two, exactly_two, with_at])
@pytest.mark.filterwarnings("ignore:Some donated buffers")
def test_models_with_a_form_of_their_own_are_scored_as_their_plain_twin(run, make):
    settings = {"attacks": "pgd2", "sequential": "fgsm", "plots": ["examples"]}
    values, folder = run(make, **settings)
    twin, _ = run(with_at if make is with_at else lambda: linear, output="twin", **settings)
    (target,), (plain,) = values["targets"].values(), twin["targets"].values()
    assert target["robust_accuracy"] == plain["robust_accuracy"]
    assert target["sequential"][-1]["robust_accuracy"] == plain["sequential"][-1]["robust_accuracy"]
    assert values["notes"] == []
    assert (folder / evaluation_record.EXAMPLES).exists()


@pytest.mark.slow
def test_what_fails_after_the_attacks_is_a_sentence_and_the_report_stays(run, monkeypatch):
    def fail(*args, **settings):
        raise MemoryError("no room for that")

    monkeypatch.setattr(alarms, "check_model", fail)
    monkeypatch.setattr(details, "write", fail)
    monkeypatch.setattr(plots, "examples", fail)
    values, folder = run(lambda: linear, plots=["examples"])
    failed = ["alarms on models_of_order:f", "details.npz", "examples.png"]
    assert values["notes"] == [f"{what}: not made: MemoryError: no room for that." for what in failed]
    text = (folder / evaluation_record.TABLES).read_text()
    assert all(f"- {note}" in text for note in values["notes"])
    assert "no room for that" in html.render(record.find([folder]))


@pytest.mark.slow
def test_a_report_that_cannot_be_written_is_told_with_what_was_found(run, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation_report, "write", fail)
    with pytest.raises(run_lib.UnwrittenError, match=r"out cannot be written \(no space left on device\)") as raised:
        run(lambda: linear)
    assert raised.value.scores.attacks == ("fgsm",)
    assert raised.value.values["data"]["count"] == len(IMAGES)


@pytest.mark.parametrize(
    ("logits_fn", "sentence"),
    [
        (
            lambda x: linear(x).astype(jnp.float16 if len(x) > 1 else jnp.float32),
            "float32 for a batch of 1, 4 logits of",
        ),
        (lambda x: linear(x)[:, : 4 - (len(x) == 4)], "mine returns 4 logits of float32 for a batch of 1, 4 logits"),
        (lambda x: linear(x[:3]), r"mine must return logits of shape \[4, K\] for 4 images, not \[3, 4\]"),
        (
            lambda x: linear(x) if len(x) < 4 else 1 / 0,
            "4, 4, 4, 1.: ZeroDivisionError: division by zero: give a",
        ),
        (lambda x: np.asarray(linear(np.asarray(x))), "mine cannot be traced by JAX"),
    ],
)
def test_a_model_is_tried_in_every_batch_shape(logits_fn, sentence):
    with pytest.raises(UserError, match=sentence):
        checks.prepare_model(evaluation.Model("mine", logits_fn), IMAGES, 4, 3)


def test_every_attack_is_traced_on_a_model():
    def narrow(x):  # Attacks hand it what clean scoring does not: a batch of another size.
        return linear(x) if len(x) <= 2 else linear(x)[:2]

    with pytest.raises(UserError, match=r"^spsa1 cannot be made on mine \("):
        checks.check_named_attacks(evaluation.Model("mine", narrow), IMAGES, _threat(), ["spsa1"], 2, "")


def test_a_randomised_model_is_refused_before_it_is_wrapped():
    from robust_gan import attacks

    noisy = attacks.randomised(lambda x, keys=None: linear(x))
    for call in (
        lambda: batching.in_batches(noisy, 2),
        lambda: batching.in_batches(jax.tree_util.Partial(noisy), 2),
        lambda: checks.prepare_model(evaluation.Model("mine", noisy), IMAGES, 4, 3),
    ):
        with pytest.raises(UserError, match=r"^(mine|the classifier) is randomised: evaluations are of determ"):
            call()


@pytest.mark.parametrize("most", [1, 2, 4, 7])
@pytest.mark.parametrize("exactly", [False, True])
def test_a_model_called_in_batches_computes_the_same_values_and_gradients(most, exactly):
    bounded = batching.in_batches(linear, most, exactly=exactly, name="mine")
    assert np.allclose(bounded(IMAGES), linear(IMAGES), atol=1e-6)
    values, gradients = jax.jit(jax.value_and_grad(lambda x: (bounded(x) ** 2).sum()))(IMAGES)
    there, theirs = jax.value_and_grad(lambda x: (linear(x) ** 2).sum())(IMAGES)
    assert np.allclose(values, there, rtol=1e-5)
    assert np.allclose(gradients, theirs, rtol=1e-4, atol=1e-5)


def _threat():
    from robust_gan import LinfThreat

    return LinfThreat(0.05)


def test_adversarial_images_of_models_of_any_name_are_written(tmp_path):
    names = ["file", "labels", "allow_pickle", "arr_0", "mit leer", "модель", "a|b", "runs/a/b"]
    additions.write_adversarial(
        tmp_path, LABELS, {name: Rows(IMAGES / (1 + index)) for index, name in enumerate(names)}
    )
    with np.load(tmp_path / evaluation_record.ADVERSARIAL, allow_pickle=False) as file:
        assert (file["labels"] == LABELS).all()
        for index, name in enumerate(names):
            assert (file[name if name != "labels" else "adversarial: labels"] == IMAGES / (1 + index)).all()


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / evaluation_record.TABLES).mkdir()
    with pytest.raises(UserError, match=r"report.md is a folder"):
        additions.check_files(tmp_path)


def test_every_model_has_a_card_of_its_own():
    names = ["модель:первая", "модель:вторая", "a|b", "a/b", "A/B", "???", "!", "x" * 400, "x" * 401, ".", ""]
    files = evaluation_record.card_names(names)
    assert len({file.casefold() for file in files.values()}) == len(names)
    assert all(3 < len(file.encode()) <= 255 and not file.startswith(".") for file in files.values())
    assert files["модель:первая"] == "модель_первая.json"


def test_a_bar_or_a_line_break_in_a_name_breaks_no_table():
    lines = tables.markdown(["model", "clean"], [["a|b\nc", "1"]]).split("\n")
    assert lines[-1] == "| a\\|b c |     1 |"
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 4, 2), (4, 4, 5), (1, 8, 12)])
def test_images_of_any_channels_and_names_of_any_letters_are_drawn(tmp_path, shape):
    pytest.importorskip("matplotlib")
    images = np.full((2, *shape), 0.5, np.float32)
    figure = plots.examples(images, ["$", "<b>"], {"$a_{b": images + 0.1}, {"$a_{b": ["$\\x$", None]})
    plots.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_plotting_library_that_does_not_work_is_told_before_anything(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"a picture needs matplotlib, which cannot be imported \("):
        plots.check_plot()


def test_attacks_are_taken_by_name_or_as_functions():
    from robust_gan import attacks

    model = evaluation.Model("m", linear)

    def towards_grey(logits_fn, key, images, labels, threat):
        return jnp.clip(0.5, images - threat.epsilon, images + threat.epsilon)

    settings = {"batch_size": 4, "devices": jax.devices()[:1]}
    scores = evaluation.evaluate_transfer(
        [model], IMAGES, LABELS, _threat(), attacks=[towards_grey, "fgsm"], **settings
    )
    assert scores.attacks == ("towards_grey", "fgsm")
    grey = np.clip(0.5, IMAGES - np.float32(0.05), IMAGES + np.float32(0.05))
    assert (scores.robust["m", "m", "towards_grey"] == (np.argmax(linear(grey), -1) == LABELS)).all()
    fgsm = scores.robust["m", "m", "fgsm"]
    standing, results = evaluation.evaluate_sequential(
        model, IMAGES, LABELS, _threat(), attacks={"one": attacks.fgsm, "grey": towards_grey}, **settings
    )
    assert [result.attack for result in results] == ["clean", "one", "grey"]
    assert (standing == fgsm & scores.robust["m", "m", "towards_grey"]).all()
    taken = attacks.autoattack(["fgsm"])
    assert (
        evaluation.evaluate_sequential(model, IMAGES, LABELS, _threat(), attacks=taken, **settings)[0] == fgsm
    ).all()
    for wrong in ([lambda *args: args[2]], [3], ["nosuch"], [attacks.fgsm, "fgsm"], [("a", "b")]):
        with pytest.raises(UserError, match=r"an attack is a name|unknown attack|given twice"):
            evaluation.evaluate_transfer([model], IMAGES, LABELS, _threat(), attacks=wrong, **settings)


@pytest.mark.packaging
def test_two_signals_together_end_a_loop_and_a_later_one_kills():
    program = """
import os, signal, sys, threading, time
from robust_gan.parallel import interruption
with interruption.signals() as received:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    print(len(received), flush=True)
    interruption._TOGETHER = 0.0
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGTERM, "1\n", "")


def test_outside_a_clone_a_config_is_named_as_a_built_in_one(tmp_path, monkeypatch, launch):
    monkeypatch.chdir(tmp_path)
    ended = launch("train", "--config=configs/digits.py:pgd", f"--workdir={tmp_path}/run")
    there = f"error: there is no config 'configs/digits.py' in {tmp_path}: the built-in one is --config=digits\n"
    assert (ended.code, ended.err) == (2, there)


def test_many_classes_are_counted_without_a_matrix_of_all(tmp_path):
    count = 40_010
    names = tuple(f"<{index}>" for index in range(count))
    labels, taken = np.array([40_000, 40_000, 40_001, 3], np.int32), np.array([7, 7, 40_001, 40_009], np.int32)
    stood = np.array([False, False, True, False])
    found = details.Details(
        labels, names, {"m": stood}, {("m", "clean"): taken}, np.zeros((0, 2, 2, 1)), np.zeros(0, int), {}, ""
    )
    details.write(tmp_path, found)
    found = details.read(tmp_path)
    assert details.most_confused(found, "m", "clean", 5) == [(40_000, 7, 2), (3, 40_009, 1)]
    means = np.array(details.per_class(found, stood))
    assert (means[[40_000, 40_001, 3]] == [0, 1, 0]).all()
    assert np.isnan(means).sum() == count - 3
    [table] = html._confusions(found, "clean", {"m": "m"})
    assert table.rows[0] == ["<40000>", "<7>", "2"]


def test_labels_of_one_byte_are_counted_right():
    labels = np.array([30, 30, 0], np.uint8)
    found = details.Details(
        labels,
        tuple(map(str, range(31))),
        {},
        {("m", "clean"): labels.astype(np.int32)},
        np.zeros(0),
        np.zeros(0),
        {},
        "",
    )
    assert details.confusion(found, "m", "clean")[30, 30] == 2


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize("name", ["fgsm", "pgd1", "square2"])
def test_attacks_that_are_not_compiled_leave_the_images_to_their_owner(name):
    from robust_gan import attacks

    images, labels = jnp.array(IMAGES), jnp.array(LABELS, jnp.int32)
    made = [attacks.by_name(name)(fn, jax.random.key(0), images, labels, _threat()) for fn in (donates(), linear)]
    assert np.allclose(made[0], made[1], atol=1e-6)
    assert (np.asarray(images) == IMAGES).all()

"""Checkpoints: bit-equal, complete in themselves, kept as promised, and never silently wrong."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_gan import LinfThreat, checkpoint, networks, parallel, perturb
from robust_gan import game as game_lib
from robust_gan.checkpoint import metadata
from robust_gan.checkpoint.manager import fill
from robust_gan.config import AdversaryConfig, Config
from robust_gan.errors import CheckpointError, UserError
from robust_gan.training import evaluator, setup

INFO = checkpoint.DataInfo("digits", (8, 8, 1), 10, tuple("0123456789"))


def small(value=0.0):
    """A state of a few arrays of every kind that is stored."""
    return {
        "key": jax.random.key(3),
        "step": np.int32(7),
        "weights": np.random.default_rng(0).normal(size=(33, 7)).astype(np.float32) + np.float32(value),
        "half": jnp.arange(4, dtype=jnp.bfloat16),
        "players": (np.arange(3, dtype=np.int32), {"count": np.zeros((), np.int32)}),
    }


def save(directory, *steps, state=None, config=None, info=INFO, **metrics):
    writer = checkpoint.Writer(directory, config or Config(), info)
    for step in steps:
        writer.save(step, small() if state is None else state, {checkpoint.SELECTION: 0.5, **metrics})
    writer.close()
    return pathlib.Path(directory) / checkpoint.FOLDER


def restore(directory, like=None, config=None):
    """Returns (state, step) of the newest whole step, and what was said."""
    said = []
    writer = checkpoint.Writer(directory, config or Config(), INFO)
    try:
        restored = writer.restore_latest(small() if like is None else like, warn=said.append)
    finally:
        writer.close()
    return restored, said


def steps_of(directory):
    return sorted(int(path.name) for path in (pathlib.Path(directory) / checkpoint.FOLDER).iterdir())


def data(leaf):
    return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def is_bit_equal(left, right):
    """Tells whether two states are equal in structure, dtypes and bits."""
    if jax.tree.structure(left) != jax.tree.structure(right):
        return False
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(a.dtype == b.dtype and data(a).tobytes() == data(b).tobytes() for a, b in pairs)


def files(folder):
    return sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file() and path.stat().st_size)


def load_run(directory):
    """The state of a run at its newest step."""
    record = checkpoint.read_record(directory, "last")
    game = game_lib.from_config(record.config, num_classes=10, channels=1)
    like = setup.initial_state(record.config, game, (8, 8, 1))
    (state, step), said = restore(directory, like, record.config)
    assert not said
    return state, step, record


def test_saved_and_restored_states_are_bit_equal(tmp_path):
    save(tmp_path, 7)
    (restored, step), said = restore(tmp_path)
    assert step == 7
    assert not said
    assert is_bit_equal(restored, small())


def test_a_whole_train_state_is_restored_with_optimisers_statistics_and_keys(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    state, step, record = load_run(run)
    assert step == int(state.step) == 2
    assert jax.dtypes.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    for player in (state.classifier, state.adversary):
        assert jax.tree.leaves(player.opt_state)
        assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(player.batch_stats))
    save(tmp_path / "again", 2, state=state, config=record.config)
    (again, _), _ = restore(tmp_path / "again", state, record.config)
    assert is_bit_equal(again, state)
    fresh = setup.initial_state(
        record.config, game_lib.from_config(record.config, num_classes=10, channels=1), (8, 8, 1)
    )
    assert not is_bit_equal(again, fresh)


def test_the_networks_of_a_checkpoint_need_nothing_else_and_equal_those_of_the_state(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    state, _, record = load_run(run)
    model = evaluator.get_model(record.config, state, record.data)
    images = np.random.default_rng(0).uniform(size=(5, 8, 8, 1)).astype(np.float32)
    assert np.array_equal(checkpoint.load_classifier(run, "last")(images), model.logits_fn(images))
    attacked = (model.logits_fn, jax.random.key(0), images, np.zeros(5, np.int32), LinfThreat(0.15))
    adversarial = model.generator(*attacked)
    assert np.array_equal(checkpoint.load_attack(run, "last")(*attacked), adversarial)
    noise = checkpoint.load_generator(run, "last")(images)
    np.testing.assert_allclose(perturb(images, noise, LinfThreat(0.15)), adversarial, atol=1e-6)
    # Given the checkpoints folder itself, as a path or as text.
    nested = str(run / checkpoint.FOLDER)
    assert np.array_equal(checkpoint.load_classifier(nested, 2)(images), model.logits_fn(images))


def test_a_second_checkpoint_of_one_architecture_is_not_compiled_again(tiny_run):
    traces = []

    @jax.jit
    def classify(logits_fn, images):
        traces.append(None)
        return logits_fn(images)

    images = jnp.full((2, 8, 8, 1), 0.5)
    first, second = (checkpoint.load_classifier(tiny_run, step) for step in (1, 2))
    assert not np.array_equal(classify(first, images), classify(second, images))
    assert len(traces) == 1
    np.testing.assert_allclose(jax.jit(lambda x: second(x))(images), second(images), rtol=1e-5, atol=1e-5)


def test_a_run_without_a_generator_says_so(tmp_path):
    save(tmp_path, 1, config=Config(adversary=AdversaryConfig(name="pgd")))
    with pytest.raises(CheckpointError, match="has no generator: its adversary is 'pgd'"):
        checkpoint.load_generator(tmp_path)


metrics = st.one_of(st.floats(0, 1), st.sampled_from([float("nan"), float("inf"), 0.5]))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(values=st.lists(metrics, min_size=1, max_size=7), restart=st.integers(0, 7), keep=st.integers(1, 2))
def test_newest_and_best_are_kept_after_any_sequence_of_metrics(tmp_path_factory, values, restart, keep):
    directory = tmp_path_factory.mktemp("kept")
    state = {"weights": np.zeros(3, np.float32)}
    config = Config(max_to_keep=keep)
    writer = checkpoint.Writer(directory, config, INFO)
    for step, value in enumerate(values, 1):
        if step == restart:  # As after a crash: what is known is what is on disk.
            writer.close()
            writer = checkpoint.Writer(directory, config, INFO)
        writer.save(step, state, {checkpoint.SELECTION: value, "validation/other": value})
    writer.close()
    finite = [value if np.isfinite(value) else -1.0 for value in values]
    best = max(range(1, len(values) + 1), key=lambda step: (finite[step - 1], step))
    newest = range(max(1, len(values) - keep + 1), len(values) + 1)
    assert steps_of(directory) == sorted({best, *newest})
    assert checkpoint.read_record(directory).step == best
    assert checkpoint.read_record(directory, "last").step == len(values)


def test_a_metric_that_is_not_a_number_is_never_the_best(tmp_path):
    writer = checkpoint.Writer(tmp_path, Config(max_to_keep=1), INFO)
    for step, value in [(1, 0.1), (2, float("nan")), (3, float("inf"))]:
        writer.save(step, small(), {checkpoint.SELECTION: value})
    writer.close()
    assert checkpoint.read_record(tmp_path).step == 1
    assert steps_of(tmp_path) == [1, 3]


def test_a_step_that_is_saved_already_is_left_alone(tmp_path):
    writer = checkpoint.Writer(tmp_path, Config(), INFO)
    for value in (0.0, 1.0):
        writer.save(1, small(value), {checkpoint.SELECTION: value})
    writer.close()
    (restored, _), _ = restore(tmp_path)
    assert is_bit_equal(restored, small(0.0))
    assert checkpoint.read_record(tmp_path).metrics == {checkpoint.SELECTION: 0.0}


def test_arrays_that_are_changed_after_saving_are_saved_as_they_were(tmp_path):
    state = small()
    writer = checkpoint.Writer(tmp_path, Config(), INFO)
    writer.save(1, state, {checkpoint.SELECTION: 0.5})
    state["weights"] += 1
    writer.close()
    (restored, _), _ = restore(tmp_path)
    assert is_bit_equal(restored, small())


def test_a_flipped_byte_is_found_or_changes_nothing(tmp_path):
    """Without digests 97 of 100 flips in the array data restore as other weights."""
    folder = save(tmp_path, 1)
    chance = random.Random(0)
    everything = files(folder / "1")
    # Every file at least once, and the data and the record, which matter most, more often.
    largest = sorted(everything, key=lambda path: path.stat().st_size)[-2:]
    found: list[str] = []
    for path in [*everything, *largest * 6]:
        whole = path.read_bytes()
        damaged = bytearray(whole)
        position = chance.randrange(len(whole))
        damaged[position] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            record = checkpoint.read_record(tmp_path, 1)
            restored = fill(small(), record)
            assert is_bit_equal(restored, small()), (path, position)
            assert (record.config, record.metrics, record.data) == (Config(), {checkpoint.SELECTION: 0.5}, INFO)
        except CheckpointError as error:
            found.append(str(error))
        finally:
            path.write_bytes(whole)
    assert len(found) >= 8
    assert all(str(folder / "1") in sentence for sentence in found)
    assert is_bit_equal(fill(small(), checkpoint.read_record(tmp_path, 1)), small())


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(step):
    return max(files(step / "state"), key=lambda path: path.stat().st_size)


DAMAGES = {
    "an array file cut in half": lambda step: truncate(largest(step)),
    "an array file removed": lambda step: largest(step).unlink(),
    "a garbled _METADATA": lambda step: (step / "state" / "_METADATA").write_bytes(b"\xff\xfe{"),
    "a garbled manifest": lambda step: truncate(step / "state" / "manifest.ocdbt"),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "no record": lambda step: shutil.rmtree(step / "config"),
    "a record cut in half": lambda step: truncate(step / "config" / "metadata"),
    "a record that is no text": lambda step: (step / "config" / "metadata").write_bytes(b"\xff\xfe\x00"),
    "a record that is no object": lambda step: (step / "config" / "metadata").write_text("[1, 2]"),
    "an empty folder": lambda step: (shutil.rmtree(step), step.mkdir()),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sound") / "run"
    writer = checkpoint.Writer(directory, Config(), INFO)
    for step in (3, 5):
        writer.save(step, small(step), {checkpoint.SELECTION: step / 10})
    writer.close()
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_a_run_goes_on_from_the_step_before(sound, tmp_path, damage, capfd):
    run = pathlib.Path(shutil.copytree(sound, tmp_path / "run"))
    step = run / checkpoint.FOLDER / "5"
    DAMAGES[damage](step)
    with pytest.raises(CheckpointError, match=r"/checkpoints/5 is damaged \(.*\): name another step, of 3"):
        fill(small(), checkpoint.read_record(run))
    (restored, at), said = restore(run)
    assert at == 3
    assert is_bit_equal(restored, small(3))
    aside = run / "checkpoints_damaged" / "5"
    assert len(said) == 1
    assert str(step) in said[0]
    assert f"it is set aside as {aside} and the step before it is used" in said[0]
    assert aside.is_dir()
    # The run comes to that step again and can save it.
    save(run, 5, state=small(6))
    (restored, at), said = restore(run)
    assert (at, said) == (5, [])
    assert is_bit_equal(restored, small(6))
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_with_no_whole_step_does_not_start_anew_in_silence(sound, tmp_path):
    run = pathlib.Path(shutil.copytree(sound, tmp_path / "run"))
    for step in ("3", "5"):
        truncate(run / checkpoint.FOLDER / step / "config" / "metadata")
    with pytest.raises(CheckpointError, match=r"no step of .* is whole: start anew in another workdir"):
        restore(run)


def test_what_orbax_can_do_without_does_not_hold_a_run_up(sound, tmp_path):
    run = pathlib.Path(shutil.copytree(sound, tmp_path / "run"))
    for path in files(run / checkpoint.FOLDER / "5"):
        if path.name in ("_METADATA", "_CHECKPOINT_METADATA", "commit_success.txt"):
            path.unlink()
    (restored, step), said = restore(run)
    assert (step, said) == (5, [])
    assert is_bit_equal(restored, small(5))


def test_what_a_killed_save_left_is_no_checkpoint_and_is_cleared(sound, tmp_path):
    run = pathlib.Path(shutil.copytree(sound, tmp_path / "run"))
    partial = run / checkpoint.FOLDER / "9.orbax-checkpoint-tmp"
    partial.mkdir()
    (partial / "state").mkdir()
    assert checkpoint.read_record(run, "last").step == 5
    assert restore(run)[0][1] == 5
    save(run, 9)
    assert checkpoint.read_record(run, "last").step == 9
    assert not partial.exists()


def test_a_folder_with_nothing_but_a_partial_save_holds_no_checkpoint(tmp_path):
    (tmp_path / checkpoint.FOLDER / "9.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        checkpoint.read_record(tmp_path)
    assert restore(tmp_path)[0] is None


@pytest.mark.parametrize("name", ["007", "²", "1.5", "-1", "best"])
def test_folders_that_are_no_step_are_not_taken_for_one(sound, tmp_path, name):
    run = pathlib.Path(shutil.copytree(sound, tmp_path / "run"))
    (run / checkpoint.FOLDER / name).mkdir()
    assert checkpoint.read_record(run, "last").step == 5
    assert restore(run)[0][1] == 5


def edit_record(step, **changes):
    path = step / "config" / "metadata"
    path.write_text(json.dumps(metadata.signed(json.loads(path.read_text()) | changes)))


def remove_digest(step):
    path = step / "config" / "metadata"
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("number", [checkpoint.FORMAT - 1, checkpoint.FORMAT + 1])
@pytest.mark.parametrize("signed", [True, False])
def test_another_format_is_told_and_not_set_aside(sound, tmp_path, number, signed):
    run = pathlib.Path(shutil.copytree(sound, tmp_path / "run"))
    edit_record(run / checkpoint.FOLDER / "5", format=number)
    if not signed:
        remove_digest(run / checkpoint.FOLDER / "5")
    sentence = rf"5 has format {number}, and this version of robust_gan reads format {checkpoint.FORMAT} alone: load it"
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.read_record(run)
    with pytest.raises(CheckpointError, match=sentence):
        restore(run)
    assert steps_of(run) == [3, 5]


def test_weights_of_another_revision_of_a_network_are_refused(sound, tmp_path, monkeypatch):
    """Weights that were trained under another padding would be read without a word and give wrong numbers."""
    run = pathlib.Path(shutil.copytree(sound, tmp_path / "run"))
    saved = json.loads((run / checkpoint.FOLDER / "5" / "config" / "metadata").read_text())
    name = saved["config"]["classifier"]["network"]
    assert saved["networks"][name] == 1
    del saved["networks"]
    (run / checkpoint.FOLDER / "5" / "config" / "metadata").write_text(json.dumps(metadata.signed(saved)))
    assert checkpoint.read_record(run, 5).step == 5  # From before there were revisions: the first.
    monkeypatch.setitem(networks.REVISIONS, name, 2)
    for step in (3, 5):
        with pytest.raises(CheckpointError, match=f"{step} is of another network '{name}' than that of this version"):
            checkpoint.read_record(run, step)
    with pytest.raises(CheckpointError, match="is of another network"):
        restore(run)


def test_a_record_without_its_digest_is_damaged(sound, tmp_path):
    run = pathlib.Path(shutil.copytree(sound, tmp_path / "run"))
    remove_digest(run / checkpoint.FOLDER / "5")
    with pytest.raises(CheckpointError, match=r"5 is damaged \(.*it has no digest\)"):
        checkpoint.read_record(run, 5)


def test_a_folder_that_was_renamed_to_another_step_is_found_out(sound, tmp_path):
    run = pathlib.Path(shutil.copytree(sound, tmp_path / "run"))
    (run / checkpoint.FOLDER / "5").rename(run / checkpoint.FOLDER / "50")
    with pytest.raises(CheckpointError, match="it is that of step 5"):
        checkpoint.read_record(run, 50)


def test_another_architecture_names_the_first_array_that_differs(tmp_path, tiny_run):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"of another architecture: weights is float32\[33, 7\] there and "
                                              r"float32\[33, 8\] here"):  # fmt: skip
        restore(tmp_path, small() | {"weights": np.zeros((33, 8), np.float32)})
    with pytest.raises(CheckpointError, match="of another architecture: it has no array biases"):
        restore(tmp_path, small() | {"biases": np.zeros(3)})
    # Orbax would cast it in silence.
    with pytest.raises(CheckpointError, match=r"weights is float32\[33, 7\] there and bfloat16\[33, 7\] here"):
        restore(tmp_path, small() | {"weights": jnp.zeros((33, 7), jnp.bfloat16)})
    assert steps_of(tmp_path) == [1]


@pytest.mark.parametrize(("saved_on", "loaded_on"), [(4, 1), (1, 4), (4, 2)])
def test_restores_on_another_number_of_devices(tmp_path, saved_on, loaded_on):
    state = parallel.replicate(small(), parallel.find_devices(num_devices=saved_on))
    save(tmp_path, 1, state=state)
    (restored, _), _ = restore(tmp_path)
    devices = parallel.find_devices(num_devices=loaded_on)
    placed = parallel.replicate(restored, devices)
    assert is_bit_equal(jax.device_get(placed["weights"]), small()["weights"])
    assert is_bit_equal(restored, small())


def test_an_array_that_is_spread_over_devices_is_saved_whole(tmp_path):
    mesh = jax.sharding.Mesh(np.asarray(parallel.find_devices()), ("batch",))
    spread = jax.device_put(
        np.arange(8.0, dtype=np.float32), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    )
    save(tmp_path, 1, state={"x": spread})
    (restored, _), _ = restore(tmp_path, {"x": spread})
    assert np.array_equal(restored["x"], np.arange(8.0))


ELSEWHERE = """
import sys
from robust_gan import checkpoint
import jax, numpy as np
assert len(jax.devices()) == 1
print(np.asarray(checkpoint.load_classifier(sys.argv[1], 2)(np.full((1, 8, 8, 1), 0.5, np.float32))).tobytes().hex())
"""


@pytest.mark.slow
def test_a_process_with_fewer_devices_loads_the_same_classifier(tiny_run):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    ended = subprocess.run([sys.executable, "-c", ELSEWHERE, tiny_run], env=environment, capture_output=True, text=True,
                           timeout=60, check=True)  # fmt: skip
    there = np.frombuffer(bytes.fromhex(ended.stdout.strip()), np.float32)
    here = checkpoint.load_classifier(tiny_run, 2)(np.full((1, 8, 8, 1), 0.5, np.float32))
    np.testing.assert_allclose(there, np.asarray(here)[0], rtol=1e-5, atol=1e-5)


def test_paths_may_be_relative_or_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save("runs/a", 1)
    assert (tmp_path / "runs" / "a" / checkpoint.FOLDER / "1").is_dir()
    assert checkpoint.read_record("runs/a").step == checkpoint.read_record("~/runs/a").step == 1
    assert restore("runs/a")[0][1] == restore("~/runs/a")[0][1] == 1


def test_a_path_may_hold_an_at_sign(tmp_path):
    for name in ("me@home/a", "run@lab", "run@3"):
        save(tmp_path / name, 1)
    for text, expected in [
        ("me@home/a", ("me@home/a", "best")),
        ("me@home/a@1", ("me@home/a", 1)),
        ("run@lab", ("run@lab", "best")),
        ("run@lab@last", ("run@lab", "last")),
        ("run@3@best", ("run@3", "best")),
        ("run@3", ("run", 3)),
    ]:
        directory, step = checkpoint.parse_location(f"{tmp_path}/{text}")
        assert (os.path.relpath(directory, tmp_path), step) == expected
        if expected[0] != "run":
            assert checkpoint.read_record(directory, step).step == 1


@pytest.mark.parametrize("text", ["a@", "a@newest", "a@-1", "a@1.5", "a@²", "@1", "a@007", "a@" + "9" * 30])
def test_a_step_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="the step of a checkpoint is a number, best or last, not"):
        checkpoint.parse_location(text)


def test_a_step_that_a_running_training_drops_meanwhile_is_not_missed(sound, tmp_path, monkeypatch):
    run = pathlib.Path(shutil.copytree(sound, tmp_path / "run"))
    read = metadata.read_step

    def dropped(folder, step):
        if step == 3:
            shutil.rmtree(folder / "3")
        return read(folder, step)

    monkeypatch.setattr(metadata, "read_step", dropped)
    assert checkpoint.read_record(run).step == 5


def test_missing_checkpoints_are_named(sound, tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere: give the workdir of a run"):
        checkpoint.read_record(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no finished checkpoint: train first, or name another folder"):
        checkpoint.read_record(tmp_path)
    with pytest.raises(CheckpointError, match="has no step 4: the steps there are 3, 5"):
        checkpoint.read_record(sound, 4)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file: give the workdir of a run, which is a folder"):
        checkpoint.read_record(tmp_path / "file")


def test_a_full_disk_is_a_sentence_whether_it_shows_at_once_or_at_the_end(tmp_path, monkeypatch):
    """A disk cannot be filled here, so what Orbax says of one is said by hand; tried with a small tmpfs too."""

    def full(*_, **__):
        raise ValueError('RESOURCE_EXHAUSTED: Error writing "w/0"\nand more')

    sentence = r"^checkpoints cannot be written to \S+ \(RESOURCE_EXHAUSTED[^\n]*\): make room there, or give a workdir"
    hook = sys.unraisablehook
    writer = checkpoint.Writer(tmp_path, Config(), INFO)
    with monkeypatch.context() as patched:
        patched.setattr(type(writer._manager), "save", full)
        with pytest.raises(CheckpointError, match=sentence):
            writer.save(1, small(), {checkpoint.SELECTION: 0.5})
    writer.save(1, small(), {checkpoint.SELECTION: 0.5})
    with monkeypatch.context() as patched:
        patched.setattr(type(writer._manager), "wait_until_finished", full)
        with pytest.raises(CheckpointError, match=sentence):
            writer.close()
    assert sys.unraisablehook is hook
    writer._manager.close()  # Else its thread goes on into the interpreter's end, and reports that.


UNWRITABLE = """
import os, sys
import numpy as np
from robust_gan import checkpoint
from robust_gan.config import Config
from robust_gan.errors import CheckpointError
def save(directory):
    writer = checkpoint.Writer(directory, Config(), checkpoint.DataInfo("digits", (8, 8, 1), 10, ()))
    writer.save(1, {"x": np.zeros(3)}, {"selection": 0.5})
    writer.close()
if os.geteuid() == 0:
    # Permissions do not hold root back, and nobody may not read what is imported late.
    save(sys.argv[2])
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
try:
    save(sys.argv[1])
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ready", [False, True], ids=["no checkpoints folder", "a checkpoints folder"])
def test_a_folder_that_cannot_be_written_is_a_sentence_and_the_process_ends(tmp_path, ready):
    """Plain Orbax waits for five minutes at exit."""
    run = tmp_path / "run"
    run.mkdir()
    if ready:
        (run / checkpoint.FOLDER).mkdir()
        (run / checkpoint.FOLDER).chmod(0o555)
    run.chmod(0o555)
    for parent in run.parents:
        if os.geteuid() == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    started = time.monotonic()
    # What measures coverage could not write either.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    ended = subprocess.run([sys.executable, "-c", UNWRITABLE, run, tmp_path / "other"], capture_output=True, text=True,
                           env=environment, timeout=60, check=True)  # fmt: skip
    assert time.monotonic() - started < 20
    assert ended.stdout.startswith(f"checkpoints cannot be written to {run / checkpoint.FOLDER} (")
    assert "ermission denied" in ended.stdout
    assert "Traceback" not in ended.stderr

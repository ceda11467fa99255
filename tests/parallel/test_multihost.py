"""Several processes are one: the same shares, parameters, figures and files; and how they end."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_config
from conftest import ROOT

from robust_gan import parallel, training
from robust_gan.errors import UserError
from robust_gan.evaluation import EvaluationConfig
from robust_gan.reporting import run
from robust_gan.storage import leaves, workdir

pytestmark = pytest.mark.remote
TESTS = ROOT / "tests"
TIMEOUT = 600
TRAIN = [sys.executable, "launch/train.py", "--config=tests/tiny_config.py"]


def environment(devices=1):
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", f"device_count={devices}")
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}


def free_port():
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


def train_alone(directory, num_steps, devices, every=3, **settings):
    config = tiny_config.get_config()
    config.num_steps, config.validation.every = num_steps, every
    devices = parallel.find_devices(num_devices=devices)
    return training.train(
        config, directory, devices=devices, progress=False, **{"log_fn": lambda text: None, **settings}
    )


def without_warnings(said):
    """These networks learn nothing, which a run says too."""
    return [sentence for sentence in said if not sentence.startswith("warning at step")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes of two devices each found, and their folder."""
    folder, port = tmp_path_factory.mktemp("pair"), free_port()
    command = [sys.executable, str(TESTS / "pod_program.py"), str(port)]
    started = [
        subprocess.Popen(
            [*command, str(process), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment(devices=2), cwd=ROOT,
        )
        for process in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(2)], folder


def test_each_holds_its_share_and_gets_the_whole(pair):
    (first, second), _ = pair
    assert first["devices"] == second["devices"] == [0, 0, 1, 1]
    assert (first["share"], second["share"]) == ([[0, 1], [2, 3]], [[4, 5], [6, 7]])
    assert first["joined"] == second["joined"] == list(range(8))


def test_what_the_first_found_all_have_bit_for_bit(pair):
    (first, second), _ = pair
    assert first["broadcast_from_primary"] == second["broadcast_from_primary"] == ["first", 0]
    state = {"x": np.array([-0.0, np.nan, 0], np.float32), "key": jax.random.key(0), "flag": np.array(True)}
    assert first["state"] == second["state"]
    assert first["state"] == [7, *(leaves.digest(leaves.to_host(leaf)) for leaf in jax.tree.leaves(state))]


def test_a_failure_of_one_is_told_to_all(pair):
    (first, second), _ = pair
    assert first["first_fails"] == "the folder is full"
    assert second["first_fails"] == "process 0 of 2: the folder is full"
    assert first["one_fails"] == "process 1 of 2: there is no data here"
    assert second["one_fails"] == "there is no data here"


def test_processes_that_disagree_are_refused_by_the_name_of_the_field(pair):
    for found in pair[0]:
        assert found["same"] == ""
        assert found["not_same"].startswith("processes 0 and 1 of 2 disagree on a.b (0 != 1): start all")
        assert found["train_not_same"].startswith("processes 0 and 1 of 2 disagree on config.seed (0 != 1): start all")


def test_the_end_is_agreed_one_question_later(pair):
    for found in pair[0]:
        assert found["agreed"] == [False, False, False, True, False]


def test_two_processes_are_one_with_as_many_devices(pair, tiny_names, tmp_path):
    (first, second), folder = pair
    assert first["digests"] == second["digests"]
    assert first["validation"] == second["validation"]
    alone = train_alone(tmp_path / "run", 6, 4)
    assert first["validation"] == alone.validation
    together = np.load(folder / "0.npz")
    for name, leaf in leaves.named(alone.state).items():
        np.testing.assert_allclose(np.asarray(leaf, np.float64), together[name], atol=1e-5, err_msg=name)


def test_the_first_alone_writes_and_says(pair):
    (first, second), folder = pair
    assert without_warnings(first["said"]) == [f"resuming from step 4 of {folder / 'run'}"]
    assert second["said"] == []
    lines = [json.loads(line) for line in (folder / "run" / workdir.METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 4, 6, 6]


def test_two_processes_evaluate_as_one_and_write_one_report(pair, tiny_names):
    (first, second), folder = pair
    tiny_config.get_config()
    settings = {
        "attacks": "clean,fgsm,generator",
        "sequential": "pgd2",
        "num_examples": 30,
        "batch_size": 20,
        "progress": False,
    }
    # The finished evaluation is found again, by another number of processes.
    scores, values = run.run(EvaluationConfig([str(folder / "run@6")], output=folder / "report", **settings))
    alone, _ = run.run(EvaluationConfig([str(folder / "run@6")], **settings))
    for found in (first, second):
        assert found["scores"] == {" of ".join(key): held.tolist() for key, held in scores.robust.items()}
        assert found["scores"] == {" of ".join(key): held.tolist() for key, held in alone.robust.items()}
        assert found["sequential"] == [result["robust_accuracy"] for result in values["targets"]["run"]["sequential"]]


def test_one_process_goes_on_where_two_stopped(pair, tiny_names, tmp_path):
    _, folder = pair
    said = []
    resumed = train_alone(folder / "run", 8, 4, log_fn=said.append)
    assert without_warnings(said) == [f"resuming from step 6 of {folder / 'run'}"]
    assert resumed.step == 8
    whole = train_alone(tmp_path / "run", 8, 4)
    for name, leaf in leaves.named(whole.state).items():
        there = leaves.named(resumed.state)[name]
        np.testing.assert_allclose(np.asarray(leaf, np.float64), np.asarray(there), atol=1e-5, err_msg=name)


@contextlib.contextmanager
def endless_pod(directory):
    """A pod of two that trains until it is stopped, once it has written metrics: it, and the ids of its processes."""
    settings = ["--config.num_steps=1000000", "--config.validation.every=1000000", "--config.log_every=5"]
    process = subprocess.Popen(
        ["bash", "launch/local_pod.sh", "2", "--", *TRAIN, f"--workdir={directory}", *settings],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), cwd=ROOT,
    )  # fmt: skip
    try:
        end = time.monotonic() + TIMEOUT
        while not (directory / workdir.METRICS).exists() or not (directory / workdir.METRICS).stat().st_size:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.1)
        yield process, members(directory)
    finally:
        process.kill()
        for number in members(directory):
            os.kill(number, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def members(directory):
    """The ids of the running processes of a pod, in their order."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if f"--workdir={directory}" in words and "launch/train.py" in words[:3]:
                found[words[-3].rpartition("=")[2]] = int(path.parent.name)
    return [found[name] for name in sorted(found)]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the processes in /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_the_partner_of_a_killed_process_ends_within_a_minute_with_a_sentence(tmp_path, killed):
    with endless_pod(tmp_path / "run") as (pod, numbers):
        began = time.monotonic()
        os.kill(numbers[killed], signal.SIGKILL)
        output, _ = pod.communicate(timeout=60)
        assert time.monotonic() - began < 60
    assert pod.returncode == (137 if killed == 0 else 1)
    left = [line for line in output.splitlines() if line.startswith(f"[{1 - killed}]")]
    assert any("error: process" in line and "start all of them again" in line for line in left), output
    assert "Traceback" not in output


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the processes in /proc")
def test_a_signal_to_one_stops_all_at_the_same_step_and_saves(tmp_path, tiny_names):
    with endless_pod(tmp_path / "run") as (pod, numbers):
        os.kill(numbers[1], signal.SIGTERM)
        output, _ = pod.communicate(timeout=60)
    assert pod.returncode == 0, output
    stopped = [line for line in output.splitlines() if "stopped at step" in line]
    assert len(stopped) == 1
    step = int(stopped[0].split("stopped at step ")[1].split()[0])
    said = []
    train_alone(tmp_path / "run", step + 1, 2, every=1000000, log_fn=said.append)
    assert without_warnings(said) == [f"resuming from step {step} of {tmp_path / 'run'}"]


def join(*flags):
    return subprocess.run(
        [*TRAIN, "--workdir=/nosuch", *flags], capture_output=True, text=True, timeout=TIMEOUT, check=False,
        env=environment(), cwd=ROOT,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("process", "sentence"),
    [
        (1, r"error: process 1 of 2 waited 1 s for the coordinator 127.0.0.1:{port}, and nobody answers there"),
        (0, r"error: process 0 of 2 waited 1 s at the coordinator 127.0.0.1:{port}, and not all of the processes came"),
    ],
)
def test_who_waits_in_vain_says_for_what(process, sentence):
    port = free_port()
    ended = join(f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={process}", "--join_timeout=1")
    assert ended.returncode == 2
    assert ended.stderr.startswith(sentence.format(port=port))
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("", 2, 0), r"--coordinator is missing: give all of"),
        (("10.0.0.1:1234", None, 0), r"--num_processes is missing"),
        (("10.0.0.1", 2, 0), r"must be HOST:PORT, such as 10.0.0.1:1234, not '10.0.0.1'"),
        (("10.0.0.1:99999", 2, 0), r"must be HOST:PORT"),
        (("10.0.0.1:1234", 2, 2), r"--process_id must be in 0..num_processes - 1"),
        (("10.0.0.1:1234", 0, 0), r"num_processes at least 1"),
    ],
)
def test_what_cannot_be_joined_is_one_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        parallel.connect(*arguments)
    with pytest.raises(UserError, match="at least 1 s"):
        parallel.connect("10.0.0.1:1234", 2, 0, timeout=0)


def test_one_process_alone_asks_nobody():
    assert parallel.process_index_and_count() == (0, 1)
    assert parallel.broadcast_from_primary(lambda: 3) == 3
    assert parallel.run_on_all_processes(lambda: 3) == 3
    assert [parallel.StopConsensus([]).reached(wants) for wants in (False, True)] == [False, True]
    assert not parallel.is_lost(ValueError("Gloo all-reduce failed"))

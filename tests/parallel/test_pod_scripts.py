"""The scripts for many machines: what they would call, and what they do where a call fails. Clusters are pretended."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.remote

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
COMMAND = ("--", "python", "launch/train.py", "--config=configs/digits.py", "--workdir=gs://bucket/a run")
TPU = ("--name=gan", "--zone=us-central2-b", "--type=v4-16")
PRETENDED = """#!/usr/bin/env bash
printf '%q ' "$(basename "$0")" "$@" >> "$CALLS"
echo >> "$CALLS"
case "$*" in
  *describe*) echo "$STATE" ;;
  *launch/train.py*) [ "$(grep -c launch/train.py "$CALLS")" -gt "$FAILURES" ] ;;
esac
"""


@pytest.fixture
def cluster(tmp_path):
    """Runs a script where `gcloud` and `sbatch` write down how they are called."""
    (tmp_path / "bin").mkdir()
    for name in ("gcloud", "sbatch"):
        (tmp_path / "bin" / name).write_text(PRETENDED)
        (tmp_path / "bin" / name).chmod(0o755)
    calls = tmp_path / "calls"

    def run(script, *arguments, failures=0, state="READY", there=True):
        calls.write_text("")
        path = os.pathsep.join([*([str(tmp_path / "bin")] if there else []), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "CALLS": str(calls), "FAILURES": str(failures), "STATE": state}
        ended = subprocess.run(
            ["bash", str(ROOT / "launch" / script), *arguments],
            capture_output=True, text=True, timeout=60, check=False, env=environment, cwd=tmp_path,
        )  # fmt: skip
        return ended, [shlex.split(line.replace("$'", "'")) for line in calls.read_text().splitlines()]

    return run


def verbs(calls):
    """What gcloud is asked for, in order."""
    return [call[4] for call in calls]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    found = shutil.which("shellcheck") or shutil.which("shellcheck", path=os.path.dirname(sys.executable))
    if not found:
        pytest.skip("shellcheck is not installed")
    ended = subprocess.run([found, "-x", str(path)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.stdout == ""


def test_a_tpu_is_made_filled_run_on_emptied_and_deleted(cluster):
    ended, calls = cluster("tpu.sh", *TPU, "--project=mine", "--collect=runs/a", *COMMAND)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert verbs(calls) == ["create", "scp", "ssh", "ssh", "scp", "delete"]
    assert all(call[0] == "gcloud" and {"--zone=us-central2-b", "--project=mine"} <= set(call) for call in calls)
    assert {"--accelerator-type=v4-16", "--version=tpu-ubuntu2204-base"} <= set(calls[0])
    assert "--spot" not in calls[0]
    ran = next(word for word in calls[3] if word.startswith("--command="))
    assert ran.endswith(r"python launch/train.py --config=configs/digits.py --workdir=gs://bucket/a\ run --distributed")
    assert "--worker=all" in calls[3]
    assert calls[4][-2:] == ["--zone=us-central2-b", "--project=mine"] or "--worker=0" in calls[4]
    assert "--quiet" in calls[5]


def test_a_tpu_that_was_taken_away_is_made_again(cluster):
    ended, calls = cluster("tpu.sh", *TPU, "--spot", *COMMAND, failures=1, state="PREEMPTED")
    assert ended.returncode == 0
    assert ended.stderr == "gan was preempted (its state is PREEMPTED): creating it again\n"
    assert verbs(calls) == [
        "create",
        "scp",
        "ssh",
        "ssh",
        "describe",
        "delete",
        "create",
        "scp",
        "ssh",
        "ssh",
        "delete",
    ]
    assert "--spot" in calls[0]


def test_a_run_that_fails_by_itself_is_not_repeated_and_the_tpu_is_deleted(cluster):
    ended, calls = cluster("tpu.sh", *TPU, "--spot", *COMMAND, failures=9)
    assert ended.returncode == 1
    assert verbs(calls) == ["create", "scp", "ssh", "ssh", "describe", "delete"]
    assert verbs(cluster("tpu.sh", *TPU, "--keep", *COMMAND)[1])[-1] == "ssh"


def test_a_dry_run_prints_what_would_be_called_and_calls_nothing(cluster):
    for script, flags in (("tpu.sh", TPU), ("slurm.sh", ("--nodes=2", "--gpus_per_node=4"))):
        real = cluster(script, *flags, *COMMAND)[1]
        ended, calls = cluster(script, *flags, "--dry_run", *COMMAND, there=False)
        assert (ended.returncode, ended.stderr, calls) == (0, "", [])
        printed = [shlex.split(line.replace("$'", "'")) for line in ended.stdout.splitlines()]
        assert [call[:5] for call in printed] == [call[:5] for call in real]
        assert printed[-1] == real[-1]


@pytest.mark.parametrize(
    ("flags", "tasks", "told"),
    [
        (("--gpus_per_node=4",), 1, "env JAX_LOCAL_DEVICE_IDS=0,1,2,3 python"),
        (("--gpus_per_node=4", "--per=gpu"), 4, "python"),
        ((), 1, "python"),
    ],
)
def test_slurm_starts_a_process_for_each_node_or_gpu(cluster, flags, tasks, told):
    ended, calls = cluster("slurm.sh", "--nodes=2", "--partition=fast", *flags, *COMMAND)
    assert ended.returncode == 0
    (call,) = calls
    assert {"--nodes=2", f"--ntasks-per-node={tasks}", "--partition=fast", "--signal=TERM@120", "--requeue"} <= set(
        call
    )
    assert ("--gpus-per-node=4" in call) == bool(flags)
    wrapped = shlex.join(shlex.split(call[-1].removeprefix("--wrap=")))
    assert wrapped.startswith(f"srun --kill-on-bad-exit=0 {told} launch/train.py")
    assert wrapped.endswith("'--workdir=gs://bucket/a run' --distributed")


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("tpu.sh", ("--zone=a", "--type=v4-8", *COMMAND), "--name must be given"),
        ("tpu.sh", ("--name=$(ls)", "--zone=a", "--type=v4-8", *COMMAND), "--name must be given, in small letters"),
        ("tpu.sh", TPU, "there is no command"),
        ("tpu.sh", (*TPU, "--retries=x", *COMMAND), "--retries must be a number"),
        ("tpu.sh", (*TPU, "--collect=../a", *COMMAND), "--collect must be a folder below the code"),
        ("tpu.sh", (*TPU, "--spott", *COMMAND), "unexpected argument '--spott'"),
        ("slurm.sh", ("--nodes=0", *COMMAND), "--nodes must be at least 1, not '0'"),
        ("slurm.sh", ("--per=gpu", *COMMAND), "--per=gpu needs --gpus_per_node"),
        ("slurm.sh", ("--per=rack", *COMMAND), "--per must be node or gpu"),
        ("slurm.sh", ("runs", *COMMAND), "unexpected argument 'runs'"),
        ("slurm.sh", ("--name=a b", *COMMAND), "--name must be letters"),
        ("local_pod.sh", ("0", *COMMAND), "the number of processes must be at least 1, not '0'"),
        ("local_pod.sh", ("2", "python"), "there is no command"),
        ("local_pod.sh", (), "the number of processes must be at least 1"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_called(cluster, script, arguments, sentence):
    ended, calls = cluster(script, *arguments)
    assert (ended.returncode, calls) == (2, [])
    assert ended.stderr.startswith(f"error: {sentence}")
    assert ended.stderr.count("\n") == 1


def test_without_the_tools_of_a_cluster_it_says_which(cluster):
    for script, flags, tool in (("tpu.sh", TPU, "gcloud"), ("slurm.sh", (), "sbatch")):
        if shutil.which(tool):
            continue
        ended, _ = cluster(script, *flags, *COMMAND, there=False)
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"error: there is no {tool} here")


def test_a_local_pod_numbers_its_processes_and_ends_with_the_first_failure(cluster):
    ended, _ = cluster("local_pod.sh", "3", "--dry_run", *COMMAND)
    lines = [shlex.split(line) for line in ended.stdout.splitlines()]
    assert [line[-2] for line in lines] == [f"--process_id={number}" for number in range(3)]
    assert len({line[-4] for line in lines}) == 1
    assert lines[0][-4].startswith("--coordinator=127.0.0.1:")
    program = "import sys; print(sys.argv[-2]); sys.exit(3 if sys.argv[-2].endswith('1') else 0)"
    ended, _ = cluster("local_pod.sh", "3", "--", sys.executable, "-c", program)
    assert ended.returncode == 3
    assert sorted(ended.stdout.splitlines()) == [f"[{number}] --process_id={number}" for number in range(3)]


@pytest.mark.parametrize(
    ("kind", "runtime"), [("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v4-8", "tpu-ubuntu2204-base")]
)
def test_the_runtime_is_that_of_the_type(cluster, kind, runtime):
    flags = [flag for flag in TPU if not flag.startswith("--type=")]
    ended, _ = cluster("tpu.sh", *flags, f"--type={kind}", "--dry_run", *COMMAND)
    assert f"--version={runtime}" in ended.stdout
    ended, _ = cluster("tpu.sh", *flags, f"--type={kind}", "--version=mine", "--dry_run", *COMMAND)
    assert "--version=mine" in ended.stdout

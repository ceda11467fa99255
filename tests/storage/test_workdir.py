"""The folder of a run: whose it is, one process at a time, and lines that continue where a checkpoint stands."""

import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from robust_gan import checkpoint
from robust_gan.config import Config, DataConfig, ThreatConfig, to_dict
from robust_gan.errors import UserError
from robust_gan.storage import workdir
from robust_gan.version import __version__


def tree(folder):
    """What lies below a folder: names, and the contents of files."""
    return {path: path.read_bytes() if path.is_file() else None for path in pathlib.Path(folder).rglob("*")}


def claim(directory, config=None):
    with workdir.lock(directory, config or Config()) as claimed:
        return claimed.path


def written(config):
    """What `config.json` holds."""
    return {"robust_gan": __version__, **to_dict(config)}


def test_a_claimed_folder_is_made_and_holds_the_configuration(tmp_path):
    path = claim(tmp_path / "runs" / "a", Config(seed=3))
    assert path == epath.Path(tmp_path / "runs" / "a")
    assert json.loads((path / workdir.CONFIG).read_text()) == written(Config(seed=3))


def test_relative_paths_and_a_tilde_are_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert os.fspath(claim("a")) == str(tmp_path / "a")
    assert os.fspath(claim("~/b")) == str(tmp_path / "home" / "b")


@pytest.mark.parametrize("change", [{"num_steps": 7}, {"log_every": 3}, {"max_to_keep": 9}])
def test_a_run_may_go_on_with_what_does_not_touch_a_step(tmp_path, change):
    claim(tmp_path)
    claim(tmp_path, Config(**change))
    assert json.loads((tmp_path / workdir.CONFIG).read_text()) == written(Config(**change))


def test_another_configuration_is_refused_with_the_fields_that_differ(tmp_path):
    claim(tmp_path)
    before = tree(tmp_path)
    other = Config(seed=1, threat=ThreatConfig(epsilon=0.3), data=DataConfig(name="mnist"))
    with pytest.raises(UserError, match="another configuration") as caught:
        claim(tmp_path, other)
    for field in ("seed: 0 != 1", "threat.epsilon: 0.15 != 0.3", "data.name: 'digits' != 'mnist'"):
        assert field in str(caught.value)
    assert "batch_size" not in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"sed": 0}', json.dumps(to_dict(Config()) | {"seed": "0"}), "[" * 100000, " " * 2000000,
     json.dumps(to_dict(Config()) | {"nosuch": 1}), json.dumps(to_dict(Config()) | {"threat": 3}), "\x00"],
    ids=lambda text: f"{text[:20]!r} of {len(text)}",
)  # fmt: skip
def test_a_config_that_is_none_is_refused_and_left_as_it_is(tmp_path, text):
    (tmp_path / workdir.CONFIG).write_text(text)
    with pytest.raises(UserError, match=r"config.json is not a configuration \(.*\): give another workdir"):
        claim(tmp_path)
    assert tree(tmp_path) == {tmp_path / workdir.CONFIG: text.encode()}


def test_a_config_that_is_no_text_or_a_folder_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / workdir.CONFIG).write_bytes(b"\xff\xfe")
    (tmp_path / "b" / workdir.CONFIG).mkdir(parents=True)
    for name in ("a", "b"):
        with pytest.raises(UserError, match=r"config.json is not a configuration"):
            claim(tmp_path / name)


def test_a_file_and_what_lies_below_one_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"the workdir .*/file is a file: give a folder"):
        claim(tmp_path / "file")
    with pytest.raises(UserError, match=r"the workdir .*/file/a/b lies below the file .*/file: give a folder"):
        claim(tmp_path / "file" / "a" / "b")
    assert tree(tmp_path) == {tmp_path / "file": b"mine"}


def test_a_folder_that_cannot_be_made_is_refused():
    # Nobody can make a folder there, root included.
    with pytest.raises(UserError, match=r"the workdir /proc/nosuch/run cannot be written \(.*\): give a folder"):
        claim("/proc/nosuch/run")


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch, exists):
    # Permissions do not hold root back, so what the system says is said here.
    folder = tmp_path / "run"
    if exists:
        folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"the workdir .*/run cannot be written \(permission denied\)"):
        claim(folder)
    assert tree(tmp_path) == ({folder: None} if exists else {})


def test_two_at_once_are_refused_and_the_first_is_not_disturbed(tmp_path):
    with workdir.lock(tmp_path, Config()):
        before = tree(tmp_path)
        with pytest.raises(UserError, match=r"another process is training in .*: wait for it, or give another workdir"):
            claim(tmp_path)
        assert tree(tmp_path) == before
    claim(tmp_path)


HOLD = """
import sys, time
from robust_gan.storage import workdir
from robust_gan.config import Config
with workdir.lock(sys.argv[1], Config()):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.packaging
def test_the_lock_of_a_living_process_holds_and_that_of_a_killed_one_is_free(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training"):
            claim(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    claim(tmp_path)


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "config.json"
    workdir.write_text(path, "first")
    with pytest.raises(UnicodeEncodeError):
        workdir.write_text(path, "half\ud800")
    assert path.read_text() == "first"
    # A process that dies between writing and renaming leaves the old text; the next write wins over what it left.
    with monkeypatch.context() as patched:
        patched.setattr(type(path), "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            workdir.write_text(path, "second")
    assert path.read_text() == "first"
    workdir.write_text(path, "third")
    assert tree(tmp_path) == {tmp_path / "config.json": b"third"}


def test_lines_after_the_step_and_lines_that_were_cut_or_garbled_are_dropped(tmp_path):
    path = epath.Path(tmp_path) / workdir.METRICS
    kept = ['{"step": 1, "a": 0.5}', '{"step": 2, "a": 0.25}']
    path.write_bytes(
        "\n".join([kept[0], '{"a": 1}', '{"step": "2"}', "[1]", "", kept[1], '{"step": 3, "a": 1}']).encode()
        + b'\n{"step": 1, "name": "\xff"}\n\x00\x00\x00\n{"step": 2, "a": 0.1'
    )
    lines = workdir.JsonlWriter(path, step=2)
    lines.write(3, {"a": 0.125})
    assert path.read_text().splitlines() == [*kept, '{"step": 3, "a": 0.125}']
    lines.close()


def test_lines_of_a_new_run_begin_empty(tmp_path):
    path = epath.Path(tmp_path) / workdir.METRICS
    workdir.JsonlWriter(path, step=0).close()
    assert path.read_text() == ""


def test_a_folder_that_was_removed_and_made_anew_is_no_longer_ours(tmp_path):
    with workdir.lock(tmp_path / "run", Config()) as first:
        first.require()
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(UserError, match=r"the workdir \S+/run was removed or replaced while this run was going"):
            first.require()
        with workdir.lock(tmp_path / "run", Config(seed=1)) as second:
            before = tree(tmp_path)
            with pytest.raises(UserError, match="removed or replaced"):
                first.require()
            second.require()
            assert tree(tmp_path) == before


def test_a_link_is_followed_and_two_names_of_a_folder_are_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with workdir.lock(tmp_path / "link" / "run", Config()) as claimed:
        assert os.fspath(claimed.path) == os.path.realpath(tmp_path / "there" / "run")
        for name in ("there/run", "link/run", "there/../link/run"):
            with pytest.raises(UserError, match="another process is training in"):
                claim(tmp_path / name)
        # Where it leads now does not matter to a run that is under way.
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(tmp_path)
        claimed.require()


@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_link_to_nothing_is_refused(tmp_path, below):
    (tmp_path / "link").symlink_to(tmp_path / "nosuch")
    with pytest.raises(UserError, match=r"a link to \S+/nosuch, which is not there: make that folder, or give another"):
        claim(tmp_path / "link" / below)
    assert not (tmp_path / "nosuch").exists()


def test_dots_in_a_name_are_resolved_and_names_that_cannot_be_are_refused(tmp_path):
    assert os.fspath(claim(tmp_path / "a" / ".." / "b")) == os.path.realpath(tmp_path / "b")
    assert not (tmp_path / "a").exists()
    for name in ("a\0b", "x" * 300):
        with pytest.raises(UserError, match=r"the workdir .* cannot be (written|used) \(.*(null|too long).*\): give"):
            claim(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_of_a_newer_version_is_named_as_such(tmp_path):
    claim(tmp_path)
    file = tmp_path / workdir.CONFIG
    file.write_text(json.dumps(written(Config()) | {"robust_gan": "99.1", "of_the_future": 1}))
    with pytest.raises(UserError, match=r"holds a run of robust_gan 99.1, and this is .*unknown field of_the_future"):
        claim(tmp_path)
    # One that says nothing new is gone on with; one from before there was a version, too.
    for version in ({"robust_gan": "99.1"}, {}):
        file.write_text(json.dumps(to_dict(Config()) | version))
        claim(tmp_path)


def test_the_clock_may_go_backwards(tmp_path, monkeypatch):
    times = itertools.count(2e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(times))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(times) * 1e9))
    config, info = Config(max_to_keep=2), checkpoint.DataInfo("digits", (8, 8, 1), 10, ())
    writer = checkpoint.Writer(tmp_path, config, info)
    for step in (1, 2, 3):
        writer.save(step, {"x": np.full(2, step, np.float32)}, {checkpoint.SELECTION: 0.5})
    writer.close()
    writer = checkpoint.Writer(tmp_path, config, info)
    state, step = writer.restore_latest({"x": np.zeros(2, np.float32)})
    assert (step, state["x"].tolist(), writer.best()) == (3, [3, 3], (3, 0.5))
    writer.close()
    assert checkpoint.read_record(tmp_path, "last").step == 3


def test_lines_on_a_full_disk_are_a_sentence(tmp_path):
    lines = workdir.JsonlWriter(epath.Path(tmp_path) / workdir.METRICS, step=0)
    lines._file.close()
    lines._file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(UserError, match=r"/metrics.jsonl cannot be written \(no space left on device\): make room"):
        lines.write(1, {"a": 0.5})
    with pytest.raises(UserError, match="no space left on device"):
        lines.close()

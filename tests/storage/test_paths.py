"""Object stores: the same calls as for folders, on a store in memory that fsspec knows as gs://."""

import concurrent.futures
import json
import os
import subprocess
import sys
import types

import fsspec
import numpy as np
import pytest
from conftest import ROOT
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from robust_gan import LinfThreat, checkpoint, data
from robust_gan.checkpoint import metadata
from robust_gan.config import Config
from robust_gan.data import mirroring, own
from robust_gan.errors import CheckpointError, DataError, UserError
from robust_gan.evaluation import EvaluationState
from robust_gan.reporting import folder as folder_lib
from robust_gan.storage import paths, workdir

pytestmark = pytest.mark.remote


class Store(MemoryFileSystem):
    """What is written to gs:// is kept in memory."""

    protocol = ("gs", "gcs")
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        path = str(path).removeprefix("gcs://").removeprefix("gs://").strip("/")
        return f"/{path}" if path else ""


@pytest.fixture
def store(monkeypatch):
    """gs:// is a store in memory, empty at first."""
    settings = fsspec.config.conf.copy()
    for name in Store.protocol:
        fsspec.register_implementation(name, Store, clobber=True)
    monkeypatch.setattr(paths, "_NEEDED", "fsspec")
    Store.store.clear()
    yield Store.store
    Store.store.clear()
    Store.clear_instance_cache()
    fsspec.config.conf.clear()
    fsspec.config.conf.update(settings)


def test_a_path_is_of_this_machine_or_of_a_store(store, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert str(paths.locate("~/runs")) == "/home/me/runs"
    assert str(paths.locate("gs://bucket/runs/a/")) == "gs://bucket/runs/a"
    assert str(paths.locate("gs://bucket/runs") / "a") == "gs://bucket/runs/a"
    for path in ("s3://bucket/runs", "gs://", "gs:///", "http://host/a", "gs://a\0b"):
        with pytest.raises(UserError, match=r"cannot be read or written: give a folder, or gs://BUCKET/FOLDER"):
            paths.locate(path)


def test_a_store_without_its_library_is_one_sentence(monkeypatch):
    monkeypatch.setattr(paths, "_NEEDED", "nosuch_library")
    with pytest.raises(UserError, match=r"needs nosuch_library: pip install 'robust_gan\[gcs\]'"):
        workdir.check("gs://bucket/runs", Config())


def test_a_store_that_does_not_answer_is_one_sentence(store, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(Store, "exists", fail)
    for ask in (workdir.check, checkpoint.read_record, folder_lib.check):
        with pytest.raises(UserError, match=r"gs://bucket/a.* cannot be reached \(ConnectionError: no route to host\)"):
            ask("gs://bucket/a", *([Config()] if ask is workdir.check else []))


def test_a_workdir_in_a_store_is_claimed_and_another_configuration_refused(store):
    with workdir.lock("gs://bucket/run", Config()) as claimed:
        claimed.require()
        assert str(claimed.path) == "gs://bucket/run"
    assert json.loads(store["/bucket/run/config.json"].getvalue())["seed"] == 0
    assert list(store) == ["/bucket/run/config.json"]
    with pytest.raises(UserError, match=r"holds a run of another configuration \(there != here: seed: 0 != 1\)"):
        workdir.check("gs://bucket/run", Config(seed=1))


def test_lines_in_a_store_are_written_anew_now_and_then_and_at_the_end(store, monkeypatch):
    path = paths.locate("gs://bucket/run") / workdir.METRICS
    lines = workdir.JsonlWriter(path, 0)
    lines.write(1, {"x": 1.0})
    assert path.read_text() == ""
    monkeypatch.setattr(workdir, "SECONDS", 0.0)
    lines.write(2, {"x": 2.0})
    assert path.read_text().count("\n") == 2
    monkeypatch.undo()
    lines.write(3, {"x": 3.0})
    lines.close()
    assert path.read_text().count("\n") == 3
    workdir.JsonlWriter(path, 2).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_step_in_a_store_is_finished_when_its_last_file_is_there(store):
    folder = paths.locate("gs://bucket/run") / checkpoint.FOLDER
    for step in ("20", "3"):
        (folder / step / "commit_success.txt").write_text("")
    (folder / "40" / "config" / "metadata").write_text("")
    assert metadata.list_steps(folder) == [3, 20]
    assert metadata.find_folder("gs://bucket/run") == folder
    assert metadata.parse_location("gs://bucket/run@20") == ("gs://bucket/run", 20)
    with pytest.raises(CheckpointError, match="there is no folder gs://bucket/nosuch"):
        metadata.find_folder("gs://bucket/nosuch")


def test_results_and_reports_are_kept_in_a_store(store):
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1])
    subject = types.SimpleNamespace(
        sharded=[], data=types.SimpleNamespace(images=images, labels=labels), threat=LinfThreat(0.1), devices=None,
        attacks=types.SimpleNamespace(names=[], sequential=[]),
    )  # fmt: skip
    config = types.SimpleNamespace(overwrite=False, seed=0, batch_size=2)
    path = folder_lib.check("gs://bucket/report")
    state = folder_lib.claim(path, {"seed": 0}, subject, config)
    robust, done = state.part("fgsm", 2)
    robust[0] = done[0] = True
    state.save()
    state.flush()
    again = folder_lib.claim(path, {"seed": 0}, subject, config)
    assert again.part("fgsm", 2)[0].tolist() == [True, False]
    with pytest.raises(UserError, match=r"gs://bucket/report holds another evaluation \(of other seed\)"):
        folder_lib.claim(path, {"seed": 1}, subject, config)
    assert isinstance(EvaluationState(path / "nosuch.npz"), EvaluationState)


def test_arrays_of_images_are_read_from_a_store(store, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 1), np.uint8), labels=np.array([0, 1]))
    epath.Path("gs://bucket/a.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert own.read("gs://bucket/a.npz").train.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"there is no file gs://bucket/b\.npz"):
        own.read("gs://bucket/b.npz")


def test_prepared_data_in_a_store_are_copied_once(store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = data.load("digits", data_dir=tmp_path / "data", validation_size=137)
    with pytest.raises(DataError, match="digits is not prepared in gs://bucket/data: prepare it in a folder"):
        data.load("digits", data_dir="gs://bucket/data", validation_size=137)
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            epath.Path(f"gs://bucket/data/{path.relative_to(tmp_path / 'data')}").write_bytes(path.read_bytes())
    there = data.load("digits", data_dir="gs://bucket/data", validation_size=137)
    np.testing.assert_array_equal(there.train.images, local.train.images)
    copies = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.array_record*")}
    assert copies
    monkeypatch.setenv("ROBUST_GAN_DATA_DIR", "gs://bucket/data")
    data.load("digits", validation_size=137)
    assert copies == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.array_record*")}
    # Another one in the store is another one here.
    name = next(name for name in store if name.endswith("dataset_info.json"))
    epath.Path(f"gs:/{name}").write_bytes(store[name].getvalue() + b"\n")
    data.load("digits", validation_size=137)
    assert all(copies[path] != path.stat().st_mtime_ns for path in copies)
    with pytest.raises(DataError, match="data cannot be prepared in gs://bucket/data"):
        data.prepare("digits")


def test_a_copy_that_was_cut_off_is_made_again_and_two_at_once_share_one(store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data.prepare("digits", data_dir=tmp_path / "data")
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            epath.Path(f"gs://bucket/data/{path.relative_to(tmp_path / 'data')}").write_bytes(path.read_bytes())
    with concurrent.futures.ThreadPoolExecutor(2) as both:
        first, second = both.map(mirroring.mirrored, ["digits"] * 2, ["gs://bucket/data"] * 2)
    assert first == second
    whole = {path.name: path.read_bytes() for path in first.iterdir()}
    assert whole == {path.name: path.read_bytes() for path in (tmp_path / "data" / "digits" / "1.0.0").iterdir()}
    longest = max(first.iterdir(), key=lambda path: path.stat().st_size)
    longest.write_bytes(whole[longest.name][:100])
    (first / "features.json").unlink()
    assert mirroring.mirrored("digits", "gs://bucket/data") == first
    assert whole == {path.name: path.read_bytes() for path in first.iterdir()}


def test_checkpoints_go_to_a_bucket_and_come_back():
    """By tensorstore's own driver and gcsfs, over HTTP."""
    pytest.importorskip("gcsfs")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "bucket_program.py")], capture_output=True, text=True, timeout=600,
        check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == {"step": 2, "x": [0.0, 2.0, 4.0, 6.0, 8.0], "best": 1}

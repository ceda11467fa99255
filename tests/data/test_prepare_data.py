import functools
import gzip
import hashlib
import http.server
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder
from tensorflow_datasets.image_classification import cifar, mnist

from robust_gan import data
from robust_gan.data import downloading, published
from robust_gan.errors import DataError

pytestmark = pytest.mark.data

ROOT = Path(__file__).parents[2]
COUNTS = {
    "mnist": {"train": 30, "test": 12},
    "cifar10": {"train": 25, "test": 10},
    "cifar100": {"train": 25, "test": 10},
    "svhn_cropped": {"train": 12, "test": 6, "extra": 8},
}
NAMES = tuple(COUNTS)
STOCK = {
    "mnist": mnist.MNIST,
    "cifar10": cifar.Cifar10,
    "cifar100": cifar.Cifar100,
    "svhn_cropped": svhn_cropped_dataset_builder.Builder,
}


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mat(images, labels):
    buffer = io.BytesIO()
    stored = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    scipy.io.savemat(buffer, {"X": np.moveaxis(images, 0, -1), "y": stored}, do_compression=True)
    return buffer.getvalue()


def make(name):
    """Returns the members of a small set of the published format, and what is in them: {split: (images, labels)}."""
    random = np.random.default_rng(0)
    shape = (28, 28, 1) if name == "mnist" else (32, 32, 3)
    classes = 100 if name == "cifar100" else 10
    truth = {
        split: (
            random.integers(0, 256, (count, *shape), np.uint8),
            random.permutation(count * 7).astype(np.uint8)[:count] % classes,
        )
        for split, count in COUNTS[name].items()
    }
    if name == "mnist":
        members = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            members[f"{prefix}-images-idx3-ubyte"] = idx(truth[split][0][..., 0])
            members[f"{prefix}-labels-idx1-ubyte"] = idx(truth[split][1])
        return members, truth
    if name == "svhn_cropped":
        return {f"{split}_32x32.mat": mat(*arrays) for split, arrays in truth.items()}, truth

    def records(images, labels):
        labels = np.stack([labels // 5, labels], 1) if name == "cifar100" else labels[:, None]
        return np.concatenate([labels, images.transpose(0, 3, 1, 2).reshape(len(images), -1)], 1).tobytes()

    if name == "cifar100":
        members = {f"{split}.bin": records(*truth[split]) for split in truth}
        members["coarse_label_names.txt"] = "".join(f"coarse{number}\n" for number in range(20)).encode()
        members["fine_label_names.txt"] = "".join(f"fine{number}\n" for number in range(100)).encode()
        return members, truth
    images, labels = truth["train"]
    members = {
        f"data_batch_{part + 1}.bin": records(images[5 * part : 5 * part + 5], labels[5 * part : 5 * part + 5])
        for part in range(5)
    }
    members["test_batch.bin"] = records(*truth["test"])
    members["batches.meta.txt"] = "".join(f"class{number}\n" for number in range(10)).encode() + b"\n"
    return members, truth


def tar(folder, members, **special):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, contents in members.items():
            entry = tarfile.TarInfo(f"{folder}/{member}")
            if member in special:
                entry.type, entry.linkname = tarfile.SYMTYPE, special[member]
                archive.addfile(entry)
            else:
                entry.size = len(contents)
                archive.addfile(entry, io.BytesIO(contents))
    return buffer.getvalue()


def pack(name, members):
    """Returns the published archives of the members."""
    layout = published.SETS[name]
    if name == "mnist":
        return {f"{member}.gz": gzip.compress(contents) for member, contents in members.items()}
    if name == "svhn_cropped":
        return dict(members)
    return {next(iter(layout.archives)): tar(layout.folder, {"readme.html": b"x", "../../escaped": b"x", **members})}


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return folder


def publish(monkeypatch, name, archives, url="http://127.0.0.1:9/"):
    """Makes the archives the published ones, by their hashes."""
    hashes = {archive: hashlib.sha256(contents).hexdigest() for archive, contents in archives.items()}
    monkeypatch.setitem(published.SETS, name, published.SETS[name]._replace(url=url, hashes=hashes))


registered = dict(published.SETS)


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    for name in NAMES:
        small = published.SETS[name]._replace(counts=COUNTS[name], hashes={})
        monkeypatch.setitem(published.SETS, name, small)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "prepared"


def refused(name, source, target):
    """Prepares what must be refused, in one sentence and without a trace."""
    with pytest.raises(DataError) as caught:
        data.prepare(name, source=source, data_dir=target)
    assert "\n" not in str(caught.value)
    assert not data.is_prepared(name, target)
    assert not target.exists() or not [path for path in target.iterdir() if path.name != "downloads"]
    return str(caught.value)


# What is prepared


def extracted(tmp_path, monkeypatch, name, members):
    return put(tmp_path / "source", members)


def extracted_folder(tmp_path, monkeypatch, name, members):
    put(tmp_path / "source" / published.SETS[name].folder, members)
    return tmp_path / "source"


def packed(tmp_path, monkeypatch, name, members):
    archives = pack(name, members)
    publish(monkeypatch, name, archives)
    return put(tmp_path / "source", archives)


@pytest.mark.parametrize("form", [packed, extracted, extracted_folder])
@pytest.mark.parametrize("name", NAMES)
def test_the_stock_reader_opens_what_was_prepared(tmp_path, monkeypatch, target, name, form):
    members, truth = make(name)
    prepared = data.prepare(name, source=form(tmp_path, monkeypatch, name, members), data_dir=target)
    assert prepared == (name, target / name / str(STOCK[name].VERSION), COUNTS[name], True)
    assert sorted(path.name for path in target.iterdir()) == [name]
    source = tfds.data_source(name, data_dir=target)
    for split, (images, labels) in truth.items():
        records = list(source[split])
        assert len(records) == COUNTS[name][split]
        if name == "mnist":
            found = sorted((record["image"].tobytes(), record["label"]) for record in records)
            assert found == sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))
            continue
        assert len({record["id"] for record in records}) == len(records)
        for record in records:
            number = int(record["id"].decode().removeprefix(f"{split}_"))
            np.testing.assert_array_equal(record["image"], images[number])
            assert record["label"] == labels[number]
            if name == "cifar100":
                assert record["coarse_label"] == labels[number] // 5


@pytest.mark.parametrize("name", NAMES)
def test_names_features_and_metadata_are_the_stock_ones(tmp_path, monkeypatch, target, name):
    members, _ = make(name)
    info = tfds.builder_from_directory(data.prepare(name, source=put(tmp_path / "s", members), data_dir=target)[1]).info
    monkeypatch.setattr(tfds.core.DatasetInfo, "initialize_from_bucket", lambda self: None)
    stock = STOCK[name](data_dir=tmp_path / "stock").info
    assert (info.name, info.version, info.supervised_keys) == (stock.name, stock.version, stock.supervised_keys)
    assert info.description
    assert info.homepage == stock.homepage
    assert {key: repr(feature) for key, feature in info.features.items()} == {
        key: repr(feature) for key, feature in stock.features.items()
    }
    if name == "cifar100":
        assert info.features["coarse_label"].names[19] == "coarse19"
        assert info.features["label"].names[99] == "fine99"


@pytest.mark.parametrize("name", NAMES)
def test_loading_what_was_prepared(tmp_path, target, name):
    members, truth = make(name)
    data.prepare(name, source=put(tmp_path / "source", members), data_dir=target)
    extra = 3 if name == "svhn_cropped" else 0
    before = [(path, path.stat().st_mtime_ns) for path in sorted(target.rglob("*"))]
    loaded = data.load(name, data_dir=target, validation_size=4, extra_size=extra)
    # Nothing is written beside the data, which may lie where nothing can be.
    assert [(path, path.stat().st_mtime_ns) for path in sorted(target.rglob("*"))] == before
    assert len(loaded.train.labels) == COUNTS[name]["train"] - 4 + extra
    assert sorted(loaded.test.labels.tolist()) == sorted(truth["test"][1].tolist())
    assert loaded.num_classes == (100 if name == "cifar100" else 10)
    assert loaded.label_names[1] == {"cifar10": "class1", "cifar100": "fine1"}.get(name, "1")


def test_preparing_again_changes_nothing(tmp_path, target):
    members, _ = make("mnist")
    first = data.prepare("mnist", source=put(tmp_path / "source", members), data_dir=target)
    again = data.prepare("mnist", source=tmp_path / "nowhere", data_dir=target)
    assert (first.written, again.written) == (True, False)
    assert first[:3] == again[:3]
    assert str(first) == f"mnist: 30 train, 12 test images written to {target}/mnist/3.0.1"
    assert str(again) == f"mnist: 30 train, 12 test images were already in {target}/mnist/3.0.1"


def test_the_published_files_are_those_that_tfds_registers():
    for name in NAMES:
        known = registered[name]
        assert set(known.hashes) == set(known.archives)
        there = {url: info.checksum for url, info in STOCK[name].url_infos.items()}
        assert {known.url + archive: digest for archive, digest in known.hashes.items()}.items() <= there.items()


# What is refused


def change(member, function):
    return lambda members: members | {member: function(members[member])}


def bad_svhn_label(contents):
    images = scipy.io.loadmat(io.BytesIO(contents))["X"]
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"X": images, "y": np.full((images.shape[-1], 1), 11, np.uint8)})
    return buffer.getvalue()


def without_labels(contents):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"X": scipy.io.loadmat(io.BytesIO(contents))["X"]})
    return buffer.getvalue()


DAMAGE = [
    ("mnist", "train-images-idx3-ubyte", lambda c: c[:-1], "has 23,535 bytes when unpacked, and must have 23,536"),
    ("mnist", "train-images-idx3-ubyte", lambda c: c + b"x", "must have 23,536"),
    ("mnist", "train-images-idx3-ubyte", lambda c: c[4:], "must begin with the bytes 00000803, but begins with"),
    ("mnist", "train-images-idx3-ubyte", lambda c: b"", "must begin with the bytes 00000803, but begins with ''"),
    ("mnist", "train-images-idx3-ubyte", lambda c: c[:9], "but says that its shape is"),
    ("mnist", "train-labels-idx1-ubyte", lambda c: c[:-1] + b"\x0a", "has the label 10 at image 29"),
    ("mnist", "t10k-labels-idx1-ubyte", lambda c: idx(np.zeros(30, np.uint8)), "but says that its shape is (30,)"),
    ("cifar10", "data_batch_3.bin", lambda c: c[:-1], "must have 15,365: 5 records of 3,073 bytes"),
    ("cifar10", "data_batch_3.bin", lambda c: b"\x0a" + c[1:], "labels must be in 0..9"),
    (
        "cifar10",
        "batches.meta.txt",
        lambda c: c.replace(b"class2", b"class1"),
        "must name 10 different classes, but names 9",
    ),
    ("cifar100", "test.bin", lambda c: c[1:], "10 records of 3,074 bytes"),
    ("cifar100", "test.bin", lambda c: b"\x14" + c[1:], "has the label 20 at image 0, and labels must be in 0..19"),
    ("cifar100", "fine_label_names.txt", lambda c: b"\xff\xfe", "must name 100 different classes"),
    ("svhn_cropped", "test_32x32.mat", lambda c: c[:-100], "is damaged or no MATLAB 5 file"),
    ("svhn_cropped", "test_32x32.mat", lambda c: b"\x00" * 600, "is damaged or no MATLAB 5 file"),
    ("svhn_cropped", "extra_32x32.mat", lambda c: b"", "is damaged or no MATLAB 5 file"),
    ("svhn_cropped", "extra_32x32.mat", bad_svhn_label, "must hold 8 labels 1..10"),
    ("svhn_cropped", "extra_32x32.mat", without_labels, "but lacks y"),
]


@pytest.mark.parametrize(("name", "member", "function", "says"), DAMAGE)
def test_a_failed_preparation_leaves_nothing_behind(tmp_path, target, name, member, function, says):
    members, _ = make(name)
    source = put(tmp_path / "source", members | {member: function(members[member])})
    message = refused(name, source, target)
    assert says in message
    assert str(source / member) in message
    put(source, members)
    assert data.prepare(name, source=source, data_dir=target).written


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", [lambda c: c[:-10], lambda c: c[:-10] + bytes(10)])
def test_archives_that_are_not_the_published_ones(tmp_path, monkeypatch, target, name, function):
    archives = pack(name, make(name)[0])
    publish(monkeypatch, name, archives)
    last = list(archives)[-1]
    source = put(tmp_path / "source", archives | {last: function(archives[last])})
    message = refused(name, source, target)
    assert message.startswith(f"{source / last} is damaged: its SHA-256 is")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("function", [lambda c: c[: len(c) // 2], lambda c: b"<html>not here</html>", lambda c: b""])
def test_archives_that_cannot_be_unpacked(tmp_path, target, name, function):
    archives = pack(name, make(name)[0])
    first = next(iter(archives))
    source = put(tmp_path / "source", archives | {first: function(archives[first])})
    assert str(source / first) in refused(name, source, target)


def test_members_that_are_links_or_missing(tmp_path, target):
    members, _ = make("cifar10")
    secret = put(tmp_path, {"secret": members["test_batch.bin"]}) / "secret"
    archive = tar("cifar-10-batches-bin", members, **{"test_batch.bin": str(secret)})
    source = put(tmp_path / "source", {"cifar-10-binary.tar.gz": archive})
    assert "lacks cifar-10-batches-bin/test_batch.bin" in refused("cifar10", source, target)


@pytest.mark.parametrize(("name", "says"), [("cifar10", "lacks cifar-10-batches-bin/"), ("mnist", "bytes")])
def test_members_that_unpack_to_more_than_they_can_are_not_read(tmp_path, monkeypatch, target, name, says):
    archives = pack(name, make(name)[0])
    publish(monkeypatch, name, archives)
    monkeypatch.setattr(published, "_MAX_MEMBER", 100)
    assert says in refused(name, put(tmp_path / "source", archives), target)


def test_nothing_is_extracted_to_the_disk(tmp_path, monkeypatch, target):
    archives = pack("cifar10", make("cifar10")[0])
    publish(monkeypatch, "cifar10", archives)
    data.prepare("cifar10", source=put(tmp_path / "a" / "b" / "source", archives), data_dir=target)
    assert not list(tmp_path.rglob("escaped"))
    assert not list(tmp_path.rglob("*.bin"))


def test_files_that_are_missing(tmp_path, target):
    members, _ = make("mnist")
    del members["t10k-labels-idx1-ubyte"]
    source = put(tmp_path / "source", members)
    assert refused("mnist", source, target).endswith("t10k-labels-idx1-ubyte.gz missing")
    assert "holds none of the files of cifar10: it must hold cifar-10-binary.tar.gz" in refused(
        "cifar10", source, target
    )
    assert refused("mnist", tmp_path / "nowhere", target) == f"the folder {tmp_path}/nowhere does not exist"
    assert refused("mnist", source / "train-images-idx3-ubyte", target).endswith("is not a folder")


def test_unknown_sets(tmp_path, target):
    with pytest.raises(DataError, match="cifar10, cifar100, digits, mnist, svhn_cropped, but not 'imagenet'"):
        data.prepare("imagenet", data_dir=target)
    assert not target.exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    put(tmp_path, {"file": b""})
    with pytest.raises(DataError, match="digits cannot be prepared in"):
        data.prepare("digits", data_dir=tmp_path / "file" / "data")


def test_a_folder_that_holds_something_else(target):
    put(target / "digits" / "1.0.0", {"file": b""})
    with pytest.raises(DataError, match="digits cannot be prepared in"):
        data.prepare("digits", data_dir=target)
    assert [path.name for path in target.rglob("*")] == ["digits", "1.0.0", "file"]


# Downloads


@pytest.fixture
def server(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_downloading(monkeypatch, target, server):
    folder, url = server
    archives = pack("mnist", make("mnist")[0])
    publish(monkeypatch, "mnist", archives, url)
    put(folder, archives)
    assert data.prepare("mnist", data_dir=target).written
    assert sorted(path.name for path in (target / "downloads" / "manual").iterdir()) == sorted(archives)
    (target / "mnist").rename(target / "old")
    publish(monkeypatch, "mnist", archives)  # Nothing listens there: the files are here already.
    assert data.prepare("mnist", data_dir=target).written


def test_downloads_that_are_not_the_published_files(monkeypatch, target, server):
    folder, url = server
    archives = pack("mnist", make("mnist")[0])
    publish(monkeypatch, "mnist", archives, url)
    put(folder, archives | {"t10k-labels-idx1-ubyte.gz": b"x" * len(archives["t10k-labels-idx1-ubyte.gz"])})
    monkeypatch.setattr(downloading, "_RETRIES", 0)
    message = refused("mnist", None, target)
    assert "t10k-labels-idx1-ubyte.gz could not be downloaded (" in message
    assert "does not match the known hash" in message
    assert len(list((target / "downloads" / "manual").iterdir())) == 3
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "t10k-labels-idx1-ubyte.gz" in refused("mnist", None, target)


def test_no_network_is_said_at_once(monkeypatch, target):
    archives = pack("cifar10", make("cifar10")[0])
    publish(monkeypatch, "cifar10", archives)
    started = time.monotonic()
    message = refused("cifar10", None, target)
    assert time.monotonic() - started < 10
    assert "cannot be reached: get http://127.0.0.1:9/cifar-10-binary.tar.gz" in message
    assert "--source=FOLDER" in message
    assert not target.exists()


def test_a_network_that_swallows_everything_is_said_soon(monkeypatch, target):
    monkeypatch.setattr(downloading, "_REACHABLE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(
            monkeypatch, "cifar10", pack("cifar10", make("cifar10")[0]), f"http://127.0.0.1:{silent.getsockname()[1]}/"
        )
        assert "cannot be reached" in refused("cifar10", None, target)


# The command


def command(*arguments, cwd="/"):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "prepare_data.py"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done


def test_the_command_prepares_digits(tmp_path):
    done = command("--dataset=digits", "--data_dir=here", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "digits: 1,437 train, 360 test images written to here/digits/1.0.0\n"
    assert data.load("digits", data_dir=tmp_path / "here", validation_size=0).num_classes == 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dataset=imagenet"], "'imagenet'"),
        (["--dataset=mnist", "--source=nowhere"], "the folder nowhere does not exist"),
        (["--dataset=mnist", "--nosuch=1"], "nosuch"),
        ([], "dataset"),
    ],
)
def test_the_command_refuses(tmp_path, arguments, says):
    done = command(*arguments, f"--data_dir={tmp_path / 'data'}", cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())

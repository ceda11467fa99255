"""The wheel of a clean clone trains outside the clone: nothing is missing in it, and nothing needs the repository."""

import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.packaging

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import pathlib, sys
import robust_gan
from robust_gan import checkpoint, parallel, training
from robust_gan.reporting import tables
from robust_gan.config import AdversaryConfig, Config, DataConfig, ValidationConfig

assert pathlib.Path(robust_gan.__file__).is_relative_to(sys.argv[1]), robust_gan.__file__
assert tables.schema()["title"]
config = Config(
    data=DataConfig(data_dir="data", train_size=64, validation_size=32),
    adversary=AdversaryConfig(name="none"),
    validation=ValidationConfig(pgd_steps=1),
    batch_size=16,
    num_steps=2,
)
result = training.train(config, "run", devices=parallel.find_devices(num_devices=1), progress=False)
assert result.finished
print(checkpoint.load_classifier("run")(robust_gan.data.from_config(config.data).test.images[:4] / 255.0).shape)
"""


def run(*command, **settings):
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, check=False, **settings
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Of what is committed, built without a network."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no clone")
    if importlib.util.find_spec("pip") is None or int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("building a wheel needs pip and setuptools 77")
    folder = tmp_path_factory.mktemp("wheel")
    run("git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", folder / "clone")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        f"--wheel-dir={folder}", folder / "clone")  # fmt: skip
    shutil.rmtree(folder / "clone")
    (path,) = folder.glob("robust_gan-*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    committed = run("git", "ls-files", "robust_gan", cwd=ROOT).split()
    assert sorted(names) == sorted(committed)


def test_the_wheel_trains_digits_outside_the_clone(wheel, tmp_path):
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", f"--target={site}", wheel)
    (tmp_path / "elsewhere").mkdir()
    # Isolated from this folder; the first in the path is where the wheel was put.
    environment = {**os.environ, "PYTHONPATH": str(site)}
    out = run(sys.executable, "-P", "-c", PROGRAM, site, cwd=tmp_path / "elsewhere", env=environment)
    assert out.splitlines()[-1] == "(4, 10)"
    assert (tmp_path / "elsewhere" / "run" / "metrics.jsonl").exists()

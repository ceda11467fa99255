"""The wheel of a clean clone trains outside the clone: nothing is missing in it, and nothing needs the repository."""

import importlib.metadata
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.packaging

ROOT = pathlib.Path(__file__).resolve().parents[2]

MODEL = """
import jax.numpy as jnp

from robust_gan import checkpoint


def trained():
    return checkpoint.load_classifier("run")


def linear():
    return lambda images: images.reshape(len(images), -1) @ jnp.ones((64, 10))
"""
CONFIG = """
from robust_gan.config import datasets


def get_config(choice="pgd"):
    return datasets.get_config("digits", choice + "/debug")
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


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory):
    """The folder of the installed commands, in a virtual environment that has the wheel and not the clone."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # Its dependencies are the ones that are installed here; path files of other environments are not read.
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index",
        "--ignore-installed", wheel)  # fmt: skip
    place = run(python, "-P", "-c", "import robust_gan; print(robust_gan.__file__)", cwd=folder).strip()
    assert pathlib.Path(place).is_relative_to(site)
    return folder / "bin"


def test_every_installed_command_shows_its_help(commands, tmp_path):
    for name in ("train", "evaluate", "reproduce", "export", "prepare-data", "report"):
        assert f"robust-gan-{name} " in run(commands / f"robust-gan-{name}", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_installed_commands_train_evaluate_and_report_in_a_folder_of_the_users(commands, tmp_path):
    """With a built-in config and a file of the user's, beside a model of the user's."""
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "config.py").write_text(CONFIG)

    def command(name, *arguments):
        return run(commands / f"robust-gan-{name}", *arguments, "--platform=cpu", cwd=tmp_path)

    command("train", "--config=digits:generator/debug", "--config.num_steps=2", "--workdir=run")
    command("train", "--config=config.py:none", "--config.num_steps=2", "--workdir=own")
    out = command(
        "evaluate", "--model=mine:trained,mine:linear", "--data=digits", "--num_examples=32", "--epsilon=0.15",
        "--norm=linf", "--attacks=clean,fgsm", "--output=report",
    )  # fmt: skip
    assert out.startswith("digits test, 32 images, linf epsilon 0.15\n")
    command("evaluate", "--checkpoint=run,own", "--num_examples=32", "--attacks=clean,generator", "--output=report2")
    command("reproduce", "--dataset=digits", "--budget=debug", "--methods=none", "--output=reproduced")
    run(commands / "robust-gan-report", "run", "own", "report", "report2", "reproduced", cwd=tmp_path)
    assert "mine:linear" in (tmp_path / "report.html").read_text()
    written = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert written == {"config.py", "mine.py", "own", "report", "report.html", "report2", "reproduced", "run"}

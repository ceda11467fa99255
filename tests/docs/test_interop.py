"""With other libraries: what `docs/tutorials/interop.md` shows runs as it stands."""

import importlib.util
import pathlib
import re

import pytest

from robust_gan.evaluation import EvaluationConfig
from robust_gan.reporting import run

pytestmark = pytest.mark.docs

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "interop.md"
BLOCKS = dict(re.findall(r"^## (.+?)$.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE))
NEEDS = {
    "equinox": "equinox",
    "haiku": "haiku",
    "flax.nnx": "flax",
    "Keras": "keras",
    "BatchNorm in a training loop of your own": "flax",
    "Foolbox": "foolbox",
    "RobustBench": "robust_gan",
}


def test_every_block_is_tried():
    assert set(BLOCKS) == set(NEEDS)


@pytest.mark.parametrize("name", NEEDS)
# What the other libraries do in deprecated ways is theirs.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_block_runs_as_it_stands(name, tmp_path, monkeypatch, tiny_run):
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}, the extra interop")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(tiny_run)
    if name == "RobustBench":
        run.run(
            EvaluationConfig(["runs/digits"], attacks="fgsm", num_examples=20, output="runs/report", progress=False)
        )
    exec(compile(BLOCKS[name], name, "exec"), {})

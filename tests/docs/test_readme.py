"""What the README shows runs."""

import pathlib
import re

import numpy as np
import pytest

pytestmark = pytest.mark.docs

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_block_for_ones_own_project_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert np.isfinite(names["params"]).all()
    assert np.abs(names["params"]).max() > 0


def test_every_file_and_config_it_names_is_there():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\]\(((?!http)[^)]+)\)", text) + re.findall(r"(?:launch|configs)/\w+\.(?:sh|py)", text)
    assert named
    assert not [name for name in named if not (ROOT / name.partition("#")[0]).exists()]

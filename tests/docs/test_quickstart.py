"""The quickstart, shortened, end to end."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import quick_flags

from robust_gan import checkpoint

pytestmark = pytest.mark.docs

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_quickstart_trains_attacks_and_reports(tmp_path):
    environment = {
        **os.environ,
        "ROBUST_GAN_PYTHON": sys.executable,
        "QUICKSTART_DIR": str(tmp_path / "out"),
        "ROBUST_GAN_DATA_DIR": str(tmp_path / "data"),
        "XLA_FLAGS": quick_flags(),
    }
    command = ["bash", "launch/quickstart.sh", "--config.num_steps=2", "--config.validation.every=2",
               "--config.adversary.generator.steps=1", "--config.adversary.pgd.num_steps=1"]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "| adversarial_network |" in ended.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["data"] == {"name": "digits", "split": "test", "count": 360}
    assert set(report["targets"]) == {"standard", "pgd", "adversarial_network"}
    for values in report["targets"].values():
        assert 0 <= values["worst_case"]["all"] <= values["worst_case"]["white_box"] <= values["clean_accuracy"] <= 1
        assert set(values["robust_accuracy"]["pgd40"]) == {"standard", "pgd", "adversarial_network", "surrogate"}
    for name in ("examples.png", "report.html", "report.md", "surrogate/metrics.jsonl"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert checkpoint.read_record(tmp_path / "out" / "adversarial_network").step == 2

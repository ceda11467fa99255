"""The package is imported lightly, and unpickles and evaluates nothing. Its layers are in setup.cfg."""

import os
import pathlib
import re
import statistics
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_nothing_is_unpickled_or_evaluated():
    forbidden = re.compile(r"\b(pickle|yaml\.load|allow_pickle=True|shell=True)\b|(?<![\w.])(eval|exec)\(")
    for folder in ("robust_gan", "launch", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not forbidden.search(path.read_text()), path


def run(program):
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return ended.stdout.strip()


@pytest.mark.packaging
def test_import_loads_neither_data_nor_checkpoints_nor_plots():
    names = ("tensorflow_datasets", "orbax", "matplotlib", "tensorflow", "torch", "sklearn", "tqdm")
    loaded = run(f"import sys, robust_gan; robust_gan.pgd; print([n for n in {names!r} if n in sys.modules])")
    assert loaded == "[]"


@pytest.mark.packaging
@pytest.mark.skipif(not os.environ.get("ROBUST_GAN_TIMING"), reason="asserts on time: set ROBUST_GAN_TIMING=1")
def test_import_takes_at_most_half_more_than_its_dependencies():
    def seconds(statement):
        program = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
        return float(run(program))

    pairs = [(seconds("import robust_gan; robust_gan.pgd; robust_gan.train_step"),
              seconds("import jax, flax.linen, optax")) for _ in range(5)]  # fmt: skip
    assert statistics.median(ours / theirs for ours, theirs in pairs) <= 1.5

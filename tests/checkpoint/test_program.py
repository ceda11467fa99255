"""A classifier as a program: it runs without this package, for any batch size, with its gradient."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from robust_gan import checkpoint
from robust_gan.errors import UserError

ALONE = """
import sys
import jax, numpy as np
from jax import export
exported = export.deserialize(open(sys.argv[1], "rb").read())
images = np.load(sys.argv[2])
gradient = jax.grad(lambda images: exported.call(images)[:, 0].sum())(images)
np.savez(sys.argv[3], logits=exported.call(images), gradient=gradient, single=exported.call(images[:1]))
assert not [name for name in sys.modules if name.startswith(("robust_gan", "flax"))]
"""


@pytest.mark.slow
def test_the_program_runs_where_the_package_is_not_imported(launch, tmp_path, tiny_run):
    ended = launch("export", f"--checkpoint={tiny_run}@2", f"--output={tmp_path}/tiny.jaxexport")
    assert ended.code == 0, ended.err
    images = np.random.default_rng(0).random((5, 8, 8, 1)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    arguments = [str(tmp_path / name) for name in ("tiny.jaxexport", "x.npy", "found.npz")]
    subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True, cwd=tmp_path)
    found, logits_fn = np.load(tmp_path / "found.npz"), checkpoint.load_classifier(tiny_run, 2)
    np.testing.assert_allclose(found["logits"], logits_fn(images), atol=1e-5)
    np.testing.assert_allclose(found["single"], found["logits"][:1], atol=1e-5)
    gradient = jax.grad(lambda images: logits_fn(images)[:, 0].sum())(images)
    np.testing.assert_allclose(found["gradient"], gradient, atol=1e-5)


def test_a_program_needs_its_ending_and_its_library(monkeypatch, tmp_path, tiny_run):
    with pytest.raises(UserError, match=r"ends in \.jaxexport, not to "):
        checkpoint.export_program(tiny_run, tmp_path / "a.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs flatbuffers: pip install 'robust_gan\[jax-export\]'"):
        checkpoint.export_program(tiny_run, tmp_path / "a.jaxexport")

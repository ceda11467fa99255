"""Sentences on what is missing of PyTorch; they need no PyTorch, which stands in as a module of a few lines."""

import importlib.util
import sys
import types

import jax
import pytest

from robust_gan import interop
from robust_gan.errors import UserError
from robust_gan.evaluation import loading
from robust_gan.interop import pytorch


class FakeModule:
    """A `torch.nn.Module` in training mode."""

    training = True


@pytest.fixture
def fake_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(nn=types.SimpleNamespace(Module=FakeModule)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "torch" else None)


def test_without_pytorch_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^PyTorch is not installed: pip install 'robust_gan\[torch\]'$"):
        interop.from_torch(object())


@pytest.mark.usefixtures("fake_torch")
def test_without_torchax_the_callback_is_used_and_said():
    assert pytorch._check_backend("") == "callback"
    with pytest.raises(UserError, match=r"^torchax is not installed: pip install 'robust_gan\[torch\]'$"):
        pytorch._check_backend("torchax")

    def call(weights, images):
        return images

    call.__name__ = pytorch._CALLBACK
    assert interop.is_torch_module(FakeModule())
    assert interop.describe(FakeModule(), jax.tree_util.Partial(call, {})) == (
        "a PyTorch module, put into evaluation mode, called through a callback, on one device (translated to JAX with "
        "pip install 'robust_gan[torch]')"
    )


@pytest.mark.parametrize(
    ("raised", "remedy"),
    [
        ("ModuleNotFoundError(\"No module named 'torch'\")", "pip install 'robust_gan[torch]'"),
        ("AssertionError('Torch not compiled with CUDA enabled')", "map_location='cpu'"),
        ("RuntimeError('Attempting to deserialize object on a CUDA device but ...')", "map_location='cpu'"),
        ("RuntimeError('the weights are elsewhere')", "RuntimeError: the weights are elsewhere"),
    ],
)
def test_a_function_that_fails_for_want_of_pytorch_or_cuda_is_told_the_remedy(tmp_path, monkeypatch, raised, remedy):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for place in ("module", "function"):
        name = f"fails_in_{place}_{raised.partition('(')[0] + str(len(raised))}"
        body = f"raise {raised}" if place == "module" else f"def net():\n    raise {raised}"
        (tmp_path / f"{name}.py").write_text(body + "\n")
        with pytest.raises(UserError) as caught:
            loading.load_model(f"{name}:net")
        assert remedy in str(caught.value)
        assert "\n" not in str(caught.value)

"""PyTorch modules as classifiers: both backends give PyTorch's own logits and gradients."""

import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_gan import LinfThreat, attacks, evaluation, interop
from robust_gan.errors import UserError
from robust_gan.evaluation import EvaluationConfig, EvaluationData, Model, batching, loading, sharded_model
from robust_gan.evaluation.models import EvaluatedModel
from robust_gan.evaluation.plan import plan_attacks
from robust_gan.evaluation.subject import prepare

torch = pytest.importorskip("torch")
nn = torch.nn

IMAGES = np.random.default_rng(0).random((6, 8, 8, 3), np.float32)
LABELS = np.array([0, 1, 2, 3, 4, 0], np.int32)
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(package), reason=f"needs {package}"))
    for name, package in (("callback", "torch"), ("torchax", "torchax"))
]


PARALLEL = nn.DataParallel(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))  # Before torchax is a device of PyTorch.


class Block(nn.Module):
    """A residual block, as usual in PyTorch."""

    def __init__(self, channels, scale=1.0):
        super().__init__()
        self.conv, self.norm, self.scale = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            scale,
        )

    def forward(self, x):
        return nn.functional.relu(self.norm(self.conv(x))) * self.scale + x


class Normalized(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3])[:, None, None])

    def forward(self, x):
        return self.model((x - self.mean) / 0.25)


def build(seed=0, scale=1.0, normalized=True):
    """Returns a module with running statistics of its own, in training mode."""
    torch.manual_seed(seed)
    layers = (
        nn.Conv2d(3, 8, 3, 2),
        Block(8, scale),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    model = nn.Sequential(*layers)
    model = Normalized(model) if normalized else model
    with torch.no_grad():
        model(torch.rand(16, 3, 8, 8))
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalized", [False, True])
def test_logits_and_gradients_are_those_of_pytorch(backend, normalized):
    module = build(normalized=normalized)
    logits_fn = interop.from_torch(module, backend=backend)
    assert module.training  # The user's own module keeps its mode.
    module.eval()
    points = torch.from_numpy(IMAGES).requires_grad_()
    expected = module(points.permute(0, 3, 1, 2))
    cotangent = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
    expected.backward(torch.from_numpy(cotangent))
    for transform in (lambda f: f, jax.jit):
        logits, pull = jax.vjp(transform(logits_fn), jnp.asarray(IMAGES))
        np.testing.assert_allclose(logits, expected.detach(), atol=1e-5)
        np.testing.assert_allclose(pull(cotangent)[0], points.grad, atol=1e-5)
    # Two graphs wait at most: the first passes below are repeated in their backward passes.
    many = jax.jit(jax.grad(lambda x: sum((logits_fn(x * scale) * cotangent).sum() for scale in (1.0, 0.9, 0.8, 0.7))))
    one = jax.jit(jax.grad(lambda x, scale: (logits_fn(x * scale) * cotangent).sum()))
    np.testing.assert_allclose(many(IMAGES), sum(one(IMAGES, scale) for scale in (1.0, 0.9, 0.8, 0.7)), atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_module_is_copied(backend):
    module = build()
    logits_fn = interop.from_torch(module, backend=backend)
    before = np.asarray(logits_fn(IMAGES))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(logits_fn(IMAGES), before)
    assert np.abs(interop.from_torch(module, backend=backend)(IMAGES) - before).max() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_modules_of_one_structure_share_what_is_compiled(backend):
    first, second, other = (interop.from_torch(build(*given), backend=backend) for given in ((0,), (1,), (0, 0.5)))
    assert first.func is second.func
    assert first.func is not other.func  # Its scale is no weight.
    logits = [np.asarray(logits_fn(IMAGES)) for logits_fn in (first, second, other)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    assert np.abs(logits[0] - logits[2]).max() > 1e-3
    hooked = build()
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    np.testing.assert_allclose(interop.from_torch(hooked, backend=backend)(IMAGES), 2 * logits[0], rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(3, 6, (3, 2), (2, 1), (1, 0)), nn.Conv2d(3, 6, 3, groups=3), nn.ConvTranspose2d(3, 6, 3, 2),
     nn.Conv2d(3, 6, 3, dilation=2, bias=False)],
)  # fmt: skip
def test_translated_convolutions_are_those_of_pytorch(layer, backend):
    module = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    logits_fn = interop.from_torch(module, backend=backend)
    points = torch.from_numpy(IMAGES).requires_grad_()
    logits = module(points.permute(0, 3, 1, 2))
    logits.square().sum().backward()
    gradient = jax.grad(lambda x: jnp.square(logits_fn(x)).sum())
    np.testing.assert_allclose(logits_fn(IMAGES), logits.detach(), atol=1e-6)
    np.testing.assert_allclose(gradient(IMAGES), points.grad, atol=1e-6)
    of_torchax = layer.groups > 1 or isinstance(layer, nn.ConvTranspose2d)
    assert ("conv_general_dilated" in str(jax.make_jaxpr(gradient)(IMAGES))) == of_torchax


class Writes(nn.Module):
    """Normalises its argument in place."""

    def forward(self, x):
        return x.sub_(0.5).mul_(4).mean((2, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_module_may_change_its_argument(backend):
    logits_fn, images = interop.from_torch(Writes(), backend=backend), jnp.asarray(IMAGES)
    for function in (logits_fn, jax.jit(logits_fn)):
        np.testing.assert_allclose(function(images), 4 * (IMAGES - 0.5).mean((1, 2)), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: logits_fn(x).sum()))(images)
    np.testing.assert_allclose(gradient, np.full_like(IMAGES, 4 / 64), rtol=1e-6)
    np.testing.assert_array_equal(images, IMAGES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_without_a_derivative_have_the_gradient_0(backend):
    logits_fn = interop.from_torch(Returns(lambda x: x.detach().mean((2, 3))), backend=backend)
    assert not np.any(jax.jit(jax.grad(lambda x: logits_fn(x).sum()))(IMAGES))


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_parallel_is_taken_off(backend):
    logits_fns = [interop.from_torch(module, backend=backend) for module in (PARALLEL, PARALLEL.module)]
    assert isinstance(PARALLEL, nn.DataParallel)
    np.testing.assert_array_equal(*(logits_fn(IMAGES) for logits_fn in logits_fns))


def test_a_second_module_compiles_no_attack_anew():
    misses = []
    for seed in (0, 1):
        logits_fn = batching.in_batches(interop.from_torch(build(seed)), 6)
        scores = evaluation.evaluate_transfer(
            [Model("net", logits_fn)], IMAGES, LABELS, LinfThreat(0.1), attacks=["fgsm"], devices=jax.devices()[:1]
        )
        misses.append(sharded_model._mapped.cache_info().misses)
    assert misses[0] == misses[1]
    adversarial = attacks.fgsm(logits_fn, jax.random.key(0), IMAGES, LABELS, LinfThreat(0.1))
    robust = (logits_fn(adversarial).argmax(-1) == LABELS) & (logits_fn(IMAGES).argmax(-1) == LABELS)
    np.testing.assert_array_equal(scores.robust["net", "net", "fgsm"], robust)


def test_a_module_by_callback_is_evaluated_on_one_device():
    model = EvaluatedModel(Model("net", interop.from_torch(build(), backend="callback")), {})
    data = EvaluationData.from_arrays(IMAGES, LABELS)
    plan = plan_attacks(EvaluationConfig(attacks="clean"))
    subject = prepare([model], 1, data, LinfThreat(0.1), plan, 6, 2 * jax.devices()[:1])
    assert len(subject.devices) == 1


def test_the_command_says_how_a_module_is_evaluated(tmp_path, monkeypatch, capsys):
    (tmp_path / "judged_net.py").write_text(
        "import torch\n\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert loading.load_model("judged_net:net")(np.zeros((2, 8, 8, 1), np.float32)).shape == (2, 10)
    assert capsys.readouterr().err.startswith("judged_net:net: a PyTorch module, put into evaluation mode, ")


class Stubborn(nn.Module):
    def train(self, mode=True):
        return self


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Stubborn(), "the PyTorch module Stubborn is in training mode after module.eval()"),
        (lambda: build().double(), "is torch.float64: evaluations compute in float32, call module.float()"),
        (
            lambda: nn.LazyLinear(2),
            "weight of the PyTorch module LazyLinear has no shape yet: call it on images, or load",
        ),
        (lambda: nn.Linear(3, 2, device="meta"), "is on the device meta: load its weights first"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "normalises with the statistics of the"),
        (lambda: torch.jit.script(nn.Linear(3, 2)), "is compiled by torch.jit: give the module that was compiled"),
        (
            lambda: Returns(lambda x: x),
            r"must return float32 logits \[2, K\] for 2 images, not torch.float32 \[2, 3, 8, 8\]",
        ),
        (lambda: Returns(lambda x: x.mean((2, 3)).double()), "not torch.float64"),
        pytest.param(
            lambda: Returns(lambda x: x.cuda().mean((2, 3))),
            r"fails on images of shape .* PyTorch finds no CUDA: leave out .cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (lambda: Returns(lambda x: (x,)), r"must return logits \[B, K\], not tuple"),
        (lambda: nn.Conv2d(1, 2, 3), r"the PyTorch module Conv2d fails on images of shape \[2, 3, 8, 8\]"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_that_cannot_be_evaluated_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence.replace("()", r"\(\)")):
        interop.from_torch(make())(IMAGES)


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(UserError, match=r"from_torch takes a torch.nn.Module, not builtin_function_or_method"):
        interop.from_torch(len)
    with pytest.raises(UserError, match="the backend must be one of torchax, callback, not 'onnx'"):
        interop.from_torch(build(), backend="onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"torch is not installed: pip install 'robust_gan\[torch\]'".replace("torch is", "PyTorch is")
    ):
        interop.from_torch(build())


def test_the_blocks_of_the_page_run():
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "pytorch.md"
    blocks = re.findall(r"```python.*?\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names = [{}, {}]
    for block, found in zip(blocks, names, strict=True):
        exec(compile(block, page.name, "exec"), found)
    assert interop.from_torch(names[0]["net"]())(np.zeros((2, 8, 8, 1), np.float32)).shape == (2, 10)

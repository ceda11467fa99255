"""PyTorch modules as classifiers: translated to JAX by torchax, or called by PyTorch itself through a callback."""

import collections
import copy
import functools
import hashlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from robust_gan.errors import UserError, one_line
from robust_gan.networks.convolution import convolution
from robust_gan.networks.inference import as_architecture
from robust_gan.types import LogitsFn

BACKENDS = ("torchax", "callback")
"""`torchax` translates the module to JAX; `callback` lets PyTorch compute logits and gradients, on one device."""

_CALLBACK = "PyTorch module by callback"
_MAX_GRAPHS = 2
"""Forward passes that wait for their backward pass; `in_batches` writes out at most as many calls."""
_PLAIN = (int, float, complex, bool, str, bytes, type(None), type, types.FunctionType, types.BuiltinFunctionType)

_Weights = Mapping[str, Any]


def is_torch_module(value: Any) -> bool:
    """Returns whether an object is a `torch.nn.Module`; imports nothing.

    >>> is_torch_module(len)
    False
    """
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def from_torch(module: Any, *, backend: str = "") -> LogitsFn:
    """Returns the classifier of a PyTorch module, in evaluation mode, differentiable in the images.

    The module and its weights are copied: the argument keeps its mode, and training it further changes nothing here.
    The weights are arguments of the compiled functions, which all modules of one structure share. They are constants
    to `jax.grad`.

    Args:
        module: `torch.nn.Module` in float32: images `[B, C, H, W]` in [0, 1] to logits `[B, K]`.
        backend: One of `BACKENDS`; empty for `torchax` where it is installed (extra `torch`), else `callback`.

    Returns:
        Images `[B, H, W, C]` in [0, 1] to logits `[B, K]`, a `jax.tree_util.Partial` that binds the weights.

    Raises:
        UserError: PyTorch or the backend is not installed, or the module cannot be evaluated: it stays in training
            mode, normalises with the statistics of the batch, is not in float32, or has no weights in memory. When the
            function is called: the module does not return logits `[B, K]`.

    >>> import pytest
    >>> torch = pytest.importorskip("torch")
    >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    >>> logits_fn = from_torch(module, backend="callback")
    >>> logits_fn(np.zeros((5, 2, 2, 3), np.float32)).shape
    (5, 3)
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed: pip install 'robust_gan[torch]'")
    if not is_torch_module(module):
        raise UserError(f"from_torch takes a torch.nn.Module, not {type(module).__name__}")
    backend = _check_backend(backend)
    module = _unwrap(module)
    kind = type(module).__name__
    if isinstance(module, sys.modules["torch"].jit.ScriptModule):
        raise UserError(f"the PyTorch module {kind} is compiled by torch.jit: give the module that was compiled")
    _check_tensors(kind, module)
    try:
        module = copy.deepcopy(module).cpu().eval().requires_grad_(False)
    except Exception as error:  # It is the user's own program, and may raise anything.
        raise UserError(
            f"the PyTorch module {kind} cannot be copied and put into evaluation mode: {one_line(error)}"
        ) from error
    _check_mode(kind, module)
    weights = {name: jax.numpy.array(tensor.numpy(), copy=True) for name, tensor in _tensors(module).items()}
    key = backend, _structure(module)
    if key[1] is None:
        return jax.tree_util.Partial(_make(module, backend), weights)
    if key not in _FUNCTIONS:
        _FUNCTIONS[key] = _make(module, backend)
    return jax.tree_util.Partial(_FUNCTIONS[key], weights)


_FUNCTIONS: dict[Any, Callable[[_Weights, jax.Array], jax.Array]] = {}
"""`(weights, images) -> logits` by backend and structure."""


def advise(sentence: str) -> str:
    """Returns a sentence on a function of PyTorch that failed, with a remedy where PyTorch or its CUDA is missing.

    >>> advise("the module mine of the model cannot be imported: No module named 'torch'")
    "the module mine of the model cannot be imported: No module named 'torch': pip install 'robust_gan[torch]'"
    """
    if "No module named 'torch'" in sentence:
        return f"{sentence}: pip install 'robust_gan[torch]'"
    if any(part in sentence for part in _NO_CUDA):
        return (
            f"{sentence.rstrip('.')}: PyTorch finds no CUDA: leave out .cuda() and device='cuda', load with {_TO_CPU}"
        )
    return sentence


_TO_CPU = "map_location='cpu'"
_NO_CUDA = (
    "Torch not compiled with CUDA", "Found no NVIDIA driver", "deserialize object on a CUDA device",
    "No CUDA GPUs are available",
)  # fmt: skip


def needs_one_device(logits_fn: LogitsFn) -> bool:
    """Returns whether a classifier is a PyTorch module that is called through a callback.

    >>> needs_one_device(len)
    False
    """
    return getattr(getattr(logits_fn, "func", None), "__name__", "") == _CALLBACK


def describe(module: Any, logits_fn: LogitsFn) -> str:
    """Returns how a PyTorch module is evaluated, in a phrase.

    Args:
        module: The module.
        logits_fn: The classifier that `from_torch` made of it.

    >>> import pytest
    >>> module = pytest.importorskip("torch").nn.Linear(2, 2).eval()
    >>> describe(module, from_torch(module, backend="callback"))[:36]
    'a PyTorch module, in evaluation mode'
    """
    mode = "put into evaluation mode" if module.training else "in evaluation mode"
    how = "translated to JAX by torchax"
    if needs_one_device(logits_fn):
        why = "" if _has_torchax() else " (translated to JAX with pip install 'robust_gan[torch]')"
        how = f"called through a callback, on one device{why}"
    return f"a PyTorch module, {mode}, {how}"


def _has_torchax() -> bool:
    return importlib.util.find_spec("torchax") is not None


def _check_backend(backend: str) -> str:
    if backend and backend not in BACKENDS:
        raise UserError(f"the backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend == "torchax" and not _has_torchax():
        raise UserError("torchax is not installed: pip install 'robust_gan[torch]'")
    return backend or ("torchax" if _has_torchax() else "callback")


def _tensors(module: Any) -> dict[str, Any]:
    return {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def _unwrap(module: Any) -> Any:
    """Returns the module inside of `torch.compile` and `DataParallel`."""
    if isinstance(module, sys.modules["torch"].nn.DataParallel):
        return _unwrap(module.module)
    return _unwrap(module._orig_mod) if hasattr(module, "_orig_mod") else module


def _check_tensors(kind: str, module: Any) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if sys.modules["torch"].nn.parameter.is_lazy(tensor):
            raise UserError(f"{name} of the PyTorch module {kind} has no shape yet: call it on images, or load weights")
        if tensor.is_meta:
            raise UserError(f"{name} of the PyTorch module {kind} is on the device meta: load its weights first")
        if tensor.is_floating_point() and str(tensor.dtype) != "torch.float32":
            raise UserError(
                f"{name} of the PyTorch module {kind} is {tensor.dtype}: evaluations compute in float32, call "
                "module.float()"
            )


def _check_mode(kind: str, module: Any) -> None:
    for name, part in module.named_modules():
        where = f"the PyTorch module {kind}" + (f" ({name}, {type(part).__name__})" if name else "")
        if part.training:
            raise UserError(f"{where} is in training mode after module.eval(): let its method train(False) leave it")
        if "BatchNorm" in type(part).__name__ and getattr(part, "running_mean", part) is None:
            raise UserError(
                f"{where} normalises with the statistics of the batch in evaluation mode too, so that an image's "
                "logits depend on the others: set track_running_stats=True"
            )


def _structure(module: Any) -> Any:
    """Returns all that a module's function depends on beside its weights, hashable; None where that is not known."""
    try:
        return tuple(
            (name, type(part), tuple((key, _freeze(value)) for key, value in sorted(vars(part).items())))
            for name, part in module.named_modules()
        )
    except TypeError:
        return None


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        # Parameters, buffers and parts are visited by name; hooks and other objects are not known.
        torch = sys.modules["torch"]
        known = {
            key: (tuple(part.shape), str(part.dtype))
            if isinstance(part, torch.Tensor)
            else (type(part) if isinstance(part, torch.nn.Module) else _freeze(part))
            for key, part in value.items()
        }
        return tuple(known.items())
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_freeze, value))
    if isinstance(value, set):
        return frozenset(map(_freeze, value))
    if hasattr(value, "is_meta") and hasattr(value, "numpy"):  # A tensor that is an attribute, no buffer.
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.detach().cpu().numpy().tobytes()).hexdigest()
    if isinstance(value, _PLAIN) or type(value).__module__ == "torch":  # Of torch: dtypes, devices, sizes.
        return type(value), value
    raise TypeError(f"an attribute of type {type(value).__name__}")


def _make(module: Any, backend: str) -> Callable[[_Weights, jax.Array], jax.Array]:
    """Returns `(weights, images) -> logits`."""
    num_classes = functools.cache(functools.partial(_num_classes, module))
    call = _by_torchax(module) if backend == "torchax" else _by_callback(module, num_classes)

    def apply(weights: _Weights, images: jax.Array) -> jax.Array:
        num_classes(tuple(images.shape[1:]))
        return call(weights, jax.numpy.asarray(images, np.float32))

    apply.__name__ = _CALLBACK if backend == "callback" else "PyTorch module by torchax"
    return as_architecture(apply, f"PyTorch module {type(module).__name__} by {backend}")


def _num_classes(module: Any, image_shape: tuple[int, ...]) -> int:
    """Calls the module with two black images and returns K."""
    torch, kind = sys.modules["torch"], type(module).__name__
    height, width, channels = image_shape
    try:
        with torch.no_grad():
            logits = module(torch.zeros(2, channels, height, width))
    except Exception as error:  # It is the user's own program, and may raise anything.
        raise UserError(
            advise(
                f"the PyTorch module {kind} fails on images of shape [2, {channels}, {height}, {width}]: "
                f"{one_line(error)}"
            )
        ) from error
    if not isinstance(logits, torch.Tensor):
        hint = ": return the logits alone, output.logits" if hasattr(logits, "logits") else ""
        raise UserError(f"the PyTorch module {kind} must return logits [B, K], not {type(logits).__name__}{hint}")
    if logits.ndim != 2 or len(logits) != 2 or logits.dtype != torch.float32:
        raise UserError(
            f"the PyTorch module {kind} must return float32 logits [2, K] for 2 images, not {logits.dtype} "
            f"{list(logits.shape)}"
        )
    return logits.shape[1]


def _by_torchax(module: Any) -> Callable[[_Weights, jax.Array], jax.Array]:
    import torch
    import torchax.interop

    _use_fast_convolutions()

    def forward(weights, images):
        return torch.func.functional_call(module, weights, (images.permute(0, 3, 1, 2),))

    translated = torchax.interop.jax_view(forward)

    def call(weights, images):
        try:
            return translated(dict(weights), images)
        except Exception as error:
            raise UserError(
                f"torchax cannot translate the PyTorch module {type(module).__name__} ({type(error).__name__}: "
                f"{one_line(error)}): give robust_gan.interop.from_torch(module, backend='callback')"
            ) from error

    return call


@functools.cache
def _use_fast_convolutions() -> None:
    """Lets torchax compute convolutions as `networks.convolution` does; gradients of its own are slow on CPUs."""
    import torch
    import torchax.interop
    from torchax.ops import ops_registry

    environment, name = torchax.default_env(), torch.ops.aten.convolution  # It registers the operations.
    plain = ops_registry.all_aten_ops[name].func

    def convolve(images, kernel, bias, strides, padding, dilation, transposed, output_padding, groups):
        if images.ndim != 4 or transposed or groups != 1:
            return plain(images, kernel, bias, strides, padding, dilation, transposed, output_padding, groups)
        pads = [(width, width) for width in padding]
        last, kernel = images.transpose(0, 2, 3, 1), kernel.transpose(2, 3, 1, 0)
        made = convolution(last, kernel, strides, pads, rhs_dilation=dilation)
        return (made if bias is None else made + bias).transpose(0, 3, 1, 2)

    environment.override_op_definition(name, functools.partial(torchax.interop.call_jax, convolve))


def _by_callback(module: Any, num_classes: Callable) -> Callable[[_Weights, jax.Array], jax.Array]:
    host = _Host(module)

    def shapes(images):
        return jax.ShapeDtypeStruct((images.shape[0], num_classes(tuple(images.shape[1:]))), np.float32)

    @jax.custom_vjp
    def call(weights, images):
        return jax.pure_callback(host.logits, shapes(images), weights, images, vmap_method="sequential")

    def forward(weights, images):
        results = shapes(images), jax.ShapeDtypeStruct((), np.int32)
        logits, token = jax.pure_callback(host.forward, results, weights, images, vmap_method="sequential")
        return logits, (weights, images, token)

    def backward(residuals, cotangent):
        images = residuals[1]
        result = jax.ShapeDtypeStruct(images.shape, images.dtype)
        return None, jax.pure_callback(host.backward, result, *residuals, cotangent, vmap_method="sequential")

    call.defvjp(forward, backward)
    return call


class _Host:
    """Computes logits and their derivatives in PyTorch.

    A forward pass keeps its graph for the backward pass that follows, by a token. Where that is gone, because passes
    were left out, repeated or reordered by the compiler, the forward pass is repeated: the result is the same.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._graphs: collections.OrderedDict[int, tuple[Any, Any]] = collections.OrderedDict()
        self._tokens = 0

    def logits(self, weights, images):
        torch = sys.modules["torch"]
        with torch.no_grad():
            return self._call(weights, torch.from_dlpack(images)).numpy()

    def forward(self, weights, images):
        self._tokens = (self._tokens + 1) % 2**31
        self._graphs[self._tokens] = graph = self._record(weights, images)
        if len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return graph[1].detach().numpy(), np.int32(self._tokens)

    def backward(self, weights, images, token, cotangent):
        torch = sys.modules["torch"]
        points, logits = self._graphs.pop(int(token), None) or self._record(weights, images)
        if not logits.requires_grad:  # They are computed without a derivative, as of `detach`.
            return np.zeros(images.shape, np.float32)
        return torch.autograd.grad(logits, points, torch.from_dlpack(cotangent), materialize_grads=True)[0].numpy()

    def _record(self, weights, images):
        torch = sys.modules["torch"]
        points = torch.from_dlpack(images).requires_grad_()
        weights = {name: np.array(weight) for name, weight in weights.items()}
        with torch.enable_grad():
            return points, self._call({n: torch.from_numpy(w) for n, w in weights.items()}, points)

    def _call(self, weights, images):
        torch = sys.modules["torch"]
        weights = {n: w if isinstance(w, torch.Tensor) else torch.from_dlpack(w) for n, w in weights.items()}
        # A copy: modules may change their argument, and a graph outlives the buffer of the images.
        return torch.func.functional_call(self._module, weights, (images.permute(0, 3, 1, 2).clone(),))

"""The networks of `robust_gan.networks` in PyTorch, for images `[B, C, H, W]`, with the weights of a flax tree.

TensorFlow and flax pad a convolution of stride 2 at the end, PyTorch and the released networks of the paper on both
sides. `aligned=True` pads as the flax network does, with operations of its own, so that the same weights give the same
outputs; `aligned=False` is what one writes in PyTorch: the same work without those operations, and so what is timed.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Conv(nn.Conv2d):
    """A convolution with padding "SAME"."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, *, aligned: bool, bias: bool = False):
        self.shift = aligned and stride == 2 and size > 1
        super().__init__(inputs, outputs, size, stride, padding=0 if self.shift else size // 2, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` to `[B, C', H / stride, W / stride]`."""
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.shift else x)


class TransposedConv(nn.ConvTranspose2d):
    """A 3x3 transposed convolution that doubles height and width."""

    def __init__(self, inputs: int, outputs: int, *, aligned: bool):
        self.shift = aligned
        where = {} if aligned else {"padding": 1, "output_padding": 1}
        super().__init__(inputs, outputs, 3, 2, bias=False, **where)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` to `[B, C', 2 H, 2 W]`."""
        y = super().forward(x)
        return y[:, :, :-1, :-1] if self.shift else y


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm with the statistics of the batch; the running ones move only where `moves` says so."""

    moves = True

    def __init__(self, channels: int):
        super().__init__(channels, momentum=0.003)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises; where not in training, with the running statistics."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        running = (self.running_mean, self.running_var) if self.moves else (None, None)
        return F.batch_norm(x, *running, self.weight, self.bias, training=True, momentum=self.momentum)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, a shortcut, and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, project: bool, aligned: bool):
        super().__init__()
        self.Conv_0 = Conv(inputs, outputs, 3, stride, aligned=aligned)
        self.BatchNorm_0 = BatchNorm(outputs)
        self.Conv_1 = Conv(outputs, outputs, 3, aligned=aligned)
        self.BatchNorm_1 = BatchNorm(outputs)
        if project:
            self.projection = Conv(inputs, outputs, 1, stride, aligned=aligned)
            self.projection_norm = BatchNorm(outputs)
        self.project = project

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, C, H, W]` to `[B, C', H / stride, W / stride]`."""
        y = F.relu(self.BatchNorm_0(self.Conv_0(x)))
        y = self.BatchNorm_1(self.Conv_1(y))
        return F.relu(y + (self.projection_norm(self.projection(x)) if self.project else x))


class ResNet(nn.Module):
    """The classifiers `resnet20`, `resnet20_wide` and `resnet18` (`aligned`): images in [0, 1] to logits."""

    def __init__(self, stem: int, widths: Sequence[int], blocks: int, *, project_first: bool, aligned: bool):
        super().__init__()
        self.Conv_0, self.BatchNorm_0, inputs = Conv(3, stem, 3, aligned=aligned), BatchNorm(stem), stem
        self.blocks = []
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                project = not block and (stage > 0 or project_first)
                made = ResidualBlock(inputs, width, stride, project=project, aligned=aligned)
                setattr(self, f"ResidualBlock_{len(self.blocks)}", made)
                self.blocks.append(f"ResidualBlock_{len(self.blocks)}")
                inputs = width
        self.Dense_0 = nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, 3, H, W]` to `[B, 10]`."""
        x = F.relu(self.BatchNorm_0(self.Conv_0(2 * x - 1)))
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.Dense_0(x.mean(dim=(2, 3)))


class DigitsCNN(nn.Module):
    """The classifier `digits_cnn`."""

    def __init__(self, *, aligned: bool):
        super().__init__()
        for index, (inputs, outputs, stride) in enumerate(((1, 32, 1), (32, 64, 2), (64, 64, 1))):
            setattr(self, f"Conv_{index}", Conv(inputs, outputs, 3, stride, aligned=aligned))
            setattr(self, f"BatchNorm_{index}", BatchNorm(outputs))
        self.Dense_0 = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, 1, 8, 8]` to `[B, 10]`."""
        x = 2 * x - 1
        for index in range(3):
            x = F.relu(getattr(self, f"BatchNorm_{index}")(getattr(self, f"Conv_{index}")(x)))
        return self.Dense_0(x.mean(dim=(2, 3)))


class MnistCNN(nn.Module):
    """The classifier `mnist_cnn`."""

    def __init__(self, *, aligned: bool):
        super().__init__()
        self.Conv_0 = Conv(1, 32, 5, aligned=aligned, bias=True)
        self.Conv_1 = Conv(32, 64, 5, aligned=aligned, bias=True)
        self.Dense_0 = nn.Linear(7 * 7 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, 1, 28, 28]` to `[B, 10]`."""
        x = F.max_pool2d(F.relu(self.Conv_0(2 * x - 1)), 2)
        x = F.max_pool2d(F.relu(self.Conv_1(x)), 2)
        return self.Dense_0(x.permute(0, 2, 3, 1).flatten(1))


class StridedCNN(nn.Module):
    """The classifier `mnist_cnn_strided`, whose padding is PyTorch's."""

    def __init__(self, *, aligned: bool):
        del aligned
        super().__init__()
        self.Conv_0, self.Conv_1 = nn.Conv2d(1, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)
        self.Dense_0, self.Dense_1 = nn.Linear(7 * 7 * 32, 100), nn.Linear(100, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, 1, 28, 28]` to `[B, 10]`."""
        x = F.relu(self.Conv_1(F.relu(self.Conv_0(2 * x - 1))))
        return self.Dense_1(F.relu(self.Dense_0(x.permute(0, 2, 3, 1).flatten(1))))


class Generator(nn.Module):
    """The generator `resnet_generator`, and its lighter forms: what it sees, in [0, 1], to noise in [-1, 1]."""

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256),
        blocks: int = 6,
        *,
        inputs: int = 3,
        project_first: bool = True,
        aligned: bool,
    ):
        super().__init__()
        self.layers = []
        shifted = aligned and not project_first  # The paper's own pads as PyTorch does.
        for level, width in enumerate(widths):
            self._add(f"Conv_{level}", Conv(inputs, width, 3, 2 if level else 1, aligned=shifted), level, width)
            inputs = width
        for block in range(blocks):
            made = ResidualBlock(inputs, inputs, 1, project=project_first and not block, aligned=shifted)
            setattr(self, f"ResidualBlock_{block}", made)
            self.layers.append((f"ResidualBlock_{block}", None))
        for level, width in enumerate(reversed(widths[:-1])):
            made = TransposedConv(inputs, width, aligned=aligned)
            self._add(f"TransposedConv_{level}", made, len(widths) + level, width)
            inputs = width
        self.last = f"Conv_{len(widths)}"
        setattr(self, self.last, Conv(inputs, 3, 3, aligned=aligned, bias=True))

    def _add(self, name: str, layer: nn.Module, norm: int, width: int) -> None:
        setattr(self, name, layer)
        setattr(self, f"BatchNorm_{norm}", BatchNorm(width))
        self.layers.append((name, f"BatchNorm_{norm}"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[B, inputs, H, W]` to `[B, 3, H, W]`."""
        x = 2 * x - 1
        for name, norm in self.layers:
            x = getattr(self, name)(x)
            x = x if norm is None else F.relu(getattr(self, norm)(x))
        return torch.tanh(getattr(self, self.last)(x))


_SMALL = {"digits_cnn": DigitsCNN, "mnist_cnn": MnistCNN, "mnist_cnn_strided": StridedCNN}
_CLASSIFIERS = {
    "resnet20": (16, (16, 32, 64), 3, True),
    "resnet20_wide": (16, (160, 320, 640), 3, True),
    "resnet18": (64, (64, 128, 256, 512), 2, False),
}


def classifier(name: str, *, aligned: bool = False) -> nn.Module:
    """Builds the twin of a classifier of 10 classes."""
    if name in _SMALL:
        return _SMALL[name](aligned=aligned)
    stem, widths, blocks, project_first = _CLASSIFIERS[name]
    return ResNet(stem, widths, blocks, project_first=project_first, aligned=aligned and name == "resnet18")


def load(module: nn.Module, params: Mapping, batch_stats: Mapping) -> None:
    """Copies the arrays of a flax network, nested mappings of NumPy arrays, into its twin."""
    state = {path: torch.from_numpy(_of_flax(path, array)) for path, array in _flat(params)}
    names = {"mean": "running_mean", "var": "running_var"}
    for path, array in _flat(batch_stats):
        layer, _, leaf = path.rpartition(".")
        state[f"{layer}.{names[leaf]}"] = torch.from_numpy(np.array(array))
    state = {path.replace(".kernel", ".weight").replace(".scale", ".weight"): leaf for path, leaf in state.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing


def as_flax(path: str, gradient: torch.Tensor) -> tuple[str, np.ndarray]:
    """Returns the flax path of a parameter and its gradient in the layout of flax."""
    layer, _, leaf = path.rpartition(".")
    array = gradient.detach().float().cpu().numpy()
    if leaf == "bias":
        return path, array
    if array.ndim == 1:
        return f"{layer}.scale", array
    if array.ndim == 2:
        return f"{layer}.kernel", array.T
    if "TransposedConv" in layer:
        return f"{layer}.kernel", array[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
    return f"{layer}.kernel", array.transpose(2, 3, 1, 0)


def differences(module: nn.Module, gradient: Mapping) -> list[float]:
    """Returns how far its gradients are from those of a flax tree, each beside the largest element of its tensor."""
    found = []
    for path, parameter in module.named_parameters():
        name, theirs = as_flax(path, parameter.grad)
        ours = np.asarray(functools.reduce(lambda tree, part: tree[part], name.split("."), gradient))
        found.append(float(np.max(np.abs(ours - theirs)) / max(np.max(np.abs(ours)), 1e-6)))
    return found


def _of_flax(path: str, array: np.ndarray) -> np.ndarray:
    array = np.array(array)
    if array.ndim == 2:
        return np.ascontiguousarray(array.T)
    if array.ndim == 4:
        # PyTorch flips the kernel of a transposed convolution, and lax does not.
        moved = array[::-1, ::-1].transpose(2, 3, 0, 1) if "TransposedConv" in path else array.transpose(3, 2, 0, 1)
        return np.ascontiguousarray(moved)
    return array


def _flat(tree: Mapping, prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

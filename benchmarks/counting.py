"""How many floating-point operations the networks and a step need: counted on paper, without any library.

Two for a multiplication and its addition; of convolutions and dense layers alone, which are 99 % of the work. Taps that
fall on padding, or on the holes of a transposed convolution, are not counted, since nobody has to compute them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Layer(NamedTuple):
    """A convolution: its channels and how often each weight of a pair of channels is used on one image."""

    inputs: int
    outputs: int
    taps: int

    @property
    def flops(self) -> int:
        """Of the forward pass, of the gradient in the input, and of that in the kernel: each as many."""
        return 2 * self.inputs * self.outputs * self.taps


class Cost(NamedTuple):
    """FLOP of a network on one image: `forward`, and what the input's gradient of the first layer would be."""

    forward: int
    first: int

    @property
    def with_weights(self) -> int:
        """Forward pass and the gradient in the weights; nobody asks for that in the images."""
        return 3 * self.forward - self.first

    @property
    def with_images(self) -> int:
        """Forward pass and the gradient in the images alone."""
        return 2 * self.forward

    @property
    def with_both(self) -> int:
        """Forward pass and both gradients."""
        return 3 * self.forward


def taps(size: int, kernel: int, stride: int = 1) -> int:
    """Returns how many weights of one row of a kernel meet a pixel, summed over the outputs of a row.

    >>> taps(4, 3), taps(4, 3, 2), taps(4, 1, 2)
    (10, 5, 2)
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    starts = range(-(total // 2), size - kernel + total - total // 2 + 1, stride)
    return sum(0 <= start + tap < size for start in starts for tap in range(kernel))


def _conv(size: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> Layer:
    return Layer(inputs, outputs, taps(size, kernel, stride) ** 2)


def _block(size: int, inputs: int, outputs: int, stride: int, project: bool) -> Iterator[Layer]:
    yield _conv(size, inputs, outputs, stride=stride)
    yield _conv(size // stride, outputs, outputs)
    if project:
        yield _conv(size, inputs, outputs, 1, stride)


def _classifier(stem: int, widths: Sequence[int], blocks: int, project_first: bool) -> Iterator[Layer]:
    size, inputs = 32, stem
    yield _conv(size, 3, stem)
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            yield from _block(size, inputs, width, stride, not block and (stage > 0 or project_first))
            size, inputs = size // stride, width
    yield Layer(inputs, 10, 1)


def _generator(widths: Sequence[int] = (64, 128, 256), blocks: int = 6) -> Iterator[Layer]:
    size, inputs = 32, 3
    for level, width in enumerate(widths):
        stride = 2 if level else 1
        yield _conv(size, inputs, width, stride=stride)
        size, inputs = size // stride, width
    for block in range(blocks):
        yield from _block(size, inputs, inputs, 1, not block)
    for width in reversed(widths[:-1]):
        # A pixel reaches 3 outputs in a row, the last one only 2.
        yield Layer(inputs, width, (3 * size - 1) ** 2)
        size, inputs = 2 * size, width
    yield _conv(size, inputs, 3)


_CLASSIFIERS = {
    "resnet20": (16, (16, 32, 64), 3, True),
    "resnet20_wide": (16, (160, 320, 640), 3, True),
    "resnet18": (64, (64, 128, 256, 512), 2, False),
}


def _cost(layers: Iterator[Layer]) -> Cost:
    counted = [layer.flops for layer in layers]
    return Cost(sum(counted), counted[0])


def classifier(name: str) -> Cost:
    """Returns the cost of a classifier of 32x32 colour images."""
    return _cost(_classifier(*_CLASSIFIERS[name]))


def generator() -> Cost:
    """Returns the cost of the generator of 32x32 colour images."""
    return _cost(_generator())


def step(name: str, batch: int, *, generator_steps: int = 5, penalty: str = "none") -> int:
    """Returns the FLOP of the game's step without a repetition.

    Args:
        name: The classifier.
        batch: Images.
        generator_steps: k; each is the generator forward and backward, through the classifier to its images.
        penalty: `none`; `finite_difference`, whose adversarial term is one backward pass to both players' weights, and
            which adds the generator forward and the classifier once more; `exact`, which instead of these carries
            tangents through the generator and through both passes of the classifier.

    >>> round(step("resnet20", 64, penalty="finite_difference") / 1e9)
    1206
    """
    d, g = classifier(name), generator()
    work = generator_steps * (g.with_weights + d.with_images) + d.with_weights
    if penalty == "none":
        work += g.forward + d.with_weights
    else:
        work += g.with_weights + d.with_both
    if penalty == "finite_difference":
        work += g.forward + d.with_weights
    elif penalty == "exact":
        # Tangents: of the generator in weights and activations; of the classifier's activations, of the gradients in
        # them (one term each) and of those in the weights (two). What they are tangents of is there already.
        work += 2 * g.forward - g.first + 4 * d.forward
    return batch * work

"""Programs compiled for TPUs that are not there: memory, FLOPs, collectives and a lower bound of the time.

XLA's compiler for TPUs is in `libtpu`, which needs no TPU to compile (extra `tpu-aot`).

References:
    The JAX authors, "Ahead-of-time lowering and compilation", https://docs.jax.dev/en/latest/aot.html
    Google, "TPU versions", https://cloud.google.com/tpu/docs/system-architecture-tpu-vm (memory, peak, bandwidth).
    Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model", CACM 2009.
"""

import collections
import importlib.util
import math
import os
import re
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from robust_gan.errors import UserError, one_line
from robust_gan.types import PyTree


class Chip(NamedTuple):
    """What Google publishes of a chip.

    Attributes:
        memory: Bytes of its HBM.
        flops_per_second: Peak, in bfloat16.
        bytes_per_second: Bandwidth of its HBM.
    """

    memory: float
    flops_per_second: float
    bytes_per_second: float


CHIPS = {
    "v4": Chip(32e9, 275e12, 1228e9),
    "v5e": Chip(16e9, 197e12, 819e9),
    "v5p": Chip(95e9, 459e12, 2765e9),
    "v6e": Chip(32e9, 918e12, 1640e9),
}
"""Chips by the first part of a topology's name."""


_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    # Else libtpu is for one process at a time, though a compiler holds no TPU.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "4",
    "TPU_MIN_LOG_LEVEL": "4",
}


class Compiled(NamedTuple):
    """A program compiled for a topology; all figures are of one chip.

    Attributes:
        topology: Its name, `v5e:2x2`.
        program: What it computes: `a step`, or the name of an attack.
        num_devices: The number of devices.
        batch_size: Images in a batch, over all devices.
        arguments: Bytes of the weights, statistics and moments of the networks, and of a batch.
        training_images: Bytes of the training set, of which each chip has a copy.
        temporaries: Bytes of the intermediate results.
        flops: Convolutions and matrix products, loops of known length in full.
        bytes_accessed: XLA's count of loop bodies once, scaled as its FLOPs are to `flops`.
        collectives: Kind, number and bytes of each kind in the program text, which has loop bodies once.
        num_fusions: Fused computations.
        compile_seconds: CPU seconds of the compilation.
        refusal: Why the compiler refused a program that does not fit; empty if it compiled.
    """

    topology: str
    program: str
    num_devices: int
    batch_size: int
    arguments: int = 0
    training_images: int = 0
    temporaries: int = 0
    flops: float = 0.0
    bytes_accessed: float = 0.0
    collectives: tuple[tuple[str, int, int], ...] = ()
    num_fusions: int = 0
    compile_seconds: float = 0.0
    refusal: str = ""

    @property
    def chip(self) -> Chip:
        """The chip of the topology."""
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def fits(self) -> bool:
        """Whether it compiled, and all its arrays fit into the memory of a chip."""
        return not self.refusal and self.memory_left >= 0

    @property
    def memory_left(self) -> float:
        """Bytes of the chip's memory that nothing takes."""
        return self.chip.memory - self.arguments - self.training_images - self.temporaries

    @property
    def seconds(self) -> float:
        """The roofline: the program takes no less than its FLOPs at the peak, or its bytes at the bandwidth."""
        return max(self.flops / self.chip.flops_per_second, self.bytes_accessed / self.chip.bytes_per_second)


def find_topology(name: str) -> list[jax.Device]:
    """Returns the devices of a TPU topology, which need not be there.

    Args:
        name: The chip and the grid, such as `v5e:2x2` or `v4:2x2x1`.

    Raises:
        UserError: The chip or the grid is unknown, or libtpu is not installed.
    """
    chip = name.partition(":")[0]
    if chip not in CHIPS:
        raise UserError(f"unknown topology {name!r}: give a chip of {', '.join(CHIPS)} and a grid, such as v5e:2x2")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu: pip install 'robust_gan[tpu-aot]'")
    # No TPU is looked for, in the machine or on the network, and its library does not write to the terminal.
    jax.config.update("jax_platforms", "cpu")
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except Exception as error:  # Of the library's own kind.
        raise UserError(f"unknown topology {name!r}: {one_line(error)}") from None


def compile_program(found: Compiled, mapped: Any, *arguments: PyTree, training_images: PyTree = ()) -> Compiled:
    """Compiles a program for the devices that it is mapped over.

    Args:
        found: Its topology, name, devices and batch size.
        mapped: What `jax.jit` or `jax.pmap` returned.
        *arguments: Arrays, or their shapes.
        training_images: Those of the arguments whose bytes are counted apart.

    Returns:
        `found` with all figures.
    """
    flops = count_flops(jax.make_jaxpr(mapped)(*arguments).jaxpr)
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            # A cached program cannot be loaded without a TPU: it is compiled again.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
            compiled = mapped.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return found._replace(flops=flops, refusal=one_line(error), compile_seconds=time.process_time() - began)
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text() or ""
    once = cost.get("flops", 0.0)
    images = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(training_images))
    return found._replace(
        arguments=memory.argument_size_in_bytes - images,
        training_images=images,
        temporaries=memory.temp_size_in_bytes,
        flops=flops,
        bytes_accessed=cost.get("bytes accessed", 0.0) * max(flops / once if once > 0 else 1.0, 1.0),
        collectives=count_collectives(text),
        num_fusions=len(re.findall(r" fusion\(", text)),
        compile_seconds=time.process_time() - began,
    )


def count_flops(jaxpr: Any) -> float:
    """Returns the FLOPs of the convolutions and matrix products of a program, two for a product with its addition.

    A loop counts in full where its length is known; the body of one whose length is data counts once: it is one step.

    >>> import jax, jax.numpy as jnp
    >>> count_flops(jax.make_jaxpr(lambda a, b: a @ b)(jnp.ones((2, 3)), jnp.ones((3, 4))).jaxpr)
    48.0
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        shapes = [variable.aval.shape for variable in equation.invars if hasattr(variable.aval, "shape")]
        if name == "dot_general":
            contracted = math.prod(shapes[0][axis] for axis in params["dimension_numbers"][0][0])
            total += 2.0 * contracted * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = [shapes[1][axis] for axis in params["dimension_numbers"].rhs_spec[1:]]
            out = math.prod(equation.outvars[0].aval.shape)
            total += 2.0 * out * math.prod(kernel) / math.prod(params["lhs_dilation"])
        elif name == "convolution_contraction":
            total += _contraction_flops(params["result"], shapes, equation.outvars[0].aval.shape, params["geometry"])
        elif name == "cond":
            total += max(count_flops(branch.jaxpr) for branch in params["branches"])
        else:
            repeats = params["length"] if name == "scan" else 1
            total += repeats * sum(count_flops(inner) for value in params.values() for inner in _jaxprs(value))
    return total


def _jaxprs(value: Any) -> list[Any]:
    if hasattr(value, "eqns"):
        return [value]
    return [value.jaxpr] if hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns") else []


def _contraction_flops(result: str, shapes: Sequence[Any], out: Sequence[int], geometry: Any) -> float:
    """Of a convolution or of either of its gradients, which all have as many; taps on padding count, on holes not."""
    slots = [slot for slot in ("images", "kernel", "output") if slot != result]
    arrays = {result: out, **dict(zip(slots, shapes, strict=True))}
    batch = arrays["images"][0] if "images" in arrays else arrays["output"][0]
    inputs, outputs = arrays["kernel"][2:] if "kernel" in arrays else (arrays["images"][3], arrays["output"][3])
    pixels = math.prod(geometry.output_size) / math.prod(geometry.image_dilation)
    return 2.0 * batch * pixels * math.prod(geometry.kernel_size) * inputs * outputs


def count_collectives(text: str) -> tuple[tuple[str, int, int], ...]:
    """Returns kind, number and bytes of each kind of collectives in a compiled program, those in loop bodies once.

    >>> count_collectives("%a = (f32[4]{0}, bf16[2,2]{1,0}) all-reduce(%b, %c), replica_groups={}")
    (('all-reduce', 1, 24),)
    """
    kinds = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
    found: dict[str, list[int]] = collections.defaultdict(list)
    for shape, kind in re.findall(rf"= (.+?) ({kinds})(?:-start)?\(", text):
        sizes = re.findall(r"\b([a-z]+?)(\d+)\[([\d,]*)\]", shape)
        found[kind].append(
            sum(int(bits) // 8 * math.prod(map(int, filter(None, dims.split(",")))) for _, bits, dims in sizes)
        )
    return tuple((kind, len(sizes), sum(sizes)) for kind, sizes in sorted(found.items()))


def format_compiled(found: Compiled) -> str:
    """Returns the figures of a compiled program as text.

    >>> print(format_compiled(Compiled("v5e:2x2", "a step", 4, 64, refusal="out of memory")).splitlines()[-1])
    a batch of 64 does not fit: out of memory
    """
    share = found.batch_size // found.num_devices
    lines = [f"{found.program} on {found.topology}: {found.num_devices} devices, {share} images on each"]
    if found.refusal:
        return "\n".join([*lines, f"a batch of {found.batch_size} does not fit: {found.refusal}"])
    chip = found.chip
    fits = f"left of {chip.memory / 1e9:.0f} GB of HBM: the batch {'fits' if found.fits else 'does not fit'}"
    sizes = {
        "networks, optimizers and batch": found.arguments,
        "training images, a copy on each chip": found.training_images,
        "temporaries": found.temporaries,
        fits: found.memory_left,
    }
    lines += ["memory of a chip:", *(f"  {size / 1e6:10.1f} MB  {purpose}" for purpose, size in sizes.items() if size)]
    lines.append(
        f"work of {found.program} on a chip: {found.flops / 1e9:.1f} GFLOP in convolutions and matrix products, "
        f"{found.bytes_accessed / 1e9:.2f} GB read and written"
    )
    for kind, count, size in found.collectives:
        lines.append(f"  {count} {kind}, {size / 1e6:.2f} MB (those in loops once)")
    bound = "peak" if found.flops / chip.flops_per_second >= found.seconds else "bandwidth"
    lines += [
        f"time of {found.program} by the roofline: {1000 * found.seconds:.3g} ms, bound by the {bound} "
        f"(published: {chip.flops_per_second / 1e12:.0f} TFLOP/s in bfloat16, {chip.bytes_per_second / 1e9:.0f} GB/s)",
        f"compiled in {found.compile_seconds:.0f} CPU seconds, {found.num_fusions:,} fusions",
    ]
    return "\n".join(lines)

"""A JAX function as a list of primitive operations, without nested calls: what the bounds of this package interpret."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from robust_gan.errors import UserError, one_line

_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"}
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Value(int):
    """The number of a value that depends on the input; any other operand is a constant."""


class Equation(NamedTuple):
    """One operation.

    Attributes:
        primitive: The primitive of JAX.
        params: Its parameters.
        operands: For each operand a `Value` or a constant.
        outputs: Its results.
        dtype: The dtype of the first result.
    """

    primitive: Any
    params: dict[str, Any]
    operands: tuple[Any, ...]
    outputs: tuple[Value, ...]
    dtype: Any

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.primitive.name


class Program(NamedTuple):
    """A function of one array, as operations in the order of their execution.

    Attributes:
        equations: The operations; `Value(0)` is the input.
        output: The result: a `Value`, or a constant where the input does not matter.
    """

    equations: Sequence[Equation]
    output: Any


def trace(fn: Callable[[jax.Array], jax.Array], like: jax.Array | jax.ShapeDtypeStruct) -> Program:
    """Returns the program of a function for inputs of one shape and dtype.

    Args:
        fn: A function that JAX can trace, from one array to one array of floats.
        like: An array, or its shape and dtype.

    Raises:
        UserError: The function cannot be traced, or returns something other than one array of floats.

    >>> program = trace(lambda x: jax.nn.relu(x) + 1, jnp.zeros(3))
    >>> [equation.name for equation in program.equations], program.output
    (['max', 'add'], 2)
    """
    try:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(like)
    except TypeError as error:  # Among them those of JAX: a branch or a NumPy function needs the pixels themselves.
        raise UserError(
            "certification needs a deterministic function of images alone, in JAX, whose control flow does not depend "
            f"on the pixels; this one cannot be traced: {one_line(error)}"
        ) from error
    if not isinstance(shapes, jax.ShapeDtypeStruct) or not jnp.issubdtype(shapes.dtype, jnp.floating):
        raise UserError(
            "bounds need a function that returns one array of floats, such as logits; this one returns "
            f"{jax.tree.map(lambda leaf: f'{leaf.dtype}{list(leaf.shape)}', shapes)}"
        )
    equations: list[Equation] = []
    count = 1  # 0 is the input.

    def inline(jaxpr: Any, constants: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        nonlocal count
        known = dict(zip(jaxpr.constvars, constants, strict=True)) | dict(zip(jaxpr.invars, operands, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            values = [read(atom) for atom in equation.invars]
            if equation.primitive.name in _CALLS:
                body = next(equation.params[name] for name in _BODIES if name in equation.params)
                outputs = inline(getattr(body, "jaxpr", body), getattr(body, "consts", ()), values)
            else:
                outputs = [Value(count + index) for index in range(len(equation.outvars))]
                count += len(outputs)
                dtype = equation.outvars[0].aval.dtype
                equations.append(Equation(equation.primitive, equation.params, tuple(values), tuple(outputs), dtype))
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    (output,) = inline(closed.jaxpr, closed.consts, [Value(0)])
    return Program(equations, output)

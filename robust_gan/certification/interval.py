"""Interval arithmetic on JAX programs: bounds of every value over a box of inputs.

Rounding: the bounds contain what the program computes in float32, in any order of its sums, not only what it would
compute exactly. With u = 2^-24, half the distance from 1 to the next float, a sum of n products is off by at most n u
times the sum of their magnitudes; the bounds add this twice (for the program and for their own centre), and once more
of their radius. Every other operation is widened by some units in the last place of the program's dtype. On
accelerators this presumes `jax.default_matmul_precision("highest")`. In bfloat16, products are presumed to be summed in
float32, as XLA does, and other sums in bfloat16.

References:
    Moore, Kearfott and Cloud, "Introduction to Interval Analysis", SIAM 2009, chapters 2 and 4.
    Gowal, Dvijotham, Stanforth, Bunel, Qin, Uesato, Arandjelovic, Mann and Kohli, "On the Effectiveness of Interval
        Bound Propagation for Training Verifiably Robust Models", 2018, https://arxiv.org/abs/1810.12715
    Higham, "Accuracy and Stability of Numerical Algorithms", SIAM 2002, section 3.1 (the error of a sum of products).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan.certification.program import Equation, Program, Value
from robust_gan.errors import UserError
from robust_gan.types import get_compute_dtype

ULPS = 8
"""Units in the last place by which an operation other than a sum of products is widened."""


class Interval(NamedTuple):
    """All arrays between two arrays.

    Attributes:
        lower: The lower bounds.
        upper: The upper bounds, of the same shape.
    """

    lower: jax.Array
    upper: jax.Array


def run(
    program: Program,
    box: Interval,
    refine: Callable[[Equation, dict[Value, Any]], None] = lambda equation, values: None,
) -> dict[Value, Any]:
    """Computes bounds of every value of a program.

    Args:
        program: The program.
        box: Bounds of its input.
        refine: Called before each operation; it may replace the bounds of values by tighter ones.

    Returns:
        For each value an `Interval`, or an array where it does not depend on the input.

    Raises:
        UserError: There is no rule for an operation.

    >>> from robust_gan.certification.program import trace
    >>> program = trace(lambda x: jax.nn.relu(2 * x), jnp.zeros(1))
    >>> bounds = run(program, Interval(jnp.array([-1.0]), jnp.array([3.0])))[program.output]
    >>> bounds.lower.tolist(), jnp.round(bounds.upper, 4).tolist()
    ([0.0], [6.0])
    """
    values: dict[Value, Any] = {Value(0): box}
    for equation in program.equations:
        refine(equation, values)
        operands = [values[operand] if isinstance(operand, Value) else operand for operand in equation.operands]
        if any(isinstance(operand, Interval) for operand in operands):
            if equation.name not in _RULES:
                raise UserError(
                    f"there is no interval rule for the operation {equation.name!r} of the model: certification covers "
                    f"{', '.join(sorted(_RULES))}"
                )
            outputs = [_RULES[equation.name](equation, *operands)]
        else:
            result = equation.primitive.bind(*operands, **equation.params)
            outputs = list(result) if equation.primitive.multiple_results else [result]
        values.update(zip(equation.outputs, outputs, strict=True))
    return values


Rule = Callable[..., Interval]
_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def apply(equation: Equation, *operands: jax.Array) -> jax.Array:
    """Computes an operation on arrays, in float32 where the program computes in a smaller type."""
    params = dict(equation.params)
    if params.get("preferred_element_type") is not None:
        params["preferred_element_type"] = None
    if equation.name == "convert_element_type":
        return jnp.asarray(operands[0])
    dtypes = [jnp.result_type(operand) for operand in operands]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    if len(set(floats)) > 1:  # Bounds in float64 of a model that rounds to float32 within.
        operands = tuple(
            jnp.asarray(operand, jnp.result_type(*floats)) if dtype in floats else operand
            for operand, dtype in zip(operands, dtypes, strict=True)
        )
    return equation.primitive.bind(*operands, **params)


def as_interval(operand: Any) -> Interval:
    """Returns an operand as an interval of at least float32: a constant is an interval of one point."""
    lower, upper = operand if isinstance(operand, Interval) else (operand, operand)
    dtype = get_compute_dtype(jnp.result_type(lower))
    return Interval(jnp.asarray(lower, dtype), jnp.asarray(upper, dtype))


def widen(equation: Equation, lower: jax.Array, upper: jax.Array) -> Interval:
    """Returns bounds that also contain the rounding errors of an operation; NaN becomes no bound at all."""
    eps = float(jnp.finfo(equation.dtype).eps) * ULPS
    tiny = float(np.finfo(np.float32).tiny)
    lower = jnp.where(jnp.isnan(lower), -jnp.inf, lower - eps * jnp.abs(lower) - tiny)
    return Interval(lower, jnp.where(jnp.isnan(upper), jnp.inf, upper + eps * jnp.abs(upper) + tiny))


# Operations that choose, move or compare values: exact, and the same on both bounds.
@_rule(
    "max", "min", "clamp", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "rev", "slice", "pad",
    "concatenate", "stack", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin",
    "copy", "copy_p", "stop_gradient", "optimization_barrier", "sign", "floor", "ceil", "round",
    "gather", "dynamic_slice",
)  # fmt: skip
def _same_on_both(equation: Equation, *operands: Any) -> Interval:
    indices = {"gather": 1, "dynamic_slice": 1}.get(equation.name)
    if indices and any(isinstance(operand, Interval) for operand in operands[indices:]):
        raise UserError(f"the operation {equation.name!r} of the model has indices that depend on the image")
    parts = [operand if indices and place else as_interval(operand) for place, operand in enumerate(operands)]
    lower = [part.lower if isinstance(part, Interval) else part for part in parts]
    upper = [part.upper if isinstance(part, Interval) else part for part in parts]
    return Interval(*[_first(apply(equation, *side)) for side in (lower, upper)])


def _first(result: Any) -> jax.Array:
    return result[0] if isinstance(result, (list, tuple)) else result


@_rule("add", "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sqrt", "cbrt", "erf", "convert_element_type",
       "add_any")  # fmt: skip
def _increasing(equation: Equation, *operands: Any) -> Interval:
    if not jnp.issubdtype(equation.dtype, jnp.floating):
        raise UserError(
            f"the model rounds values to whole numbers of {equation.dtype}: certification cannot bound them"
        )
    parts = [as_interval(operand) for operand in operands]
    lower, upper = [apply(equation, *side) for side in zip(*parts, strict=True)]
    return widen(equation, lower, upper)


@_rule("neg", "rsqrt", "erfc")
def _decreasing(equation: Equation, x: Interval) -> Interval:
    x_ = as_interval(x)
    return widen(equation, apply(equation, x_.upper), apply(equation, x_.lower))


@_rule("sub")
def _sub(equation: Equation, a: Any, b: Any) -> Interval:
    first, second = as_interval(a), as_interval(b)
    return widen(equation, first.lower - second.upper, first.upper - second.lower)


@_rule("mul")
def _mul(equation: Equation, a: Any, b: Any) -> Interval:
    if equation.operands[0] == equation.operands[1] and isinstance(equation.operands[0], Value):
        return _integer_pow(equation, a, y=2)
    return widen(equation, *_hull(jnp.multiply, as_interval(a), as_interval(b)))


@_rule("div")
def _div(equation: Equation, a: Any, b: Any) -> Interval:
    divisor = as_interval(b)
    lower, upper = _hull(jnp.divide, as_interval(a), divisor)
    unknown = (divisor.lower <= 0) & (divisor.upper >= 0)
    return widen(equation, jnp.where(unknown, -jnp.inf, lower), jnp.where(unknown, jnp.inf, upper))


def _hull(function: Callable[..., jax.Array], a: Interval, b: Interval) -> Interval:
    corners = [function(x, y) for x in a for y in b]
    # 0 * inf is 0 here: infinity stands for a large number.
    corners = [jnp.where(jnp.isnan(corner), 0.0, corner) for corner in corners]
    return Interval(functools.reduce(jnp.minimum, corners), functools.reduce(jnp.maximum, corners))


@_rule("abs")
def _abs(equation: Equation, x: Interval) -> Interval:
    del equation
    x = as_interval(x)
    return Interval(jnp.maximum(jnp.maximum(x.lower, -x.upper), 0), jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper)))


@_rule("square", "integer_pow")
def _integer_pow(equation: Equation, x: Interval, y: int | None = None) -> Interval:
    exponent = equation.params.get("y", 2) if y is None else y
    power = abs(exponent)
    part = as_interval(x) if power % 2 else _abs(equation, x)
    lower, upper = part.lower**power, part.upper**power
    if exponent < 0:
        unknown = (lower <= 0) & (upper >= 0)
        lower, upper = jnp.where(unknown, -jnp.inf, 1 / upper), jnp.where(unknown, jnp.inf, 1 / lower)
    return widen(equation, lower, upper)


@_rule("select_n")
def _select(equation: Equation, which: Any, *cases: Any) -> Interval:
    parts = [as_interval(case) for case in cases]
    if isinstance(which, Interval):
        raise UserError(
            "the model selects values by a condition that depends on the image: certification cannot bound it"
        )
    return Interval(*[apply(equation, which, *side) for side in zip(*parts, strict=True)])


@_rule("reduce_sum", "cumsum", "reduce_window_sum")
def _sum(equation: Equation, x: Interval) -> Interval:
    part = as_interval(x)
    count = math.prod(equation.params.get("window_dimensions", part.lower.shape))
    unit = max(_unit(part.lower), float(jnp.finfo(equation.dtype).eps) / 2)
    margin = 3 * unit * count * apply(equation, jnp.maximum(jnp.abs(part.lower), jnp.abs(part.upper)))
    return widen(equation, apply(equation, part.lower) - margin, apply(equation, part.upper) + margin)


@_rule("dot_general", "conv_general_dilated", "convolution_contraction")
def _products(equation: Equation, a: Any, b: Any) -> Interval:
    first, second = as_interval(a), as_interval(b)
    (m_a, r_a), (m_b, r_b) = _centre_and_radius(first), _centre_and_radius(second)
    error = num_terms(equation, first.lower.shape, second.lower.shape) * _unit(first.lower)
    centre = apply(equation, m_a, m_b)
    # |x y - m_a m_b| <= |m_a| r_b + r_a (|m_b| + r_b), where a constant has the radius 0.
    if not isinstance(b, Interval):
        radius = apply(equation, r_a + error * (2 * jnp.abs(m_a) + 3 * r_a), jnp.abs(m_b))
    elif not isinstance(a, Interval):
        radius = apply(equation, jnp.abs(m_a), r_b + error * (2 * jnp.abs(m_b) + 3 * r_b))
    else:
        largest = (1 + 3 * error) * (jnp.abs(m_b) + r_b)
        radius = apply(equation, jnp.abs(m_a), r_b + 3 * error * largest) + apply(equation, r_a, largest)
    return widen(equation, centre - radius, centre + radius)


def _centre_and_radius(x: Interval) -> tuple[jax.Array, jax.Array]:
    # Halves first: the sum of two large bounds would be infinite.
    centre = 0.5 * x.lower + 0.5 * x.upper
    return centre, jnp.maximum(x.upper - centre, centre - x.lower)


def num_terms(equation: Equation, first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the number of products that are summed to one element, at most.

    >>> from robust_gan.certification.program import trace
    >>> program = trace(lambda x: x @ jnp.zeros((3, 2)), jnp.zeros((1, 3)))
    >>> num_terms(program.equations[-1], (1, 3), (3, 2))
    3
    """
    if equation.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return math.prod(first[axis] for axis in contracted)
    if equation.name == "conv_general_dilated":
        out_axis = equation.params["dimension_numbers"].rhs_spec[0]
        return math.prod(second) // second[out_axis]
    kernel = {"output": second, "images": first}.get(equation.params["result"])
    if kernel is None:
        return math.prod(first[:3])
    return math.prod(kernel) // kernel[3 if equation.params["result"] == "output" else 2]


def _unit(x: jax.Array) -> float:
    """Returns half the distance from 1 to the next float of the dtype in which the bounds are computed."""
    return float(jnp.finfo(x.dtype).eps) / 2

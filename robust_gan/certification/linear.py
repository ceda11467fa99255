"""Linear lower bounds, computed backwards through a JAX program from linear functions of its output.

The linear function of the output is pulled back through every operation that is affine in its operands. Where the
backward pass meets another operation, its interval replaces it; with `relax`, a ReLU is replaced by two straight lines
first (CROWN), and the pass goes on to the input.

References:
    Zhang, Weng, Chen, Hsieh and Daniel, "Efficient Neural Network Robustness Certification with General Activation
        Functions" (CROWN), NeurIPS 2018, https://arxiv.org/abs/1811.00866
    Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning and Hsieh, "Towards Stable and Efficient Training of Verifiably
        Robust Neural Networks" (CROWN-IBP: the bounds before each ReLU are intervals), ICLR 2020,
        https://arxiv.org/abs/1906.06316
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_gan.certification import interval
from robust_gan.certification.interval import Interval, apply, as_interval, num_terms
from robust_gan.certification.program import Equation, Program, Value

_LINEAR = {
    "add", "add_any", "sub", "neg", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "rev",
    "slice", "pad", "concatenate", "stack", "copy", "copy_p", "stop_gradient", "reduce_sum", "reduce_window_sum",
    "cumsum", "convert_element_type", "optimization_barrier",
}  # fmt: skip
_BILINEAR = {"mul", "dot_general", "conv_general_dilated", "convolution_contraction"}


class _Form(NamedTuple):
    """Linear functions of one value.

    Attributes:
        coefficients: `[R, *shape]`.
        magnitudes: `[R, *shape]`, the same if all terms had one sign: what rounding errors are relative to.
        error: The relative error of the operations on the way to the output.
    """

    coefficients: jax.Array
    magnitudes: jax.Array
    error: float

    def __add__(self, other: Any) -> "_Form":
        """Returns the sum of two forms."""
        return _Form(
            self.coefficients + other.coefficients,
            self.magnitudes + other.magnitudes,
            max(self.error, other.error),
        )


def lower_bounds(program: Program, values: dict[Value, Any], rows: jax.Array, *, relax: bool = False) -> jax.Array:
    """Computes lower bounds of linear functions of a program's output.

    Args:
        program: The program.
        values: Intervals of its values, see `interval.run`.
        rows: `[R, *output shape]`, the coefficients of the functions.
        relax: Whether ReLUs are replaced by straight lines, and not by their intervals.

    Returns:
        `[R]`.

    >>> from robust_gan.certification import interval
    >>> from robust_gan.certification.program import trace
    >>> program = trace(lambda x: jnp.stack([x[0], x[0] + 1]), jnp.zeros(1))
    >>> values = interval.run(program, Interval(jnp.array([-9.0]), jnp.array([9.0])))
    >>> jnp.round(lower_bounds(program, values, jnp.array([[-1.0, 1.0]])), 3).tolist()
    [1.0]
    """
    if not isinstance(program.output, Value):
        return jnp.tensordot(rows, jnp.asarray(program.output), axes=rows.ndim - 1)
    forms = {program.output: _Form(rows, jnp.abs(rows), 0.0)}
    total = jnp.zeros(len(rows), rows.dtype)
    for equation in reversed(program.equations):
        form = forms.pop(equation.outputs[0], None)
        if form is None:
            continue
        operands = [values[operand] if isinstance(operand, Value) else operand for operand in equation.operands]
        if _is_affine(equation, operands):
            pulled, offset = _pull_back(equation, operands, form)
        elif relax and (place := _relu_operand(equation, operands)) is not None:
            pulled, offset = _relax(equation.operands[place], as_interval(operands[place]), form)
        else:
            pulled, offset = {}, _lower(form, as_interval(values[equation.outputs[0]]))
        total = total + offset
        for value, part in pulled.items():
            forms[value] = forms[value] + part if value in forms else part
    return functools.reduce(jnp.add, [_lower(form, as_interval(values[value])) for value, form in forms.items()], total)


def tighten(program: Program, box: Interval) -> dict[Value, Any]:
    """Computes bounds of every value of a program, with linear bounds before each ReLU but the first.

    They are never looser than those of `interval.run`, and cost two backward passes for each element before a ReLU.
    The first ReLU of a network follows one sum of products, of which interval bounds are exact.

    Args:
        program: The program.
        box: Bounds of its input.

    >>> from robust_gan.certification import interval
    >>> from robust_gan.certification.program import trace
    >>> def fn(x):
    ...     hidden = jax.nn.relu(x @ jnp.array([[1.0, 1.0]]))
    ...     return jax.nn.relu(hidden @ jnp.array([[1.0], [-1.0]]))
    >>> program, box = trace(fn, jnp.zeros(1)), Interval(jnp.array([0.0]), jnp.array([1.0]))
    >>> [round(run(program, box)[program.output].upper.item(), 3) for run in (interval.run, tighten)]
    [1.0, 0.0]
    """
    products = 0

    def refine(equation: Equation, values: dict[Value, Any]) -> None:
        nonlocal products
        operands = [values[operand] if isinstance(operand, Value) else operand for operand in equation.operands]
        products += equation.name in _BILINEAR - {"mul"} and any(isinstance(part, Interval) for part in operands)
        place = _relu_operand(equation, operands)
        if place is None or products < 2:
            return
        value, part = equation.operands[place], as_interval(operands[place])
        rows = jnp.eye(part.lower.size, dtype=part.lower.dtype).reshape(-1, *part.lower.shape)
        upto = Program(program.equations, value)
        lower, negative = [lower_bounds(upto, values, sign * rows, relax=True) for sign in (1, -1)]
        shape = part.lower.shape
        values[value] = Interval(
            jnp.fmax(part.lower, lower.reshape(shape)), jnp.fmin(part.upper, -negative.reshape(shape))
        )

    return interval.run(program, box, refine)


def _lower(form: _Form, x: Interval) -> jax.Array:
    """Computes the least value of linear functions over a box, less the rounding errors: `[R]`."""
    terms = jnp.maximum(form.coefficients, 0) * x.lower + jnp.minimum(form.coefficients, 0) * x.upper
    unit = float(jnp.finfo(terms.dtype).eps)
    size = form.magnitudes * jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper))
    # An unbounded value with the coefficient 0 adds nothing.
    terms, size = [jnp.where(form.magnitudes == 0, 0.0, part) for part in (terms, size)]
    axes = tuple(range(1, terms.ndim))
    error = 2 * form.error + (4 + terms[0].size) * unit
    return jnp.sum(terms, axes) - error * jnp.sum(size, axes)


def _is_affine(equation: Equation, operands: list[Any]) -> bool:
    if equation.name in _LINEAR:
        return True
    dependent = sum(isinstance(operand, Interval) for operand in operands)
    if equation.name == "div":
        return not isinstance(operands[1], Interval)
    return equation.name in _BILINEAR and dependent == 1


def _pull_back(equation: Equation, operands: list[Any], form: _Form) -> tuple[dict[Value, _Form], jax.Array]:
    """Returns the functions of the operands, and the functions' value where all operands that vary are 0."""
    places = [place for place, operand in enumerate(operands) if isinstance(operand, Interval)]
    points = [as_interval(operand).lower for operand in operands]

    def output(constants: list[jax.Array], *varying: jax.Array) -> jax.Array:
        arguments = list(constants)
        for place, value in zip(places, varying, strict=True):
            arguments[place] = value
        return apply(equation, *arguments)

    zeros = [jnp.zeros_like(points[place]) for place in places]

    def pull(constants: list[jax.Array], coefficients: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vmap(jax.vjp(functools.partial(output, constants), *zeros)[1])(coefficients)

    sizes = [jnp.abs(point) for point in points]
    magnitudes = pull(sizes, form.magnitudes)
    if equation.name in ("sub", "neg"):
        magnitudes = tuple(jnp.abs(part) for part in magnitudes)
    terms, unit = 0.0, float(jnp.finfo(form.coefficients.dtype).eps)
    if equation.name in _BILINEAR - {"mul"}:
        # The terms of the operation and, at most as many as its other operand has elements, of its transposition.
        constant = points[1 - places[0]]
        terms = num_terms(equation, points[0].shape, points[1].shape) + constant.size / max(constant.shape)
    elif "reduce" in equation.name or equation.name in ("cumsum", "broadcast_in_dim"):
        unit = max(unit, float(jnp.finfo(equation.dtype).eps))
        terms = float(max(math.prod(points[0].shape), form.coefficients[0].size))
    error = form.error + terms * unit + 4 * max(unit, float(jnp.finfo(equation.dtype).eps))
    pulled: dict[Value, _Form] = {}
    for place, coefficients, magnitude in zip(places, pull(points, form.coefficients), magnitudes, strict=True):
        part, value = _Form(coefficients, magnitude, error), equation.operands[place]
        pulled[value] = pulled[value] + part if value in pulled else part
    if equation.name not in ("add", "add_any", "sub", "concatenate", "stack", "pad") or len(places) == len(points):
        return pulled, jnp.zeros(len(form.coefficients), form.coefficients.dtype)
    constant = output(points, *zeros)
    return pulled, _lower(form._replace(error=error), Interval(constant, constant))


def _relu_operand(equation: Equation, operands: list[Any]) -> int | None:
    """Returns which operand of a maximum with 0 varies, or None for another operation."""
    for place, (varying, constant) in enumerate([operands, operands[::-1]] if equation.name == "max" else []):
        known = not isinstance(constant, (Interval, jax.core.Tracer))
        if isinstance(varying, Interval) and known and not np.any(np.asarray(constant)):
            return place
    return None


def _relax(value: Value, x: Interval, form: _Form) -> tuple[dict[Value, _Form], jax.Array]:
    """Returns the functions of a ReLU's operand that bound its functions from below, and their offset.

    On an interval [l, u] around 0, ReLU(x) is at most the chord u (x - l) / (u - l), and at least x or 0, whichever is
    the better bound over most of the interval.
    """
    lower, upper = x
    crossing = (lower < 0) & (upper > 0)
    width = jnp.where(crossing, upper - lower, 1.0)
    # An unbounded interval has no chord: slope 1 and an infinite offset.
    slope = jnp.where(crossing, jnp.where(jnp.isfinite(width), upper / width, 1.0), (lower >= 0).astype(lower.dtype))
    below = jnp.where(crossing, (upper > -lower).astype(lower.dtype), slope)
    height = jnp.where(crossing, -slope * lower, 0.0)
    eps = float(jnp.finfo(lower.dtype).eps)
    form = form._replace(error=form.error + 8 * eps)
    pulled = _Form(
        form.coefficients * jnp.where(form.coefficients >= 0, below, slope),
        form.magnitudes * jnp.maximum(slope, below),
        form.error,
    )
    offset = _lower(form._replace(coefficients=jnp.minimum(form.coefficients, 0)), Interval(height, height))
    return {value: pulled}, offset

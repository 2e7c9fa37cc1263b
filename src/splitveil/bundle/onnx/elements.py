"""Shapes of what operators give that work on elements or reduce axes, and the arithmetic of shapes themselves."""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from splitveil.bundle.onnx.call import DTYPES, MOST_KNOWN, WHOLE, Call, MisfitError, Value, made, without
from splitveil.bundle.onnx.call import broadcast as broadcast_shapes

# What shapes are computed with; of everything else the shape alone is followed.
_FORMULAS: dict[str, Any] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Min": np.minimum, "Max": np.maximum, "Neg": np.negative,
    "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil, "Identity": np.array, "Not": np.logical_not,
    "And": np.logical_and, "Or": np.logical_or, "Equal": np.equal, "Greater": np.greater, "Less": np.less,
    "GreaterOrEqual": np.greater_equal, "LessOrEqual": np.less_equal,
}  # fmt: skip
_OF_ONE = ("Neg", "Abs", "Floor", "Ceil", "Identity", "Not")
_SLOW = 64  # comparisons that an element takes at most while a tensor is sorted


def _computed(call: Call) -> NDArray[Any] | None:
    """The output's elements, where all inputs' are known."""
    arrays = [call.value(index).known for index in range(len(call.inputs))]
    formula = _FORMULAS.get(call.operator, _divided if call.operator == "Div" else None)
    if formula is None or any(array is None or array.size > MOST_KNOWN for array in arrays):
        return None
    if len(arrays) != (1 if call.operator in _OF_ONE else 2):
        return None
    if math.prod(broadcast_shapes(*[call.shape(index) for index in range(len(arrays))])) > MOST_KNOWN:
        return None
    with np.errstate(all="ignore"):
        return np.asarray(formula(*arrays))


def _divided(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    if a.dtype.kind != "i":
        return np.asarray(a / b)
    if not np.all(b):
        raise MisfitError("a whole number is divided by zero")
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))  # ONNX rounds towards zero


def same(call: Call) -> list[Value]:
    """As the first input."""
    first = call.value(0)
    return [made(first.dtype, first.shape, _computed(call) if len(call.inputs) == 1 else None)]


def _broadcast(call: Call, dtype: DTypeLike) -> list[Value]:
    shape = broadcast_shapes(*[call.shape(index) for index in range(len(call.inputs))])
    return [made(dtype, shape, _computed(call))]


def broadcast(call: Call) -> list[Value]:
    """Elementwise, of inputs that are repeated to one shape."""
    return _broadcast(call, call.value(0).dtype)


def truth(call: Call) -> list[Value]:
    """Truth values, elementwise."""
    return _broadcast(call, "|b1")


def prelu(call: Call) -> list[Value]:
    """As the first input, to which the slopes are repeated."""
    first = call.value(0)
    if broadcast_shapes(first.shape, call.shape(1)) != first.shape:
        raise MisfitError(f"slopes {call.shape(1)} are not repeated to {first.shape}")
    return [made(first.dtype, first.shape)]


def where(call: Call) -> list[Value]:
    """One of two, elementwise."""
    shape, (which, a, b) = (
        broadcast_shapes(*[call.shape(index) for index in range(3)]),
        [call.value(i).known for i in range(3)],
    )
    if which is None or a is None or b is None or math.prod(shape) > MOST_KNOWN:
        return [made(call.value(1).dtype, shape)]
    return [made(call.value(1).dtype, shape, np.where(which, a, b))]


def cast(call: Call) -> list[Value]:
    """Another type."""
    first, dtype = call.value(0), DTYPES.get(call.attributes["to"])
    if dtype is None:
        raise MisfitError(f"there is no type {call.attributes['to']}")
    with np.errstate(all="ignore"):
        return [made(dtype, first.shape, None if first.known is None else first.known.astype(dtype))]


def reduce(call: Call) -> list[Value]:
    """Axes gone, or of length one."""
    first, attributes = call.value(0), call.attributes
    axes = call.integers(1) if call.has(1) else []
    if not axes and not attributes.get("noop_with_empty_axes", 0):
        axes = list(range(len(first.shape)))
    return [made(first.dtype, without(first.shape, axes, bool(attributes.get("keepdims", 1))))]


def arg_reduce(call: Call) -> list[Value]:
    """Places of the largest or smallest."""
    shape = call.shape(0)
    axis = call.axis(0, len(shape))
    return [made(WHOLE, without(shape, [axis], bool(call.attributes.get("keepdims", 1))))]


def top_k(call: Call) -> list[Value]:
    """The k largest and their places."""
    first, count = call.value(0), call.integers(1)
    axis = call.axis(-1, len(first.shape))
    if len(count) != 1 or not 0 <= count[0] <= first.shape[axis]:
        raise MisfitError(f"{count} of {first.shape[axis]} are no choice")
    shape = (*first.shape[:axis], count[0], *first.shape[axis + 1 :])
    call.work = first.size * _SLOW
    return [made(first.dtype, shape), made(WHOLE, shape)]

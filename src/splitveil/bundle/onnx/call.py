"""One use of an operator, while shapes are followed through a graph."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

DTYPES = {1: "<f4", 2: "|u1", 3: "|i1", 6: "<i4", 7: "<i8", 9: "|b1", 10: "<f2", 11: "<f8"}
"""Types of tensors by ONNX's numbers: no text, no complex numbers, nothing that NumPy cannot read."""
MOST_AXES = 8  # of a tensor; windows of attention need six
MOST_KNOWN = 1024  # elements of a tensor whose values are followed: shapes, axes, sizes of windows
WHOLE = np.dtype("<i8")  # of shapes, axes and places
LARGEST_AXIS = 2**40  # far beyond any memory, and far from where products leave 64 bits


class MisfitError(Exception):
    """Inputs or attributes do not fit an operator; becomes a `GraphError` with the node's place."""


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a tensor before the graph is run.

    Attributes:
        dtype: of its elements.
        shape: for the length of the batch at hand.
        known: its elements, where they follow from shapes and constants and are few.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    known: NDArray[Any] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(slots=True)
class Call:
    """An operator's inputs and attributes.

    Attributes:
        operator: its name.
        inputs: None where one is left out.
        attributes: by name.
        outputs: how many are asked for.
        work: multiplications and the like that it takes; a rule sets it where they are more than elements.
    """

    operator: str
    inputs: Sequence[Value | None]
    attributes: Mapping[str, Any]
    outputs: int
    work: int = 0

    def has(self, index: int) -> bool:
        """Whether there is such an input."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """An input that must be there."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise MisfitError(f"it lacks input {index}")
        return found

    def shape(self, index: int, axes: int | None = None) -> tuple[int, ...]:
        """An input's shape, of so many axes where given."""
        shape = self.value(index).shape
        if axes is not None and len(shape) != axes:
            raise MisfitError(f"input {index} has {len(shape)} axes, not {axes}")
        return shape

    def array(self, index: int) -> NDArray[Any]:
        """An input's elements, on which the outputs' shapes depend."""
        known = self.value(index).known
        if known is None:
            raise MisfitError(f"shapes depend on input {index}, whose values are not known before the graph is run")
        return known

    def integers(self, index: int) -> list[int]:
        """Elements of an input that is a vector, or one number, of whole numbers."""
        array = self.array(index)
        if array.ndim > 1 or array.dtype.kind != "i":
            raise MisfitError(f"input {index} is no vector of whole numbers")
        return [int(number) for number in array.reshape(-1)]

    def axis(self, default: int, axes: int) -> int:
        """The attribute ``axis``, counted from the front."""
        return one_axis(self.attributes.get("axis", default), axes)


Rule = Callable[[Call], list[Value]]
"""From a call to its outputs; raises `MisfitError`."""


def one_axis(axis: int, axes: int) -> int:
    """An axis counted from the front; raises `MisfitError` where there is none such."""
    if not -axes <= axis < axes:
        raise MisfitError(f"there is no axis {axis} of {axes}")
    return axis % axes


def made(dtype: DTypeLike, shape: Sequence[int], known: NDArray[Any] | None = None) -> Value:
    """An output of this type and shape; ``known`` is kept where its shape is that one."""
    if len(shape) > MOST_AXES or any(not 0 <= length <= LARGEST_AXIS for length in shape):
        raise MisfitError(f"an output has the shape {tuple(shape)}")
    kept = known is not None and known.size <= MOST_KNOWN
    value = np.asarray(known, dtype).reshape(tuple(shape)) if kept else None
    return Value(np.dtype(dtype), tuple(shape), value)


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that all of these can be repeated to."""
    axes = max(map(len, shapes))
    padded = [(1,) * (axes - len(shape)) + tuple(shape) for shape in shapes]
    found = []
    for lengths in zip(*padded, strict=True):
        wide = {length for length in lengths if length != 1}
        if len(wide) > 1:
            raise MisfitError(f"the shapes {', '.join(map(str, map(tuple, shapes)))} do not fit each other")
        found.append(wide.pop() if wide else 1)
    return tuple(found)


def without(shape: Sequence[int], axes: Sequence[int], keep: bool) -> list[int]:
    """A shape without these axes, or with length one there."""
    gone = {one_axis(axis, len(shape)) for axis in axes}
    return [1 if place in gone else length for place, length in enumerate(shape) if keep or place not in gone]

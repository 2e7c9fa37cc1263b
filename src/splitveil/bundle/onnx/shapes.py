"""Shapes of what operators give that arrange, cut, join and make tensors."""

import math
from collections.abc import Sequence

import numpy as np

from splitveil.bundle.onnx.call import (
    DTYPES,
    LARGEST_AXIS,
    MOST_AXES,
    MOST_KNOWN,
    WHOLE,
    Call,
    MisfitError,
    Value,
    broadcast,
    made,
    one_axis,
    without,
)  # fmt: skip


def shape_of(call: Call) -> list[Value]:
    """The shape itself, or part of it."""
    part = call.shape(0)[call.attributes.get("start", 0) : call.attributes.get("end")]
    return [made(WHOLE, (len(part),), np.array(part, WHOLE))]


def size_of(call: Call) -> list[Value]:
    """The number of elements."""
    if call.value(0).size > 2**62:
        raise MisfitError("there are too many elements")
    return [made(WHOLE, (), np.array(call.value(0).size))]


def _arranged(first: Value, shape: Sequence[int]) -> list[Value]:
    if math.prod(shape) != first.size or any(length < 0 for length in shape):
        raise MisfitError(f"the shape {first.shape} does not become {tuple(shape)}")
    return [made(first.dtype, shape, first.known)]


def reshape(call: Call) -> list[Value]:
    """The same elements in another shape."""
    first, target = call.value(0), call.integers(1)
    if not call.attributes.get("allowzero", 0):
        if any(length == 0 and place >= len(first.shape) for place, length in enumerate(target)):
            raise MisfitError(f"the shape {first.shape} has no length to keep for {target}")
        target = [first.shape[place] if length == 0 else length for place, length in enumerate(target)]
    if target.count(-1) == 1:
        rest = math.prod(length for length in target if length != -1)
        target = [(first.size // rest if rest > 0 else 0) if length == -1 else length for length in target]
    return _arranged(first, target)


def flatten(call: Call) -> list[Value]:
    """A matrix."""
    first, axis = call.value(0), call.attributes.get("axis", 1)
    if not -len(first.shape) <= axis <= len(first.shape):
        raise MisfitError(f"there is no axis {axis}")
    cut = axis + len(first.shape) if axis < 0 else axis
    return _arranged(first, (math.prod(first.shape[:cut]), math.prod(first.shape[cut:])))


def transpose(call: Call) -> list[Value]:
    """Axes in another order."""
    first = call.value(0)
    order = call.attributes.get("perm", list(range(len(first.shape)))[::-1])
    if sorted(order) != list(range(len(first.shape))):
        raise MisfitError(f"{order} is no order of {len(first.shape)} axes")
    moved = None if first.known is None else first.known.transpose(order)
    return [made(first.dtype, [first.shape[axis] for axis in order], moved)]


def squeeze(call: Call) -> list[Value]:
    """Without axes of length one."""
    first = call.value(0)
    axes = call.integers(1) if call.has(1) else [axis for axis, length in enumerate(first.shape) if length == 1]
    return _arranged(first, without(first.shape, axes, False))


def unsqueeze(call: Call) -> list[Value]:
    """With new axes of length one."""
    first, axes = call.value(0), call.integers(1)
    if len(axes) > MOST_AXES:
        raise MisfitError("there are too many axes")
    total = len(first.shape) + len(axes)
    places = {one_axis(axis, total) for axis in axes}
    lengths = iter(first.shape)
    if len(places) != len(axes):
        raise MisfitError(f"an axis of {axes} stands twice")
    return _arranged(first, [1 if place in places else next(lengths) for place in range(total)])


def concat(call: Call) -> list[Value]:
    """Tensors behind each other."""
    parts = [call.value(index) for index in range(len(call.inputs))]
    axis = call.axis(0, len(parts[0].shape))
    rests = {(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts}
    if len(rests) != 1 or len({len(part.shape) for part in parts}) != 1:
        raise MisfitError("the shapes do not fit each other")
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    arrays = [part.known for part in parts if part.known is not None]
    few = len(arrays) == len(parts) and math.prod(shape) <= MOST_KNOWN
    return [made(parts[0].dtype, shape, np.concatenate(arrays, axis) if few else None)]


def split(call: Call) -> list[Value]:
    """Parts of a tensor."""
    first = call.value(0)
    axis = call.axis(0, len(first.shape))
    length, count = first.shape[axis], call.outputs
    if call.has(1):
        lengths = call.integers(1)
    else:
        if call.attributes.get("num_outputs", count) != count:
            raise MisfitError(f"there are {count} outputs")
        step = -(-length // count)
        lengths = [max(0, min(step, length - step * part)) for part in range(count)]
    if len(lengths) != count or sum(lengths) != length or min(lengths) < 0:
        raise MisfitError(f"{length} is not split into {lengths[:20]}")
    return [made(first.dtype, (*first.shape[:axis], part, *first.shape[axis + 1 :])) for part in lengths]


def slice_(call: Call) -> list[Value]:
    """A part of some axes."""
    first, starts, ends = call.value(0), call.integers(1), call.integers(2)
    axes = call.integers(3) if call.has(3) else list(range(len(starts)))
    steps = call.integers(4) if call.has(4) else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise MisfitError("starts, ends, axes and steps do not fit each other")
    cuts = [slice(None)] * len(first.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cuts[one_axis(axis, len(first.shape))] = slice(start, end, step)
    shape = [len(range(*cut.indices(length))) for cut, length in zip(cuts, first.shape, strict=True)]
    return [made(first.dtype, shape, None if first.known is None else first.known[tuple(cuts)])]


def gather(call: Call) -> list[Value]:
    """Rows by number."""
    first, places = call.value(0), call.value(1)
    axis = call.axis(0, len(first.shape))
    shape = (*first.shape[:axis], *places.shape, *first.shape[axis + 1 :])
    if first.known is None or places.known is None or math.prod(shape) > MOST_KNOWN:
        return [made(first.dtype, shape)]
    length = first.shape[axis]
    if places.known.dtype.kind != "i" or np.any((places.known < -length) | (places.known >= length)):
        raise MisfitError(f"there are {length} rows only")
    return [made(first.dtype, shape, np.take(first.known, places.known, axis))]


def gather_elements(call: Call) -> list[Value]:
    """Elements by number."""
    call.axis(0, len(call.shape(0)))
    return [made(call.value(0).dtype, call.shape(1, len(call.shape(0))))]


def gather_nd(call: Call) -> list[Value]:
    """Parts by several numbers each."""
    data, places, batch = call.shape(0), call.shape(1), call.attributes.get("batch_dims", 0)
    if not places or not 0 <= batch < min(len(data), len(places)) or batch + places[-1] > len(data):
        raise MisfitError(f"{places} are no places in {data}")
    return [made(call.value(0).dtype, (*places[:-1], *data[batch + places[-1] :]))]


def expand(call: Call) -> list[Value]:
    """Repeated to another shape."""
    first, shape = call.value(0), broadcast(call.shape(0), call.integers(1))
    few = first.known is not None and math.prod(shape) <= MOST_KNOWN
    return [made(first.dtype, shape, np.broadcast_to(first.known, shape) if few and first.known is not None else None)]


def tile(call: Call) -> list[Value]:
    """Repeated along axes."""
    first, times = call.value(0), call.integers(1)
    if len(times) != len(first.shape) or any(time < 0 for time in times):
        raise MisfitError(f"{first.shape} is not repeated {times[:20]} times")
    return [made(first.dtype, [length * time for length, time in zip(first.shape, times, strict=True)])]


def pad(call: Call) -> list[Value]:
    """Longer at the ends of axes."""
    first, pads = call.value(0), call.integers(1)
    axes = call.integers(3) if call.has(3) else list(range(len(first.shape)))
    if len(pads) != 2 * len(axes):
        raise MisfitError(f"{pads[:20]} are not two lengths for each of {len(axes)} axes")
    shape = list(first.shape)
    for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
        shape[one_axis(axis, len(shape))] += before + after
    return [made(first.dtype, shape)]


def constant_of_shape(call: Call) -> list[Value]:
    """One number everywhere."""
    shape, value = call.integers(0), call.attributes.get("value", np.zeros(1, "<f4"))
    if value.size != 1:
        raise MisfitError("its value is not one number")
    few = all(length >= 0 for length in shape) and len(shape) <= MOST_AXES and math.prod(shape) <= MOST_KNOWN
    return [made(value.dtype, shape, np.full(shape, value.reshape(())) if few else None)]


def range_(call: Call) -> list[Value]:
    """Numbers at equal distances."""
    start, limit, step = [call.array(index) for index in range(3)]
    if any(array.size != 1 for array in (start, limit, step)) or not step.item():
        raise MisfitError("start, limit and step are not one number each, or the step is zero")
    length = (limit.item() - start.item()) / step.item()
    if not abs(length) < LARGEST_AXIS:
        raise MisfitError(f"it has {length} numbers")
    count = max(0, math.ceil(length))
    numbers = start.item() + np.arange(count) * step.item() if count <= MOST_KNOWN else None
    return [made(start.dtype, (count,), numbers)]


def eye_like(call: Call) -> list[Value]:
    """Ones on a diagonal."""
    first, dtype = call.value(0), DTYPES.get(call.attributes.get("dtype", 1))
    if dtype is None or len(first.shape) != 2:
        raise MisfitError("it is no matrix, or of no type")
    return [made(dtype if "dtype" in call.attributes else first.dtype, first.shape)]


def one_hot(call: Call) -> list[Value]:
    """A one at the place that a number names."""
    places, depth = call.shape(0), call.integers(1)
    if len(depth) != 1 or depth[0] < 1:
        raise MisfitError(f"{depth} is no number of places")
    axis = call.axis(-1, len(places) + 1)
    return [made(call.value(2).dtype, (*places[:axis], depth[0], *places[axis:]))]

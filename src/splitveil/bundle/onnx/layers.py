"""Shapes of what the layers of networks give, and the multiplications that they take."""

import math
from collections.abc import Sequence

from splitveil.bundle.onnx.call import Call, MisfitError, Rule, Value, broadcast, made, one_axis

_SLOW = 64  # elementary steps that an element of a resampled picture takes at most: 16 neighbours, with weights


def _product(call: Call, a: Sequence[int], b: Sequence[int]) -> list[Value]:
    rows, columns = (1, *a)[-2:], (*b, 1)[-2:] if len(b) == 1 else tuple(b[-2:])
    if not a or not b or rows[1] != columns[0]:
        raise MisfitError(f"{tuple(a)} is not multiplied by {tuple(b)}")
    stack = broadcast(a[:-2], b[:-2])
    shape = (*stack, *rows[:1][: len(a) - 1], *columns[1:][: len(b) - 1])
    call.work = math.prod(stack) * rows[0] * rows[1] * columns[1]
    return [made(call.value(0).dtype, shape)]


def matmul(call: Call) -> list[Value]:
    """Products of matrices."""
    return _product(call, call.shape(0), call.shape(1))


def gemm(call: Call) -> list[Value]:
    """A product and a sum."""
    a, b = call.shape(0, 2), call.shape(1, 2)
    a, b = (a[::-1] if call.attributes.get("transA", 0) else a), (b[::-1] if call.attributes.get("transB", 0) else b)
    found = _product(call, a, b)
    if call.has(2) and broadcast(found[0].shape, call.shape(2)) != found[0].shape:
        raise MisfitError(f"{call.shape(2)} is not added to {found[0].shape}")
    return found


def einsum(call: Call) -> list[Value]:
    """Sums of products, by a formula with letters for axes."""
    left, arrow, right = call.attributes["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != len(call.inputs) or not all(term.isalpha() for term in terms):
        raise MisfitError("its formula is not written out, letter by letter, with an arrow")
    lengths: dict[str, int] = {}
    for index, term in enumerate(terms):
        for letter, length in zip(term, call.shape(index, len(term)), strict=True):
            if lengths.setdefault(letter, length) != length:
                raise MisfitError(f"the axis {letter} has several lengths")
    if set(right) - set(lengths) or len(set(right)) < len(right):
        raise MisfitError("its formula gives an axis twice, or one that it does not take")
    call.work = math.prod(lengths.values())
    return [made(call.value(0).dtype, [lengths[letter] for letter in right])]


def _window(call: Call, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads (before, then after) of a window over the axes from the third on."""
    axes = len(kernel)
    strides, dilations = call.attributes.get("strides", [1] * axes), call.attributes.get("dilations", [1] * axes)
    pads = call.attributes.get("pads", [0] * 2 * axes)
    given = list(call.attributes.get("kernel_shape", kernel))
    if len(strides) != axes or len(dilations) != axes or len(pads) != 2 * axes or given != list(kernel):
        raise MisfitError(f"kernel, strides, dilations and pads are not those of {axes} axes")
    if min([*strides, *dilations, *kernel], default=1) < 1 or min(pads, default=0) < 0:
        raise MisfitError("a kernel, stride, dilation or pad is too small")
    return strides, dilations, pads


def _slid(call: Call, shape: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Lengths of the axes over which a window slides."""
    strides, dilations, pads = _window(call, kernel)
    auto, ceil, axes = call.attributes.get("auto_pad", "NOTSET"), call.attributes.get("ceil_mode", 0), len(kernel)
    if len(shape) != axes:
        raise MisfitError(f"a window of {axes} axes does not slide over {tuple(shape)}")
    found = []
    for axis, length in enumerate(shape):
        step, wide = strides[axis], dilations[axis] * (kernel[axis] - 1) + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            found.append(-(-length // step))
            continue
        room = length - wide + (pads[axis] + pads[axes + axis] if auto == "NOTSET" else 0)
        if room < 0 or auto not in ("NOTSET", "VALID"):
            raise MisfitError(f"a window of {wide} does not fit into {length}")
        count = (-(-room // step) if ceil else room // step) + 1
        if ceil and (count - 1) * step >= length + pads[axis]:
            count -= 1  # a window must not begin behind the end
        found.append(count)
    return found


def conv(call: Call) -> list[Value]:
    """A convolution."""
    shape, weight, group = call.shape(0), call.shape(1), call.attributes.get("group", 1)
    if len(weight) < 3 or len(shape) != len(weight) or group < 1 or shape[1] != weight[1] * group or weight[0] % group:
        raise MisfitError(f"weights {weight} in {group} groups do not go over {shape}")
    if call.has(2) and call.shape(2) != weight[:1]:
        raise MisfitError(f"{call.shape(2)} is no bias of {weight[0]} channels")
    found = (shape[0], weight[0], *_slid(call, shape[2:], weight[2:]))
    call.work = math.prod(found) * math.prod(weight[1:])
    return [made(call.value(0).dtype, found)]


def conv_transpose(call: Call) -> list[Value]:
    """A convolution turned around; its length follows from pads alone."""
    shape, weight, group = call.shape(0), call.shape(1), call.attributes.get("group", 1)
    if len(weight) < 3 or len(shape) != len(weight) or group < 1 or shape[1] != weight[0] or weight[0] % group:
        raise MisfitError(f"weights {weight} in {group} groups do not go over {shape}")
    if "output_shape" in call.attributes or call.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise MisfitError("it gives the length that it wants, not pads")
    kernel = weight[2:]
    strides, dilations, pads = _window(call, kernel)
    extra = call.attributes.get("output_padding", [0] * len(kernel))
    if len(extra) != len(kernel) or min(extra) < 0:
        raise MisfitError("output_padding is not that of its axes")
    lengths = [
        strides[axis] * (length - 1) + extra[axis] + dilations[axis] * (kernel[axis] - 1) + 1 - pads[axis]
        - pads[len(kernel) + axis] for axis, length in enumerate(shape[2:])
    ]  # fmt: skip
    call.work = math.prod(shape) * math.prod(weight[1:])
    return [made(call.value(0).dtype, (shape[0], weight[1] * group, *lengths))]


def pool(call: Call) -> list[Value]:
    """The largest or the mean of a window, and where it was."""
    first, kernel = call.value(0), call.attributes["kernel_shape"]
    if len(first.shape) < 3:
        raise MisfitError(f"a window does not slide over {first.shape}")
    shape = (*first.shape[:2], *_slid(call, first.shape[2:], kernel))
    call.work = math.prod(shape) * math.prod(kernel)
    return [made(first.dtype, shape), made("<i8", shape)][: call.outputs]


def global_pool(call: Call) -> list[Value]:
    """One number of each channel."""
    first = call.value(0)
    if len(first.shape) < 3:
        raise MisfitError(f"{first.shape} has no positions")
    return [made(first.dtype, (*first.shape[:2], *[1] * (len(first.shape) - 2)))]


def batch_norm(call: Call) -> list[Value]:
    """Normalisation by statistics of the training; never by those of the batch, which is of several people."""
    if call.attributes.get("training_mode", 0):
        raise MisfitError("it is in training mode")
    return [made(call.value(0).dtype, call.shape(0))]


def local_norm(call: Call) -> list[Value]:
    """Normalisation by neighbouring channels."""
    first, size = call.value(0), call.attributes["size"]
    if not 1 <= size <= 2**16:
        raise MisfitError(f"{size} is no number of neighbours")
    call.work = first.size * size
    return [made(first.dtype, first.shape)]


def recurrent(gates: int) -> Rule:
    """The rule of a recurrent layer with so many gates."""

    def rule(call: Call) -> list[Value]:
        first, weight, back = call.value(0), call.shape(1, 3), call.shape(2, 3)
        directions, hidden, layout = weight[0], back[2], call.attributes.get("layout", 0)
        steps, rows, width = call.shape(0, 3) if not layout else (call.shape(0, 3)[i] for i in (1, 0, 2))
        if layout not in (0, 1) or weight != (directions, gates * hidden, width) or back[:2] != weight[:2]:
            raise MisfitError(f"weights {weight} and {back} do not go over {first.shape}")
        if directions != (2 if call.attributes.get("direction") == "bidirectional" else 1):
            raise MisfitError(f"it has no {directions} directions")
        call.work = steps * rows * directions * gates * hidden * (width + hidden)
        whole = (rows, steps, directions, hidden) if layout else (steps, directions, rows, hidden)
        last = (rows, directions, hidden) if layout else (directions, rows, hidden)
        return [made(first.dtype, shape) for shape in (whole, last, last)][: call.outputs]

    return rule


def quantize(call: Call) -> list[Value]:
    """Whole numbers, of the zero point's type."""
    return [made(call.value(2).dtype if call.has(2) else "|u1", call.shape(0))]


def dequantize(call: Call) -> list[Value]:
    """Numbers of the scale's type."""
    return [made(call.value(1).dtype, call.shape(0))]


def depth_to_space(call: Call) -> list[Value]:
    """Channels become positions."""
    rows, channels, high, wide = call.shape(0, 4)
    block = call.attributes["blocksize"]
    if block < 1 or channels % (block * block):
        raise MisfitError(f"{channels} channels are not blocks of {block}")
    return [made(call.value(0).dtype, (rows, channels // block**2, high * block, wide * block))]


def space_to_depth(call: Call) -> list[Value]:
    """Positions become channels."""
    rows, channels, high, wide = call.shape(0, 4)
    block = call.attributes["blocksize"]
    if block < 1 or high % block or wide % block:
        raise MisfitError(f"{high} by {wide} positions are not blocks of {block}")
    return [made(call.value(0).dtype, (rows, channels * block**2, high // block, wide // block))]


def resize(call: Call) -> list[Value]:
    """A picture of another size."""
    first, policy = call.value(0), call.attributes.get("keep_aspect_ratio_policy", "stretch")
    axes = [one_axis(axis, len(first.shape)) for axis in call.attributes.get("axes", range(len(first.shape)))]
    if call.has(2) == call.has(3) or policy != "stretch" or call.has(1):
        raise MisfitError("it has not exactly one of scales and sizes, or regions")
    if call.has(3):
        lengths = call.integers(3)
    else:
        scales = call.array(2)
        if scales.ndim != 1 or scales.size != len(axes) or not ((scales > 0) & (scales < 2**16)).all():
            raise MisfitError("its scales do not fit the axes")
        lengths = [math.floor(first.shape[axis] * float(scale)) for axis, scale in zip(axes, scales, strict=True)]
    if len(lengths) != len(axes):
        raise MisfitError("its sizes do not fit the axes")
    shape = list(first.shape)
    for axis, length in zip(axes, lengths, strict=True):
        shape[axis] = length
    # Antialiasing looks at as many neighbours as the picture shrinks by: never more than at all of them.
    call.work = (math.prod(shape) + first.size) * _SLOW
    return [made(first.dtype, shape)]


def grid_sample(call: Call) -> list[Value]:
    """A picture read at other places."""
    rows, channels, *space = call.shape(0)
    batch, *places = call.shape(1)
    if len(space) < 2 or len(places) != len(space) + 1 or batch != rows or places[-1] != len(space):
        raise MisfitError(f"{call.shape(1)} are no places in {call.shape(0)}")
    shape = (rows, channels, *places[:-1])
    call.work = math.prod(shape) * _SLOW
    return [made(call.value(0).dtype, shape)]


def col2im(call: Call) -> list[Value]:
    """Patches become a picture."""
    rows, channels, _ = call.shape(0, 3)
    image, block = call.integers(1), call.integers(2)
    patch = math.prod(block)
    if len(image) != len(block) or patch < 1 or channels % patch:
        raise MisfitError(f"{channels} are not patches of {block}")
    return [made(call.value(0).dtype, (rows, channels // patch, *image))]

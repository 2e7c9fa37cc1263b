"""Coefficients as small integers, and digits as one index; free of torch.

    a ──► q = round(a / scale), clipped to ±L ══ wire ══► â = scale · q        L = 127 (int8) or 7 (int4)

Scales, one per component, have at most eight significant bits, so that â is exact in float32 and the same everywhere.

    digits d_1 … d_n ──► index = (d_1 · l_2 + d_2) · l_3 + … + d_n ══ wire ══► digits        d_i from 0 to l_i − 1
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from splitveil.errors import WireError

Coding = Literal["float32", "int8", "int4"]
"""How coefficients are written."""
CODINGS: tuple[Coding, ...] = get_args(Coding)
FrameCoding = Literal[Coding, "index"]
"""How a frame's payload is written: as coefficients, or as the one index of a finite message."""
FRAME_CODINGS: tuple[FrameCoding, ...] = get_args(FrameCoding)
LARGEST: dict[Coding, int] = {"int8": 127, "int4": 7}
"""The largest integer of each integer coding; the smallest is its negative, so that no value has two signs."""
SIGNIFICANT_BITS = 8
_MOST_IN_INT64 = 7  # bytes of an index that int64 holds whatever they say; longer ones are Python's integers
_CLIPS = np.linspace(0.3, 1.0, 29)  # shares of the largest coefficient at which clipping is tried


def fit_scales(coefficients: NDArray[np.float32], coding: Coding) -> NDArray[np.float32]:
    """The scale of each component with the smallest mean squared error, among clips at shares of its largest value.

    Args:
        coefficients: of representative inputs, (N, components) or (N, components, *positions).
        coding: "int8" or "int4".

    Returns:
        Scales (components,), each with at most eight significant bits; 1 for a component that is always zero.
    """
    count = coefficients.shape[1]
    columns = np.moveaxis(coefficients, 1, 0).reshape(count, -1).astype(np.float64)
    scales = np.ones(count)
    for index, column in enumerate(columns):
        largest = np.abs(column).max(initial=0.0)
        if largest:
            tried = round_scales(largest * _CLIPS / LARGEST[coding])
            errors = [np.square(column - scale * _integers(column, scale, coding)).mean() for scale in tried]
            scales[index] = tried[int(np.argmin(errors))]
    return scales.astype(np.float32)


def round_scales(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales with at most eight significant bits, at least as large as those given."""
    mantissa, exponent = np.frexp(scales)
    rounded: NDArray[np.float64] = np.ldexp(np.ceil(np.ldexp(mantissa, SIGNIFICANT_BITS)), exponent - SIGNIFICANT_BITS)
    return rounded


def quantise(coefficients: NDArray[np.float32], scales: NDArray[np.float32], coding: Coding) -> NDArray[np.int8]:
    """Integers (B, m, *positions) of coefficients of that shape.

    Args:
        coefficients: the first m components.
        scales: of at least m components.
        coding: "int8" or "int4".

    Raises:
        WireError: a coefficient is not finite, or there are more components than scales.
    """
    if not np.isfinite(coefficients).all():
        raise WireError("a message with coefficients that are not finite cannot be sent; check the input")
    return _integers(coefficients, _along(coefficients, scales), coding)


def dequantise(values: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coefficients (B, m, *positions) of integers of that shape: exact products, the same on every machine.

    Raises:
        WireError: there are more components than scales.
    """
    return values.astype(np.float32) * _along(values, scales)


def index_bytes(levels: Sequence[int]) -> int:
    """Bytes of the index of a finite message: those that the largest index needs, and at least 1.

    Args:
        levels: how many values each digit takes.
    """
    return max(1, math.ceil((math.prod(levels) - 1).bit_length() / 8))


def to_index(digits: NDArray[np.integer | np.floating], levels: Sequence[int]) -> NDArray[np.uint8]:
    """Indices of finite messages: the mixed-radix numbers of their digits, as little-endian bytes.

    Args:
        digits: (B, n), whole numbers of any type, digit i from 0 to levels[i] - 1; the first is the most significant.
        levels: (n,).

    Returns:
        (B, index_bytes(levels)).

    Raises:
        WireError: the digits are of another shape, no whole numbers, or beyond their levels.
    """
    if digits.shape[1:] != (len(levels),):
        raise WireError(f"a message has {len(levels)} digits here, but an array of shape {digits.shape} was given")
    # What is not a number fails the first comparison.
    if not ((digits >= 0) & (digits < np.asarray(levels)) & (digits == np.rint(digits))).all():
        raise WireError("a message with digits that are no whole numbers below their levels cannot be sent")
    size = index_bytes(levels)
    octets = _digits(_number(digits, levels, size), (256,) * size)
    return octets[:, ::-1].astype(np.uint8)


def from_index(octets: NDArray[np.uint8], levels: Sequence[int]) -> NDArray[np.int64]:
    """Digits (B, n) of indices, see `to_index`.

    Args:
        octets: (B, index_bytes(levels)), little-endian.
        levels: (n,).

    Raises:
        WireError: an index is not below the product of the levels.
    """
    size = index_bytes(levels)
    indices = _number(octets[:, ::-1], (256,) * size, size)
    if (indices >= math.prod(levels)).any():
        raise WireError("a frame holds an index beyond the number of messages that there are")
    return _digits(indices, levels)


def _number(digits: NDArray[Any], levels: Sequence[int], size: int) -> NDArray[Any]:
    """Mixed-radix numbers (B,) of at most so many bytes, by Horner's rule."""
    numbers: NDArray[Any] = np.zeros(len(digits), np.int64 if size <= _MOST_IN_INT64 else object)
    for column, level in zip(digits.T, levels, strict=True):
        numbers = numbers * level + column.astype(np.int64)
    return numbers


def _digits(numbers: NDArray[Any], levels: Sequence[int]) -> NDArray[np.int64]:
    """Digits (B, n) of mixed-radix numbers (B,)."""
    digits = np.zeros((len(numbers), len(levels)), np.int64)
    for place in reversed(range(len(levels))):
        numbers, digits[:, place] = numbers // levels[place], numbers % levels[place]
    return digits


def _along(values: NDArray[np.generic], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scales, shaped to be multiplied with messages."""
    count = values.shape[1]
    if count > len(scales):
        raise WireError(f"a message has {count} components, but scales are known of {len(scales)} only")
    return scales[:count].reshape(1, count, *(1,) * (values.ndim - 2))


def _integers(values: NDArray[np.floating], scale: NDArray[np.floating] | float, coding: Coding) -> NDArray[np.int8]:
    largest = LARGEST[coding]
    return np.clip(np.rint(values / scale), -largest, largest).astype(np.int8)

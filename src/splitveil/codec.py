"""Coefficients as small integers, symmetric about zero with one scale per component; free of torch.

    a ──► q = round(a / scale), clipped to ±L ══ wire ══► â = scale · q        L = 127 (int8) or 7 (int4)

Scales have at most eight significant bits, so that â is exact in float32 and the same on every machine.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from splitveil.errors import WireError

Coding = Literal["float32", "int8", "int4"]
CODINGS: tuple[Coding, ...] = get_args(Coding)
LARGEST: dict[Coding, int] = {"int8": 127, "int4": 7}
"""The largest integer of each integer coding; the smallest is its negative, so that no value has two signs."""
SIGNIFICANT_BITS = 8
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


def _along(values: NDArray[np.generic], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scales, shaped to be multiplied with messages."""
    count = values.shape[1]
    if count > len(scales):
        raise WireError(f"a message has {count} components, but scales are known of {len(scales)} only")
    return scales[:count].reshape(1, count, *(1,) * (values.ndim - 2))


def _integers(values: NDArray[np.floating], scale: NDArray[np.floating] | float, coding: Coding) -> NDArray[np.int8]:
    largest = LARGEST[coding]
    return np.clip(np.rint(values / scale), -largest, largest).astype(np.int8)

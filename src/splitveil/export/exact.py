"""Tensors rounded so that sums of their products with whole numbers are exact, in any order of summation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from splitveil.codec import LARGEST, SIGNIFICANT_BITS, Coding

EXACT_BITS = 52
"""Of a float64's 53; one is kept back, so that no partial sum of an exact product comes near the limit."""


def exact_rows(matrix: Tensor, scales: dict[Coding, Tensor]) -> Tensor:
    """`exact_map` without an offset."""
    return exact_map(matrix, torch.zeros(matrix.shape[1], dtype=torch.float64), scales)[0]


def exact_map(matrix: Tensor, offset: Tensor, scales: dict[Coding, Tensor]) -> tuple[Tensor, Tensor]:
    """A map whose values offset + matrixᵀ â at integer messages are exact in float64, in any order of summation.

    With â_k = q·c·2^e, |q| ≤ L and c < 2^8 an integer, row k is rounded to multiples of 2^(g − e), and the offset to
    those of 2^g: all terms are then multiples of 2^g, and g is the smallest for which the sum of their absolute values
    stays below 2^(52 + g).

    Args:
        matrix: (components, n), float64.
        offset: (n,), float64.
        scales: (components,) of each integer coding, with at most eight significant bits.

    Returns:
        Both, rounded.
    """
    if not scales:
        return matrix, offset
    unit = torch.stack([_unit_exponent(scale) for scale in scales.values()]).amin(0)
    reach = torch.stack([LARGEST[name] * scale.double() for name, scale in scales.items()]).amax(0)
    grid = _grid((reach[:, None] * matrix.abs()).sum(0) + offset.abs())
    step = torch.ldexp(torch.ones_like(unit, dtype=torch.float64), grid - unit)[:, None]
    return (matrix / step).round() * step, _rounded(offset, grid)


def exact_table(table: Tensor, levels: Sequence[int]) -> Tensor:
    """A table whose sums of one row for each digit are exact in float64, in any order of summation.

    All entries are rounded to multiples of 2^g, the smallest for which no such sum of absolute values reaches
    2^(52 + g).

    Args:
        table: the rows of all digits, one digit's after the other's, (Σ levels, n), float64.
        levels: values of each digit.
    """
    largest = torch.stack([rows.abs().amax(0) for rows in torch.split(table, list(levels))])
    return _rounded(table, _grid(largest.sum(0)))


def _grid(bounds: Tensor) -> int:
    """The exponent g of the coarsest multiples that sums of such absolute values, (n,), need."""
    bound = float(bounds.max())
    return math.ceil(math.log2(bound)) + 1 - EXACT_BITS if bound else 0


def _rounded(values: Tensor, grid: int) -> Tensor:
    return torch.ldexp(torch.ldexp(values, torch.tensor(-grid)).round(), torch.tensor(grid))


def _unit_exponent(scale: Tensor) -> Tensor:
    """The e of a scale c·2^e with an integer c below 2^8."""
    return torch.frexp(scale.double())[1] - SIGNIFICANT_BITS

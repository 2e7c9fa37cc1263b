"""Whether a large convolution has a null space, decided without its matrix and without its singular values.

A convolution ties a pixel only to its neighbours, so WᵀW is a band matrix once the numbers are ordered by (row,
column, channel), and WᵀW − τ²I has a Cholesky factor exactly where the smallest singular value exceeds τ
(Sylvester's law of inertia). The band costs about n · C · W · 2·dilation·(kernel − 1) numbers.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitveil.linear.convolution import Convolution
from splitveil.linear.maps import LinearMap

THRESHOLD = 1e-6
"""τ in units of the largest singular value; its square must stand clear of float64's rounding."""

MAX_BAND_ELEMENTS = 2**27
"""Largest band that is tried (1 GiB); beyond it the null space is not known."""

INVERSE_STEPS = 12

Array = NDArray[np.float64]


def has_full_column_rank(map_: LinearMap, largest: float, tolerance: float) -> bool | None:
    """Whether all singular values of the layers' dense matrix exceed `tolerance`; None where it cannot be decided.

    Args:
        map_: Layers in float64.
        largest: Their largest singular value.
        tolerance: In units of `largest`; at most `THRESHOLD`.

    Returns:
        True: proved by a Cholesky factor at `THRESHOLD`. False: proved by a feature z with
        ``‖Wz‖ <= tolerance · largest · ‖z‖``. None: not convolutions, too large a band, or neither proof found.
    """
    reach = _reach(map_)
    if reach is None or map_.out_features < map_.in_features or _band_elements(map_, reach) > MAX_BAND_ELEMENTS:
        return None
    band = banded_gram(lambda z: map_.adjoint(map_.apply(z)), map_.feature_shape, reach)
    if _cholesky(band, -((THRESHOLD * largest) ** 2)) is not None:
        return True
    factor = _cholesky(band, (THRESHOLD * largest) ** 2)
    if factor is not None and _smallest_image(map_, factor) <= tolerance * largest:
        return False
    return None


def banded_gram(gram: Callable[[Tensor], Tensor], shape: tuple[int, ...], reach: tuple[int, int]) -> Array:
    """The lower band of a symmetric matrix on images, found by what it makes of spaced impulses.

    Args:
        gram: ``(B, C, H, W)`` -> the same; ties pixels at most `reach` rows and columns apart.
        shape: ``(C, H, W)``.
        reach: Rows and columns.

    Returns:
        ``(bandwidth + 1, C·H·W)``: entry ``[i − j, j]`` is G[i, j], numbers ordered by (row, column, channel).
    """
    C, H, W = shape
    index = (np.arange(H)[:, None] * W + np.arange(W)) * C + np.arange(C)[:, None, None]
    band = np.zeros((_bandwidth(shape, reach) + 1, C * H * W))
    periods = [2 * reach[0] + 1, 2 * reach[1] + 1]
    for top in range(min(periods[0], H)):
        for left in range(min(periods[1], W)):
            rows, columns = _nearest(top, periods[0], H), _nearest(left, periods[1], W)
            impulses = torch.zeros(C, C, H, W, dtype=torch.float64)
            impulses[range(C), range(C), top :: periods[0], left :: periods[1]] = 1.0
            source = np.where((rows[:, None] >= 0) & (columns >= 0), (rows[:, None] * W + columns) * C, -C)
            j = source + np.arange(C)[:, None, None, None]
            i = np.broadcast_to(index, (C, C, H, W))
            keep = (source >= 0) & (i >= j)
            band[(i - j)[keep], np.broadcast_to(j, i.shape)[keep]] = gram(impulses).numpy()[keep]
    return band


def _nearest(first: int, period: int, size: int) -> NDArray[np.int64]:
    """For every place, the impulse (at first, first + period, …) within half a period of it; -1 where none is."""
    nearest = first + period * ((np.arange(size) - first + period // 2) // period)
    return np.where((nearest >= 0) & (nearest < size), nearest, -1)


def _reach(map_: LinearMap) -> tuple[int, int] | None:
    """Rows and columns within which WᵀW ties pixels together."""
    reaches = [part.reach for part in map_.parts if isinstance(part, Convolution)]
    if len(reaches) < len(map_.parts):
        return None
    return max(rows for rows, _ in reaches), max(columns for _, columns in reaches)


def _bandwidth(shape: tuple[int, ...], reach: tuple[int, int]) -> int:
    C, H, W = shape
    return min((reach[0] * W + reach[1]) * C + C - 1, C * H * W - 1)


def _band_elements(map_: LinearMap, reach: tuple[int, int]) -> int:
    return (_bandwidth(map_.feature_shape, reach) + 1) * map_.in_features


def _cholesky(band: Array, shift: float) -> Array | None:
    """The Cholesky factor of the band matrix plus shift · I, None where it is not positive definite."""
    shifted = band.copy()
    shifted[0] += shift
    try:
        return np.asarray(scipy.linalg.cholesky_banded(shifted, overwrite_ab=True, lower=True, check_finite=False))
    except np.linalg.LinAlgError:
        return None


def _smallest_image(map_: LinearMap, factor: Array) -> float:
    """``‖Wz‖`` of the unit vector z that inverse iteration finds: an upper limit of the smallest singular value."""
    C, H, W = map_.feature_shape
    vector = _unit(np.random.default_rng(0).standard_normal(factor.shape[1:]))
    for _ in range(INVERSE_STEPS):
        vector = _unit(np.asarray(scipy.linalg.cho_solve_banded((factor, True), vector)))
    z = torch.from_numpy(vector).reshape(H, W, C).permute(2, 0, 1)
    return float(map_.apply(z[None]).norm())


def _unit(vector: Array) -> Array:
    return np.divide(vector, np.linalg.norm(vector))

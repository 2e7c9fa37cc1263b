"""From layers to factors: the one door, for either operator."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from splitveil.errors import OperatorError, RankError
from splitveil.linear.decompose import (
    Products,
    Triplets,
    decompose_matrix,
    decompose_products,
    leading_triplets,
)
from splitveil.linear.factors import Factors, Operator
from splitveil.linear.layers import Layer, read_layers
from splitveil.linear.maps import FullyConnected, LinearMap
from splitveil.linear.nullspace import THRESHOLD, has_full_column_rank

FULL_UP_TO = 4096
"""Smaller side of a matrix up to which ``rank=None`` gives all factors."""

DEFAULT_TOP = 64
"""Components that ``rank=None`` gives beyond `FULL_UP_TO`."""

UNROLL_UP_TO = 2**26
"""Elements up to which a layer is written out as a matrix (0.5 GiB); beyond, only its products are used."""


@dataclass(frozen=True)
class _Spectrum:
    """Triplets, and what is known of the matrix beyond them (fields as in `Factors`)."""

    triplets: Triplets
    rank: int | None
    null_dimension: int | None
    null_at_least: int


def rank_tolerance(dtype: torch.dtype) -> float:
    """Part of the largest singular value up to which another counts as zero, for weights of this dtype.

    1e-12 for float64. 1e-6 for all others: rounding a matrix to float32 moves its singular values by about 3e-8 of
    the largest, so true zeros stay below, and what is dropped is lost in the layer's own rounding.
    """
    return 1e-12 if dtype == torch.float64 else 1e-6


@torch.no_grad()
def factorise(
    layer: Layer | Sequence[Layer],
    *,
    feature_shape: Sequence[int],
    operator: Operator = "dense",
    rank: int | None = None,
) -> Factors:
    """The thin singular value decomposition W = U diag(s) Vh of the layer that reads the feature (section 3.1).

    "dense" is the layer as one matrix on the vector z, of which Theorem 1 speaks. "patch" is the matrix on one
    patch: a convolution's kernel as ``(out, C·kh·kw)``, or a token-wise linear layer's weight (the cost model of
    section 4.3). A fully connected layer has one patch, the whole vector, so "patch" is then the same matrix, and the
    factors say "dense". A linear layer is fully connected where the feature has `in_features` elements in all
    (flattened by the server), token-wise where only its last axis has. The bias is never part of W.

    Computed in float64 on the CPU; given in the weight's own dtype, on its device. Where min(m, n) is at most
    `FULL_UP_TO` all factors are computed; beyond, only the leading ones are, from products with the layer, and the
    null space of a convolution is decided apart (`Factors.null_dimension`).

    Args:
        layer: An `nn.Linear` or `nn.Conv2d`, or several that read the same tensor: W = [W1; W2; …].
        feature_shape: Shape of one feature z, without the batch.
        operator: "dense" or "patch".
        rank: Factors to keep, 1..min(m, n); None: all where min(m, n) <= `FULL_UP_TO`, else `DEFAULT_TOP`.

    Raises:
        OperatorError: another type of layer or padding, weights that are not finite, an unknown operator, or
            layers that do not share the geometry of their patches.
        RankError: rank is outside 1..min(m, n).
        ShapeError: the feature does not fit the layer.
    """
    map_ = read_layers(layer, feature_shape)
    operator = _normalised(operator, map_)
    m, n = map_.patch_matrix().shape if operator == "patch" else (map_.out_features, map_.in_features)
    kept = _kept(rank, min(m, n))
    tolerance = max(rank_tolerance(part.weight.dtype) for part in map_.parts)
    exact = map_.to(torch.zeros(0, dtype=torch.float64))
    found = _patch(exact, kept, tolerance) if operator == "patch" else _dense(exact, kept, tolerance)
    like = map_.parts[0].weight
    u, s, vh = (factor.to(like).contiguous() for factor in found.triplets.first(kept))
    return Factors(u, s, vh, operator, map_, found.rank, found.null_dimension, found.null_at_least)


def _normalised(operator: str, map_: LinearMap) -> Operator:
    if operator not in ("dense", "patch"):
        raise OperatorError(f"operator={operator!r} is unknown: pass 'dense' or 'patch'.")
    if operator == "dense" or all(isinstance(part, FullyConnected) for part in map_.parts):
        return "dense"
    if len({part.geometry for part in map_.parts}) > 1:
        raise OperatorError(
            "Layers of different kernel size, stride, padding or dilation see different patches: use operator='dense'."
        )
    return "patch"


def _kept(rank: int | None, limit: int) -> int:
    if rank is None:
        return limit if limit <= FULL_UP_TO else DEFAULT_TOP
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= limit:
        raise RankError(
            f"rank={rank!r} does not exist: this layer has {limit} components, so pass 1 <= rank <= {limit}."
        )
    return rank


def _patch(map_: LinearMap, kept: int, tolerance: float) -> _Spectrum:
    matrix = map_.patch_matrix()
    if _only_leading(kept, min(matrix.shape)):
        m, n = matrix.shape
        return _bounded(leading_triplets(Products.of(matrix), kept), m, n, tolerance)
    return _known(decompose_matrix(matrix), matrix.shape[1], tolerance)


def _only_leading(kept: int, limit: int) -> bool:
    """Whether products find the leading triplets sooner than the Gram matrix finds all."""
    return limit > FULL_UP_TO and 4 * kept <= limit


def _dense(map_: LinearMap, kept: int, tolerance: float) -> _Spectrum:
    if all(part.disjoint for part in map_.parts) and len({part.geometry for part in map_.parts}) == 1:
        return _disjoint(map_, kept, tolerance)
    m, n = map_.out_features, map_.in_features
    products = _products(map_)
    if _only_leading(kept, min(m, n)):
        return _truncated(map_, leading_triplets(products, kept), tolerance)
    if m * n <= UNROLL_UP_TO:
        return _known(decompose_matrix(products.images(torch.eye(n, dtype=torch.float64)).mT), n, tolerance)
    found = decompose_products(products, kept if min(m, n) > FULL_UP_TO else min(m, n))
    return _truncated(map_, found, tolerance)


def _products(map_: LinearMap) -> Products:
    shape = map_.feature_shape
    return Products(
        map_.out_features,
        map_.in_features,
        lambda rows: map_.apply(rows.reshape(-1, *shape)),
        lambda rows: map_.adjoint(rows).flatten(1),
    )


def _known(triplets: Triplets, n: int, tolerance: float) -> _Spectrum:
    """The facts where the triplets reach down to the zeros, or are all there are."""
    rank = int((triplets.s > tolerance * triplets.s[0]).sum())
    return _Spectrum(triplets, rank, n - rank, n - rank)


def _bounded(triplets: Triplets, m: int, n: int, tolerance: float) -> _Spectrum:
    """The facts that the leading triplets and the shape alone give."""
    s = triplets.s
    # Squares hide what is below THRESHOLD, so a finer tolerance learns nothing from the last of the leading ones.
    reached = float(s[-1]) <= tolerance * float(s[0]) and (tolerance >= THRESHOLD or not s.any())
    if len(s) == min(m, n) or reached:
        return _known(triplets, n, tolerance)
    return _Spectrum(triplets, None, None, max(n - m, 0))


def _truncated(map_: LinearMap, triplets: Triplets, tolerance: float) -> _Spectrum:
    found = _bounded(triplets, map_.out_features, map_.in_features, tolerance)
    if found.rank is not None or found.null_at_least:
        return found
    full = has_full_column_rank(map_, float(triplets.s[0]), tolerance)
    if full:
        return _Spectrum(triplets, map_.in_features, 0, 0)
    return replace(found, null_at_least=1 if full is False else 0)


def _disjoint(map_: LinearMap, kept: int, tolerance: float) -> _Spectrum:
    """Patches that tile the feature: W = I ⊗ (patch matrix), so every component repeats at every position."""
    positions = map_.parts[0].positions
    count = prod(positions)
    patches = -(-kept // count)
    patch = _patch(map_, patches, tolerance)
    u, s, vh = patch.triplets.first(patches)
    where = torch.eye(len(s) * count, dtype=torch.float64)[:kept].reshape(kept, len(s), *positions)
    pieces = map_.arrange(torch.tensordot(where, u, dims=([1], [1])).movedim(-1, 1))
    left = torch.cat([piece.flatten(1) for piece in pieces], dim=1)
    right = map_.parts[0].scatter(where, vh).flatten(1)
    triplets = Triplets(left.mT, s.repeat_interleave(count)[:kept], right)
    rank = None if patch.rank is None else patch.rank * count
    null = None if patch.null_dimension is None else patch.null_dimension * count
    return _Spectrum(triplets, rank, null, patch.null_at_least * count)

"""The thin singular value decomposition of a server's first layer, and what a client and a server do with it."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from splitveil.errors import OperatorError, RankError, ShapeError
from splitveil.linear.maps import LinearMap

Operator = Literal["dense", "patch"]


@dataclass(frozen=True, eq=False)
class Factors:
    """W = U diag(s) Vh of a layer without its bias, with s falling (paper, section 3.1).

    ::

        dense   z ──► Vh ──► a (B, k)          ══ wire ══► U·s ──► Wz
        patch   z ──► conv Vh ──► a (B, k, H', W') ══ wire ══► 1×1 conv U·s ──► Wz

    The signs of a pair (u_k, v_k) are arbitrary, and so is the basis where singular values repeat: compare
    products and subspaces, never entries. `project`, `reconstruct`, `finish` and `apply` work in the dtype and on
    the device of what they are given, and can be differentiated.

    Attributes:
        u: ``(m, r)``; for "patch" ``(out, r)``. Orthonormal columns.
        s: ``(r,)``, falling, not negative.
        vh: ``(r, d)``, orthonormal rows; d = n for "dense", C·kh·kw (or one token's size) for "patch".
        operator: "dense" (the layer as one matrix on the vector z) or "patch" (the matrix on one patch).
        map: The layers themselves.
        rank: Numerical rank of the matrix of the operator, None where it is not known.
        null_dimension: Exact dimension of the null space of the operator's matrix on its d-dimensional input;
            0: it has none; None: not known, see `null_at_least`.
        null_at_least: A lower limit of that dimension, 0 where nothing is known.
    """

    u: Tensor = field(repr=False)
    s: Tensor = field(repr=False)
    vh: Tensor = field(repr=False)
    operator: Operator
    map: LinearMap
    rank: int | None
    null_dimension: int | None
    null_at_least: int

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one feature z."""
        return self.map.feature_shape

    @property
    def in_features(self) -> int:
        """Elements n of one feature z."""
        return self.map.in_features

    @property
    def out_features(self) -> int:
        """Elements m of Wz, over all layers and positions."""
        return self.map.out_features

    @property
    def complete(self) -> bool:
        """Whether all non-zero singular values are here, so that `finish` can give the exact output."""
        return self.rank is not None and len(self.s) >= self.rank

    @property
    def has_null_space(self) -> bool | None:
        """Whether the operator's matrix ignores a part of its input; None where that is not known."""
        if self.null_at_least > 0:
            return True
        return None if self.null_dimension is None else False

    @property
    def positions(self) -> tuple[int, ...]:
        """Where the components are taken: ``()`` for "dense", ``(H', W')`` or the token axes for "patch"."""
        return self.map.parts[0].positions if self.operator == "patch" else ()

    def message_shape(self, m: int) -> tuple[int, ...]:
        """Shape of one message of m components: ``(m,)`` for "dense", ``(m, *positions)`` for "patch".

        Raises:
            RankError: m is outside 0..r.
        """
        return (self._kept(m), *self.positions)

    def project(self, z: Tensor, m: int | None = None) -> Tensor:
        """The first m components ``a = Vh z`` of features (all r where m is None).

        Args:
            z: ``(B, *feature_shape)``, floating point.
            m: Leading components to compute, 0..r.

        Returns:
            ``(B, m)`` for "dense", ``(B, m, *positions)`` for "patch".

        Raises:
            ShapeError: z is not ``(B, *feature_shape)`` of floating-point numbers.
            RankError: m is outside 0..r.
        """
        self._check_feature(z)
        rows = self.vh[: self._kept(m)].to(z)
        if self.operator == "patch":
            return self.map.parts[0].project(z, rows)
        return z.flatten(1) @ rows.mT

    def reconstruct(self, a: Tensor) -> Tensor:
        """The feature ``z' = V a`` of smallest norm that has the components a.

        Args:
            a: ``(B, k)``, k <= r.

        Returns:
            ``(B, *feature_shape)``.

        Raises:
            OperatorError: for "patch", of which no z' has these components below full rank: use `finish`.
            ShapeError: a is not ``(B, k)`` with k <= r.
        """
        if self.operator == "patch":
            raise OperatorError("No feature has the components of a patch message: use finish, or operator='dense'.")
        k = self._check_components(a)
        return (a @ self.vh[:k].to(a)).reshape(-1, *self.feature_shape)

    def finish(self, a: Tensor) -> tuple[Tensor, ...]:
        """What the layers make of components: ``U (s · a)``, without bias.

        Args:
            a: ``(B, k, *positions)``, k <= r.

        Returns:
            One tensor per layer, each in that layer's own output shape.

        Raises:
            ShapeError: a is not ``(B, k, *positions)`` with k <= r.
        """
        k = self._check_components(a)
        weight = (self.u[:, :k] * self.s[:k]).to(a)
        y = torch.tensordot(a, weight, dims=([1], [1])).movedim(-1, 1)
        return self.map.arrange(y) if self.operator == "patch" else self.map.separate(y)

    def apply(self, z: Tensor) -> Tensor:
        """The layers themselves on ``(B, *feature_shape)``, without bias: ``(B, m)``, exact.

        Raises:
            ShapeError: z is not ``(B, *feature_shape)`` of floating-point numbers.
        """
        self._check_feature(z)
        return self.map.to(z).apply(z)

    def _kept(self, m: int | None) -> int:
        r = len(self.s)
        if m is not None and not 0 <= m <= r:
            raise RankError(f"m={m} components were asked for, but these factors have {r}: pass 0 <= m <= {r}.")
        return r if m is None else m

    def _check_feature(self, z: Tensor) -> None:
        if tuple(z.shape[1:]) != self.feature_shape:
            raise ShapeError(
                f"The features have shape {tuple(z.shape)}, but the layer reads (batch, "
                f"{', '.join(map(str, self.feature_shape))}): pass what the client's half gives."
            )
        _check_floating(z)

    def _check_components(self, a: Tensor) -> int:
        r = len(self.s)
        if a.dim() < 2 or a.shape[1] > r or tuple(a.shape[2:]) != self.positions:
            raise ShapeError(
                f"The components have shape {tuple(a.shape)}, but these factors read (batch, "
                f"{', '.join(map(str, ('k', *self.positions)))}) with k <= {r}."
            )
        _check_floating(a)
        return a.shape[1]


def _check_floating(tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ShapeError(
            f"A {tensor.dtype} tensor of shape {tuple(tensor.shape)} was given: convert it to floats first."
        )

"""Leading eigenvectors of a large symmetric matrix from products alone: block Lanczos, fully reorthogonalised.

A block finds repeated eigenvalues that a single vector would miss, and turns the work into matrix products.
"""

from collections.abc import Callable
from math import acosh

import torch
from torch import Tensor

RESIDUAL = 1e-13
"""Residual up to which an eigenpair counts as converged, in units of the largest eigenvalue."""

UNCHANGED = 1e-11
"""Largest growth of an eigenvalue, in the same units, at which a search for missed copies found nothing."""

SPREAD = 1e3
"""How far the polynomial may lift the largest eigenvalue above the unwanted ones: more would cost digits."""

SPREAD_FROM = 1e-2
"""Part of the largest eigenvalue above which the k-th needs the polynomial at all."""

CUT = 0.95
"""Where the polynomial begins to grow, in units of a lower limit of the k-th eigenvalue: clearly below it, since
the polynomial reaches 1 between there and zero too."""

MAX_DEGREE = 16
BLOCK = 16
SEARCH_STEPS = 4
SLAB_ROWS = 256

Product = Callable[[Tensor], Tensor]


class _Basis:
    """Orthonormal rows Q, with T = Q G Qᵀ, and the block of rows that joins them next.

    G Qᵀ stays within Q and `ahead`, so the residual of a pair is what its last block makes of `ahead`.
    """

    def __init__(self, product: Product, n: int, width: int) -> None:
        self.product, self.n, self.width = product, n, width
        self.size, self.scale = 0, 0.0
        self.slabs: list[Tensor] = []
        self.t_rows: list[Tensor] = []
        self.tail = torch.zeros(0, 0, dtype=torch.float64)
        self.ahead = torch.zeros(0, n, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(0)
        self.widen()

    def widen(self) -> None:
        """Adds random directions to the next block: they find what the start could not."""
        room = min(self.width, self.n - self.size - len(self.ahead))
        fresh = torch.randn(room, self.n, dtype=torch.float64, generator=self.generator) / self.n**0.5
        self.ahead = torch.cat([self.ahead, self._outside(fresh)])

    def step(self) -> None:
        """Takes the next block in, and finds the one after it."""
        block = self.ahead
        self._append(block)
        rest = self.product(block)
        self.scale = max(self.scale, float(rest.norm(dim=1).amax()))
        self.t_rows.append(self._subtract(rest))
        _, sizes, directions = torch.linalg.svd(rest, full_matrices=False)
        self.ahead = rest.new_zeros(0, self.n)
        self.ahead = self._outside(directions[sizes > 0.1 * RESIDUAL * self.scale][: self.n - self.size])
        self.tail = rest @ self.ahead.mT
        if not len(self.ahead):
            self.widen()

    def pairs(self, k: int) -> tuple[Tensor, Tensor, float]:
        """The k largest Ritz values, their coordinates ``(size, k)``, and the largest residual."""
        T = torch.zeros(self.size, self.size, dtype=torch.float64)
        for row in self.t_rows:
            end = row.shape[1]
            T[end - len(row) : end, :end] = row
        values, y = torch.linalg.eigh(T)
        values, y = values.flip(0)[:k], y.flip(1)[:, :k]
        residual = self.tail.mT @ y[self.size - len(self.tail) :]
        return values, y, float(residual.norm(dim=0).amax()) if len(residual) else 0.0

    def rows(self, y: Tensor) -> Tensor:
        """The vectors of coordinates ``(size, k)``: ``(k, n)``."""
        parts = torch.split(y, [len(slab) for slab in self.slabs])
        total = torch.zeros(y.shape[1], self.n, dtype=torch.float64)
        for part, slab in zip(parts, self.slabs, strict=True):
            total.addmm_(part.mT, slab)
        return total

    def _append(self, block: Tensor) -> None:
        self.size += len(block)
        if self.slabs and len(self.slabs[-1]) < SLAB_ROWS:
            block = torch.cat([self.slabs.pop(), block])
        self.slabs.append(block)

    def _subtract(self, rows: Tensor) -> Tensor:
        """Takes the basis out of `rows`, in place; gives the coordinates that went."""
        coordinates = torch.cat([rows @ slab.mT for slab in self.slabs], dim=1)
        parts = torch.split(coordinates, [len(slab) for slab in self.slabs], dim=1)
        for part, slab in zip(parts, self.slabs, strict=True):
            rows.addmm_(part, slab, alpha=-1)
        return coordinates

    def _outside(self, rows: Tensor) -> Tensor:
        """Orthonormal rows that span `rows`, of norms near 1, without the basis and the block ahead."""
        for _ in range(2):  # once leaves rounding behind, twice is enough
            if self.slabs:
                self._subtract(rows)
            rows = rows - (rows @ self.ahead.mT) @ self.ahead
        columns: Tensor = torch.linalg.qr(rows.mT).Q
        return columns.mT.contiguous()


def leading_eigenpairs(product: Product, n: int, k: int) -> Tensor:
    """Orthonormal eigenvectors of the k largest eigenvalues of a symmetric, positive semi-definite G.

    Deterministic. Leading eigenvalues of a large layer lie close together, so a short run first finds a lower limit
    of the k-th, and the real run works on a Chebyshev polynomial of G that spreads all above that limit: products
    are cheap, and a large basis is not.

    Args:
        product: ``(b, n)`` -> ``(b, n)``, G on every row, float64.
        n: Side of G.
        k: 1..n.

    Returns:
        ``(k, n)``, eigenvalues falling.
    """
    width = max(BLOCK, k // 16)
    rough = _Basis(product, n, width)
    while rough.size < min(2 * k + 4 * width, n):
        rough.step()
    values, y, _ = rough.pairs(k)
    if rough.size >= n:
        return rough.rows(y)
    spread = _spread(product, float(values[0]), float(values[-1]))
    return _rotate(product, _search(_Basis(spread, n, width), k))


def _spread(product: Product, first: float, last: float) -> Product:
    """A Chebyshev polynomial of G which keeps what is unwanted within [-1, 1] and grows beyond, up to `SPREAD`."""
    if last <= SPREAD_FROM * first:
        return product  # the eigenvalues fall fast enough as they are
    cut = CUT * last
    degree = min(MAX_DEGREE, int(acosh(SPREAD) / acosh(max(2 * first, 2 * last) / cut - 1)))

    def polynomial(rows: Tensor) -> Tensor:
        before, now = rows, product(rows) * (2 / cut) - rows
        for _ in range(degree - 1):
            before, now = now, (product(now) * (2 / cut) - now) * 2 - before
        return now

    return polynomial


def _search(basis: _Basis, k: int) -> Tensor:
    """Grows the basis until k pairs have converged, and a search for missed copies has found none."""
    test_at, before = k + 1, None
    while True:
        basis.step()
        if basis.size < min(test_at, basis.n):
            continue
        values, y, residual = basis.pairs(k)
        test_at = basis.size + max(basis.width, basis.size // 8)
        if basis.size >= basis.n:
            return basis.rows(y)
        if residual > RESIDUAL * basis.scale:
            continue
        if before is not None and bool((values - before).amax() <= UNCHANGED * basis.scale):
            return basis.rows(y)
        before = values
        basis.widen()
        test_at = basis.size + 2 * SEARCH_STEPS * basis.width


def _rotate(product: Product, rows: Tensor) -> Tensor:
    """The eigenvectors of G within the span of `rows`."""
    T = product(rows) @ rows.mT
    vectors: Tensor = torch.linalg.eigh((T + T.mT) / 2).eigenvectors
    return vectors.flip(1).mT @ rows

"""Second moments of rows g in n dimensions, as far as products with them go: of features, and of gradients."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splitveil.obfuscate.features import spread

LARGEST_MATRIX = 4608
"""Up to so many dimensions a moment is an n×n matrix that every row is added to."""
MOST_ROWS = 4096
"""Beyond it is a table of so many rows, and products go through the table."""
_BLOCK = 256  # rows of the table that a product takes at a time


@dataclass(frozen=True, eq=False)
class Moment:
    """A symmetric positive matrix weight·M + ridge·I, with M = E[g gᵀ].

    Attributes:
        size: n.
        samples: rows that it was made of.
        matrix: M (n, n), float64; None where n is large.
        rows: g/√R (R, n) in its place.
        weight, ridge: of the shrinkage.
    """

    size: int
    samples: int
    matrix: Tensor | None = None
    rows: Tensor | None = None
    weight: float = 1.0
    ridge: float = 0.0

    @classmethod
    def of(cls, batches: Iterable[Tensor], size: int, count: int) -> "Moment":
        """The second moment of rows that come in batches (B, n), ``count`` in all.

        Where n is large, evenly spread rows are kept, at most `MOST_ROWS`: memory is then the same for any count.
        """
        if size <= LARGEST_MATRIX:
            # In float64 throughout: what rounding adds in float32 looks like directions that matter, and is sent.
            total = torch.zeros(size, size, dtype=torch.float64)
            for rows in batches:
                total = total.to(rows.device).addmm_(rows.mT.double(), rows.double())
            return cls(size, count, matrix=total.cpu() / count)
        table = spread(batches, count, MOST_ROWS).float()
        return cls(size, len(table), rows=table / len(table) ** 0.5)

    def product(self, vectors: Tensor) -> Tensor:
        """The matrix times vectors (n, k), float64."""
        if self.matrix is not None:
            found = self.matrix @ vectors
        else:
            assert self.rows is not None
            found = torch.zeros_like(vectors)
            for rows in torch.split(self.rows, _BLOCK):  # in float64 for the same reason, but never all rows at once
                exact = rows.double()
                found.addmm_(exact.mT, exact @ vectors)
        return self.weight * found + self.ridge * vectors

    @property
    def _trace(self) -> float:
        part = self.matrix.trace() if self.matrix is not None else self._table.double().square().sum()
        return float(part)

    @property
    def _table(self) -> Tensor:
        assert self.rows is not None
        return self.rows

    @property
    def _square_trace(self) -> float:
        """tr(M²)."""
        if self.matrix is not None:
            return float(self.matrix.square().sum())
        return float((self._table @ self._table.mT).double().square().sum())

    def shrunk(self) -> "Moment":
        """The covariance shrunk towards the multiple of the identity that has its trace.

        By how much is the oracle approximating estimate for Gaussian samples (Chen, Wiesel, Eldar and Hero 2010,
        equation 23): much where samples are few against n, nothing in the limit of many.
        """
        n, trace, squares = self.size, self._trace, self._square_trace
        above = (1 - 2 / n) * squares + trace**2
        below = (self.samples + 1 - 2 / n) * (squares - trace**2 / n)
        share = 1.0 if below <= 0 else min(1.0, above / below)
        return replace(self, weight=1 - share, ridge=share * trace / n)


def mean_of(batches: Iterable[Tensor], size: int) -> Tensor:
    """The mean (n,) of rows in batches (B, n), in float64."""
    total, count = torch.zeros(size, dtype=torch.float64), 0
    for rows in batches:
        total += rows.double().sum(0).cpu()
        count += len(rows)
    return total / count

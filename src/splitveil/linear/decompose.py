"""Singular triplets of a layer's matrix in float64, from its entries or from its products alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from splitveil.linear.krylov import leading_eigenpairs

DIRECT_UP_TO = 512
"""Smaller side up to which LAPACK's SVD is as fast as the way through the Gram matrix."""

CAREFUL_BELOW = 1e-2
"""Singular values below this part of the largest are found again after the Gram matrix, which squares them."""

CHUNK_ELEMENTS = 2**23
"""Numbers that one batch of products may hold on its larger side."""


class Triplets(NamedTuple):
    """Leading singular triplets of a matrix: u ``(m, r)``, s ``(r,)`` falling, vh ``(r, d)``."""

    u: Tensor
    s: Tensor
    vh: Tensor

    def first(self, r: int) -> "Triplets":
        """The r largest of them."""
        return Triplets(self.u[:, :r], self.s[:r], self.vh[:r])

    def flipped(self) -> "Triplets":
        """Those of the transposed matrix."""
        return Triplets(self.vh.mT, self.s, self.u.mT)


@dataclass(frozen=True)
class Products:
    """A matrix W ``(m, n)`` known by what it does to rows: ``forward(z) = z Wᵀ``, ``backward(y) = y W``."""

    m: int
    n: int
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, matrix: Tensor) -> "Products":
        """Those of an explicit matrix."""
        m, n = matrix.shape
        return cls(m, n, lambda z: z @ matrix.mT, lambda y: y @ matrix)

    def flipped(self) -> "Products":
        """Those of the transposed matrix."""
        return Products(self.n, self.m, self.backward, self.forward)

    def images(self, rows: Tensor) -> Tensor:
        """`forward` of ``(k, n)`` in batches of bounded memory: ``(k, m)``."""
        return torch.cat([self.forward(chunk) for chunk in torch.split(rows, self._batch)])

    def gram(self, rows: Tensor) -> Tensor:
        """``rows WᵀW`` in batches of bounded memory: ``(k, n)``."""
        return torch.cat([self.backward(self.forward(chunk)) for chunk in torch.split(rows, self._batch)])

    @property
    def _batch(self) -> int:
        return max(1, CHUNK_ELEMENTS // max(self.m, self.n))


def decompose_matrix(matrix: Tensor) -> Triplets:
    """All min(m, n) triplets of a float64 matrix ``(m, n)``."""
    if min(matrix.shape) <= DIRECT_UP_TO:
        return Triplets(*torch.linalg.svd(matrix, full_matrices=False))
    if matrix.shape[0] < matrix.shape[1]:
        return decompose_matrix(matrix.mT).flipped()
    return _from_gram(Products.of(matrix), matrix.mT @ matrix, matrix.shape[1])


def left_vectors(weight: Tensor) -> Tensor:
    """Left singular vectors (m, min(m, n)) of a matrix (m, n), by falling singular value, in its dtype.

    Through the Gram matrix of the smaller side in float64: exact enough for directions that matter to training, and
    quick enough for every step. Where m > n and the matrix has no full rank, the last columns are zero.
    """
    W = weight.double()
    m, n = W.shape
    squares, found = torch.linalg.eigh(W @ W.mT if m <= n else W.mT @ W)
    vectors: Tensor = found.flip(1)
    if m > n:
        s = squares.flip(0).clamp(min=0).sqrt()
        vectors = torch.where(s > 1e-6 * s[0], (W @ vectors) / s.clamp(min=1e-30), 0.0)
    return vectors.to(weight.dtype)


def decompose_products(products: Products, k: int) -> Triplets:
    """The first k triplets through the Gram matrix of the smaller side, which is held in memory."""
    if products.m < products.n:
        return decompose_products(products.flipped(), k).flipped()
    gram = products.gram(torch.eye(products.n, dtype=torch.float64))
    return _from_gram(products, gram, k)


def leading_triplets(products: Products, k: int) -> Triplets:
    """The first k triplets without any matrix: needs k far below min(m, n) to be worth it."""
    if products.m < products.n:
        return leading_triplets(products.flipped(), k).flipped()
    return _complete(products, leading_eigenpairs(products.gram, products.n, k))


def _from_gram(products: Products, gram: Tensor, k: int) -> Triplets:
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return _complete(products, vectors[:, -k:].flip(1).mT.contiguous())


def _complete(products: Products, vh: Tensor) -> Triplets:
    """Triplets from right singular vectors ``(k, n)`` of WᵀW, m >= n, in falling order.

    Rounding of WᵀW blurs the vectors of small singular values among each other. They span the right space, so the
    SVD of W on that space alone sets them right: singular values are then exact to about 1e-13 of the largest.
    """
    images = products.images(vh)
    s = images.norm(dim=1)
    clear = int((s > CAREFUL_BELOW * s[0]).sum())
    u = (images[:clear] / s[:clear, None]).mT
    if clear < len(s):
        Q, R = torch.linalg.qr(torch.cat([u, images[clear:].mT], dim=1))
        u_small, s_small, rotation = torch.linalg.svd(R[clear:, clear:])
        u = torch.cat([u, Q[:, clear:] @ u_small], dim=1)
        s = torch.cat([s[:clear], s_small])
        vh = torch.cat([vh[:clear], rotation @ vh[clear:]])
    order = s.argsort(descending=True, stable=True)
    return Triplets(u[:, order], s[order], vh[order])

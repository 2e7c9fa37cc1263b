"""Leading eigenpairs of a product ΣG of two symmetric positive matrices, from products with each alone."""

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""A symmetric positive matrix (n, n) as its products with vectors (n, k), in float64."""

_MORE = 8  # vectors beyond those asked for, so that the last ones converge too
_MOST_ROUNDS = 60
_STILL = 1e-7
_LEAST = 1e-10  # relative to the largest, below which an eigenvalue is rounding


def leading_pairs(covariance: Product, metric: Product, n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Subspace iteration with a Rayleigh-Ritz step in the inner product of G, in which ΣG is self-adjoint.

    Deterministic. It ends where no eigenvalue asked for still grows, which tells apart what differs by enough to
    matter: eigenvectors of nearly equal eigenvalues may be mixed.

    Args:
        covariance: Σ.
        metric: G.
        n: their side.
        m: pairs.

    Returns:
        Eigenvalues (k,), falling; eigenvectors V (n, k), orthogonal in the inner product of G; and G V. Fewer than m
        where the other eigenvalues are zero.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(n, min(n, m + _MORE), dtype=torch.float64, generator=generator)
    image = covariance(metric(image))
    values = torch.zeros(0, dtype=torch.float64)
    for _ in range(_MOST_ROUNDS):
        vectors = torch.linalg.qr(image).Q
        seen = metric(vectors)
        image = covariance(seen)
        before, (values, mix) = values, _ritz(vectors.mT @ seen, seen.mT @ image)
        vectors, seen, image = vectors @ mix, seen @ mix, image @ mix
        kept = min(m, len(values))
        if len(before) >= kept and bool(((values - before[: len(values)])[:kept].abs() <= _STILL * values[:1]).all()):
            break
    return values[:m], vectors[:, :m], seen[:, :m]


def _ritz(gram: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and vectors of image c = λ gram c, where neither is rounding."""
    sizes, basis = torch.linalg.eigh((gram + gram.mT) / 2)
    good = sizes > _LEAST * sizes[-1:].clamp(min=torch.finfo(sizes.dtype).tiny)
    white = basis[:, good] / sizes[good].sqrt()
    values, mix = torch.linalg.eigh(white.mT @ ((image + image.mT) / 2) @ white)
    values, mix = values.flip(0), mix.flip(1)
    large = values > _LEAST * values[:1].clamp(min=torch.finfo(values.dtype).tiny)
    return values[large], (white @ mix)[:, large]

"""The directions of a feature that matter most, given how features spread and what the server does with them."""

import torch
from torch import Tensor

from splitveil.linear.pencil import Product, leading_pairs

__all__ = ["Product", "nested_directions"]


def nested_directions(covariance: Product, metric: Product, n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The affine map of rank m that loses least: min E (z − z')ᵀ G (z − z'), for every m at once.

    With Σ^½ G Σ^½ = Q Λ Qᵀ it encodes a = Qᵀ Σ^{-½} (z − μ) and decodes z' = μ + Σ^½ Q a, the leading m columns of Q
    (E6 in docs/maths.md). The columns P = Σ^½ Q are eigenvectors of Σ G, and Qᵀ Σ^{-½} = Λ^{-1} Pᵀ G, so that
    products with Σ and G are enough: no root, no inverse, no n×n matrix.

    Args:
        covariance: Σ, of features.
        metric: G, what a change of the feature does to the answer.
        n: numbers in a feature.
        m: directions.

    Returns:
        The encoder's rows (m, n), the decoder's rows (m, n), and the energy (m,) of each direction: what leaving it
        out adds to the loss. The first k rows are the best of rank k. Fewer than m where no more matter at all.
    """
    energy, vectors, seen = leading_pairs(covariance, metric, n, m)
    # Scaled so that PᵀGP = Λ, which makes the coefficients of variance 1 and the encoder Λ⁻¹PᵀG.
    scale = (energy / (vectors * seen).sum(0)).sqrt() * _signs(seen)
    return (seen * scale / energy).mT.contiguous(), (vectors * scale).mT.contiguous(), energy


def _signs(seen: Tensor) -> Tensor:
    """Signs that make each direction's largest entry positive, so that they are the same on every machine."""
    return torch.where(seen.gather(0, seen.abs().argmax(0, keepdim=True))[0] < 0, -1.0, 1.0)

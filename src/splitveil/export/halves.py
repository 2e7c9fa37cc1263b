"""The two graphs: image to coefficients, and coefficients to logits by sums that are exact for integer messages."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from splitveil.codec import LARGEST, SIGNIFICANT_BITS
from splitveil.obfuscate import DistortionFree, TopComponents
from splitveil.split import SplitModel

EXACT_BITS = 52
"""Of a float64's 53; one is kept back, so that no partial sum of an exact product comes near the limit."""

Veil = TopComponents | DistortionFree


class EdgeHalf(nn.Module):
    """Coefficients (B, m, *positions) of images (B, C, H, W): the client's half and the encoder in one graph.

    Args:
        split: the model.
        veil: the obfuscator.
    """

    def __init__(self, split: SplitModel, veil: Veil) -> None:
        super().__init__()
        self.client = split.client
        factors, m = veil.factors, veil.m
        # Without the components that are never sent, which would make the graph many times larger.
        self.factors = replace(
            factors, u=factors.u[:, :m].clone(), s=factors.s[:m].clone(), vh=factors.vh[:m].float().clone()
        )

    def forward(self, image: Tensor) -> Tensor:
        """Coefficients, the strongest first."""
        return self.factors.project(self.client(image))


class ServerHalf(nn.Module):
    """Logits (B, classes) of coefficients (B, m, *positions), zero beyond what was sent.

    The decoder is a float64 product with a matrix whose entries are rounded to so coarse a grid that, for the
    coefficients of integer messages, every product and every partial sum is a float64 without rounding. The
    decoded feature is therefore the same whatever the order of summation, on every machine that follows IEEE 754.

    Args:
        split: the model.
        veil: the obfuscator.
        scales: of each integer coding, (components,).
    """

    matrix: Tensor

    def __init__(self, split: SplitModel, veil: Veil, scales: dict[str, Tensor]) -> None:
        super().__init__()
        self.split, self.veil = split, veil
        self.server = split.server
        self.register_buffer("matrix", exact_rows(_matrix(veil), scales))

    def forward(self, coefficients: Tensor) -> Tensor:
        """Logits."""
        decoded = self.decode(coefficients)
        if self.veil.message.carries == "feature":
            return self.server(decoded)  # type: ignore[no-any-return]
        return self.split.resume(self.veil.factors.map.arrange(decoded))

    def decode(self, coefficients: Tensor) -> Tensor:
        """The feature z' (B, *feature), or where there is none the outputs without bias (B, out, *positions)."""
        if self.veil.message.carries == "feature":
            return (coefficients.double() @ self.matrix).float().reshape(-1, *self.veil.factors.feature_shape)
        return (coefficients.movedim(1, -1).double() @ self.matrix).float().movedim(-1, 1)


def exact_rows(matrix: Tensor, scales: dict[str, Tensor]) -> Tensor:
    """A matrix whose products with integer messages are exact in float64, in any order of summation.

    With â_k = q·c·2^e, |q| ≤ L and c < 2^8 an integer, row k is rounded to multiples of 2^(g − e): all terms are then
    multiples of 2^g, and g is the smallest for which the sum of their absolute values stays below 2^(52 + g).

    Args:
        matrix: (components, n), float64.
        scales: (components,) of each integer coding, with at most eight significant bits.

    Returns:
        The rounded matrix (components, n).
    """
    if not scales:
        return matrix
    unit = torch.stack([_unit_exponent(scale) for scale in scales.values()]).amin(0)
    reach = torch.stack([LARGEST[name] * scale.double() for name, scale in scales.items()]).amax(0)  # type: ignore[index]
    bound = float((reach[:, None] * matrix.abs()).sum(0).max())
    grid = math.ceil(math.log2(bound)) + 1 - EXACT_BITS if bound else 0
    step = torch.ldexp(torch.ones_like(unit, dtype=torch.float64), grid - unit)[:, None]
    return (matrix / step).round() * step


def _unit_exponent(scale: Tensor) -> Tensor:
    """The e of a scale c·2^e with an integer c below 2^8."""
    return torch.frexp(scale.double())[1] - SIGNIFICANT_BITS


def _matrix(veil: Veil) -> Tensor:
    """What a message is multiplied with: V, or U S where it carries the pre-activation; (components, n), float64."""
    factors, m = veil.factors, veil.message.shape[0]
    if veil.message.carries == "pre-activation":
        return (factors.u[:, :m] * factors.s[:m]).mT.double().contiguous()
    return factors.vh[:m].double()

"""Encoders that are tuned: an affine map, with or without a small layer before it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from splitveil.errors import ShapeError
from splitveil.obfuscate.affine import Affine, check_shapes
from splitveil.obfuscate.features import Features

SHARE = 0.1
"""Of the client's multiply-accumulates, what an encoder with a hidden layer may cost at most."""
WIDEST = 128


@dataclass(frozen=True, eq=False)
class Encoder:
    """weight · relu(hidden (z − mean) + hidden_bias) + bias, or weight (z − mean) + bias without a hidden layer.

    Attributes:
        mean: (n,).
        weight: (k, h), or (k, n) without a hidden layer.
        bias: (k,), or None.
        hidden: (h, n), or None.
        hidden_bias: (h,), or None.

    Raises:
        ShapeError: the shapes do not fit each other.
    """

    mean: Tensor
    weight: Tensor
    bias: Tensor | None = None
    hidden: Tensor | None = None
    hidden_bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mean.dim() != 1 or self.weight.dim() != 2 or (self.hidden is None) != (self.hidden_bias is None):
            raise ShapeError("an encoder needs a mean (n,), a weight (k, inputs), and both parts of a layer or none")
        n, width = len(self.mean), self.weight.shape[1]
        check_shapes(
            weight=(self.weight, (len(self.weight), n if self.hidden is None else width)),
            bias=(self.bias, (len(self.weight),)), hidden=(self.hidden, (width, n)),
            hidden_bias=(self.hidden_bias, (width,)),
        )  # fmt: skip

    @classmethod
    def started(cls, affine: Affine, width: int) -> "Encoder":
        """An encoder that computes what ``affine`` does, in a hidden layer of ``width`` units, 0 for none.

        a = relu(a) − relu(−a) takes 2m units; the others start at random directions, and take part little.
        """
        if not width:
            return cls(affine.mean, affine.encoder)
        m, free = affine.m, width - 2 * affine.m
        directions = torch.randn(free, len(affine.mean))
        directions *= affine.encoder.norm(dim=1).mean() / directions.norm(dim=1, keepdim=True)
        hidden = torch.cat([affine.encoder, -affine.encoder, directions])
        weight = torch.cat([torch.eye(m), -torch.eye(m), 0.01 * torch.randn(m, free)], dim=1)
        return cls(affine.mean, weight, None, hidden, torch.zeros(width))

    def __call__(self, z: Tensor) -> Tensor:
        """Outputs (B, k) of features (B, *feature)."""
        x = z.flatten(1) - self.mean.to(z.device)
        if self.hidden is not None and self.hidden_bias is not None:
            x = torch.relu(x @ self.hidden.to(z.device).mT + self.hidden_bias.to(z.device))
        outputs = x @ self.weight.to(z.device).mT
        return outputs if self.bias is None else outputs + self.bias.to(z.device)


def affordable_width(features: Features, m: int, outputs: int) -> int:
    """Units of a hidden layer that costs at most `SHARE` of the client's half; 0 where that is too few for m."""
    width = min(WIDEST, int(SHARE * features.client_macs) // (features.size + outputs))
    return width if width >= 2 * m else 0

"""The two graphs: image to message, and message to logits by sums that are exact for messages of whole numbers."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from splitveil.codec import Coding
from splitveil.export.exact import exact_map, exact_rows, exact_table
from splitveil.models import logarithm
from splitveil.obfuscate import Affine, DistortionFree, Tables, TopComponents
from splitveil.split import SplitModel

Veil = TopComponents | DistortionFree | Affine | Tables


class EdgeHalf(nn.Module):
    """Messages (B, m, *positions) of images (B, C, H, W): the client's half and the encoder in one graph.

    Args:
        split: the model.
        veil: the obfuscator; digits are given as float32, too.
    """

    def __init__(self, split: SplitModel, veil: Veil) -> None:
        super().__init__()
        self.client = split.client
        if isinstance(veil, Affine | Tables):
            self.encode = veil.encode
            return
        factors, m = veil.factors, veil.m
        # Without the components that are never sent, which would make the graph many times larger.
        self.encode = replace(
            factors, u=factors.u[:, :m].clone(), s=factors.s[:m].clone(), vh=factors.vh[:m].float().clone()
        ).project

    def forward(self, image: Tensor) -> Tensor:
        """Coefficients, the strongest first; or digits."""
        return self.encode(self.client(image)).float()


class ServerHalf(nn.Module):
    """Logits (B, classes) of coefficients (B, m, *positions), zero beyond what was sent, or of digits (B, G).

    The decoder is a float64 product with a matrix whose entries are rounded to so coarse a grid that, for the
    coefficients of integer messages, every product and every partial sum is a float64 without rounding; or for
    digits a sum of rows of a table that is rounded likewise. The decoded feature is therefore the same whatever the
    order of summation, on every machine that follows IEEE 754.

    Args:
        split: the model.
        veil: the obfuscator.
        scales: of each integer coding, (components,).
        probabilities: whether the model ends in a softmax, whose logarithm is then the logits.
    """

    matrix: Tensor
    offset: Tensor
    table: Tensor
    starts: Tensor

    def __init__(
        self, split: SplitModel, veil: Veil, scales: dict[Coding, Tensor], *, probabilities: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.split, self.veil, self.probabilities = split, veil, probabilities
        self.server = split.server
        if isinstance(veil, Tables):
            self.register_buffer("table", exact_table(veil.table.double(), veil.levels))
            self.register_buffer("starts", torch.tensor([0, *veil.levels[:-1]]).cumsum(0))
        elif isinstance(veil, Affine):
            matrix, offset = exact_map(veil.decoder.double(), veil.offset.double(), scales)
            self.register_buffer("matrix", matrix)
            self.register_buffer("offset", offset)
        else:
            self.register_buffer("matrix", exact_rows(_matrix(veil), scales))

    def forward(self, message: Tensor) -> Tensor:
        """Logits."""
        answers = self._answer(self.decode(message))
        return logarithm(answers) if self.probabilities else answers

    def _answer(self, decoded: Tensor) -> Tensor:
        if isinstance(self.veil, Affine | Tables) or self.veil.message.carries == "feature":
            return self.server(decoded)  # type: ignore[no-any-return]
        return self.split.resume(self.veil.factors.map.arrange(decoded))

    def decode(self, message: Tensor) -> Tensor:
        """The feature z' (B, *feature), or where there is none the outputs without bias (B, out, *positions)."""
        if isinstance(self.veil, Tables):
            rows = nn.functional.embedding(message.long() + self.starts, self.table)
            return rows.sum(1).float().reshape(-1, *self.veil.feature_shape)
        if isinstance(self.veil, Affine):
            return (message.double() @ self.matrix + self.offset).float().reshape(-1, *self.veil.feature_shape)
        if self.veil.message.carries == "feature":
            return (message.double() @ self.matrix).float().reshape(-1, *self.veil.factors.feature_shape)
        return (message.movedim(1, -1).double() @ self.matrix).float().movedim(-1, 1)


def _matrix(veil: TopComponents | DistortionFree) -> Tensor:
    """What a message is multiplied with: V, or U S where it carries the pre-activation; (components, n), float64."""
    factors, m = veil.factors, veil.message.shape[0]
    if veil.message.carries == "pre-activation":
        return (factors.u[:, :m] * factors.s[:m]).mT.double().contiguous()
    return factors.vh[:m].double()

"""Encoders that are tuned: an affine map, with or without a small layer before it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from splitveil.errors import RankError, ShapeError
from splitveil.obfuscate.affine import Affine, check_shapes
from splitveil.obfuscate.features import Features

SHARE = 0.1
"""Of the client's multiply-accumulates, what an encoder with a hidden layer costs at most unless told a width."""
WIDEST = 128
_MOST_UNITS = 4096  # that can be asked for
POOLS = (1, 2, 4, 8)
"""Sides of the squares over which a layer averages maps, where it could not afford to read every position."""


@dataclass(frozen=True, eq=False)
class Layer:
    """relu(weight · averages + bias): a hidden layer that reads averages over squares of a feature's maps.

    Positions that fill no square, on the right and at the bottom, are not read.

    Attributes:
        weight: (h, k), for k averages; all n numbers of a feature where ``pool`` is 1.
        bias: (h,).
        pool: side of the squares, of features (C, H, W) alone.

    Raises:
        ShapeError: the shapes do not fit each other.
    """

    weight: Tensor
    bias: Tensor
    pool: int = 1

    def __post_init__(self) -> None:
        if self.weight.dim() != 2:
            raise ShapeError(f"a layer's weight is (units, inputs), not {tuple(self.weight.shape)}")
        check_shapes(bias=(self.bias, (len(self.weight),)))

    def __call__(self, x: Tensor) -> Tensor:
        """Units (B, h) of features less their mean (B, *feature)."""
        return torch.relu(pooled(x, self.pool) @ self.weight.to(x.device).mT + self.bias.to(x.device))

    def check(self, feature_shape: tuple[int, ...]) -> None:
        """Raises `ShapeError` where the layer does not read features of this shape."""
        if self.weight.shape[1] != averages(feature_shape, self.pool):
            raise ShapeError(f"a layer of {self.weight.shape[1]} inputs does not read features {feature_shape}")


@dataclass(frozen=True, eq=False)
class Encoder:
    """weight · layer(z − mean) + bias, or weight (z − mean) + bias without a layer.

    Attributes:
        mean: (n,).
        weight: (k, h), or (k, n) without a layer.
        bias: (k,), or None.
        layer: of h units, or None.

    Raises:
        ShapeError: the shapes do not fit each other.
    """

    mean: Tensor
    weight: Tensor
    bias: Tensor | None = None
    layer: Layer | None = None

    def __post_init__(self) -> None:
        if self.mean.dim() != 1 or self.weight.dim() != 2:
            raise ShapeError("an encoder needs a mean (n,) and a weight (k, inputs)")
        inputs = len(self.mean) if self.layer is None else len(self.layer.weight)
        check_shapes(weight=(self.weight, (len(self.weight), inputs)), bias=(self.bias, (len(self.weight),)))

    @classmethod
    def started(cls, affine: Affine, width: int, pool: int = 1) -> "Encoder":
        """An encoder that computes what ``affine`` does, in a layer of ``width`` units, 0 for none.

        a = relu(a) − relu(−a) takes 2m units; the others start at random directions, and take part little. From
        averages it is what ``affine`` makes of the feature with each square at its average.
        """
        if not width:
            return cls(affine.mean, affine.encoder)
        m, free = affine.m, width - 2 * affine.m
        rows = pool**2 * pooled(affine.encoder.reshape(m, *affine.feature_shape), pool)
        directions = torch.randn(free, rows.shape[1])
        directions *= rows.norm(dim=1).mean() / directions.norm(dim=1, keepdim=True)
        weight = torch.cat([torch.eye(m), -torch.eye(m), 0.01 * torch.randn(m, free)], dim=1)
        layer = Layer(torch.cat([rows, -rows, directions]), torch.zeros(width), pool)
        return cls(affine.mean, weight, None, layer)

    @property
    def weights(self) -> dict[str, Tensor]:
        """What can be tuned, by name; `with_weights` takes it back."""
        layer = {} if self.layer is None else {"hidden": self.layer.weight, "hidden_bias": self.layer.bias}
        return {"weight": self.weight, **({} if self.bias is None else {"bias": self.bias}), **layer}

    def with_weights(self, weights: Mapping[str, Tensor]) -> "Encoder":
        """The same with other `weights`, of which there may be more than its own."""
        layer = self.layer and Layer(weights["hidden"], weights["hidden_bias"], self.layer.pool)
        return Encoder(self.mean, weights["weight"], self.bias if self.bias is None else weights["bias"], layer)

    def __call__(self, z: Tensor) -> Tensor:
        """Outputs (B, k) of features (B, *feature)."""
        x = z.flatten(1) - self.mean.to(z.device)
        if self.layer is not None:
            x = self.layer(x.reshape(z.shape))
        outputs = x @ self.weight.to(z.device).mT
        return outputs if self.bias is None else outputs + self.bias.to(z.device)


def pooled(x: Tensor, pool: int) -> Tensor:
    """Averages over squares of maps, or the features as they are where the squares have a side of 1: (B, k)."""
    return (x if pool == 1 else avg_pool2d(x, pool)).flatten(1)


def averages(shape: tuple[int, ...], pool: int) -> int:
    """Numbers that `pooled` makes of a feature of this shape; raises `ShapeError` where it has no such squares."""
    if pool != 1 and (len(shape) != 3 or not 1 < pool <= min(shape[1:])):
        raise ShapeError(f"features {shape} have no squares with a side of {pool} to average over")
    return pooled(torch.zeros(1, *shape, device="meta"), pool).numel()


def check_width(width: int, m: int, what: str) -> None:
    """Raises `RankError` unless a layer of so many units, or none where 0, can carry m of what it is to carry."""
    if type(width) is not int or not 0 <= width <= _MOST_UNITS:
        raise RankError(f"width={width!r} cannot be; take 0 for no hidden layer, or at most {_MOST_UNITS} units")
    if 0 < width < 2 * m:
        raise RankError(f"a hidden layer of {width} units cannot carry {m} {what}; make it at least {2 * m}, or 0")


def layers_to_try(features: Features, m: int, outputs: int, width: int | None) -> list[tuple[int, int]]:
    """Units of the hidden layers that are to be tuned, and the sides of the squares that they average.

    That of the width asked for; else the affordable one. Where that reads averages alone, an encoder without a layer is
    tried beside it: what the averages lose, no tuning brings back, and how much that is depends on the server.
    """
    if width is not None:
        return [(width, 1)]
    affordable = affordable_layer(features, m, outputs)
    return [affordable] if affordable[1] == 1 else [(0, 1), affordable]


def affordable_layer(features: Features, m: int, outputs: int) -> tuple[int, int]:
    """Units of a layer that costs at most `SHARE` of the client's half, and the side of the squares that it averages.

    The finest squares that leave room for 2m units are taken; 0 units where no squares do.
    """
    for pool in POOLS if len(features.shape) == 3 else POOLS[:1]:
        if pool > min(features.shape[-2:]):
            break
        width = min(WIDEST, int(SHARE * features.client_macs) // (averages(features.shape, pool) + outputs))
        if width >= 2 * m:
            return width, pool
    return 0, 1

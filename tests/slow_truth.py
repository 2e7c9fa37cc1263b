"""Slow truths that fast code is compared with."""

import torch
from torch import Tensor

from splitveil.linear import LinearMap


def unrolled(map_: LinearMap) -> Tensor:
    """The layers as one matrix (m, n) in float64: their outputs for every unit vector."""
    units = torch.eye(map_.in_features, dtype=torch.float64)
    return map_.to(units).apply(units.reshape(-1, *map_.feature_shape)).mT

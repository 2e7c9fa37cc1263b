"""What a model's answers are worth, undefended and from a few components at several cuts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from splitveil.data import Dataset
from splitveil.linear import Factors, Operator, factorise
from splitveil.obfuscate import TopComponents
from splitveil.split import SplitModel
from splitveil.statistics import Estimate, proportion
from splitveil.train import predict

Numbers = dict[str, Any]


def undefended(model: nn.Module, data: Dataset, parts: Sequence[str]) -> Numbers:
    """Accuracy by part, each with value, low, high."""
    return {name: _right(predict(model, data.parts[name]), data.parts[name].y).as_row() for name in parts}


@torch.no_grad()
def from_components(
    model: nn.Module,
    data: Dataset,
    cuts: Sequence[int],
    kept: Sequence[int],
    parts: Sequence[str],
    operators: Sequence[Operator] = ("patch", "dense"),
) -> list[Numbers]:
    """Accuracy from the top m' components, for every cut, operator and m' up to the number of factors.

    The operators are those of convolutions. The features of a cut are computed once.

    Returns:
        One row each: cut, operator, m, and by part value, low, high.
    """
    rows = []
    for cut in cuts:
        split = SplitModel(model, at=cut)
        features = {name: predict(split.client, data.parts[name]) for name in parts}
        for factors in _factors(split, tuple(features[parts[0]].shape[1:]), max(kept), operators):
            for m in kept:
                if m <= len(factors.s):
                    found = {
                        name: _answer(split, TopComponents(factors, m=m), z, data.parts[name].y).as_row()
                        for name, z in features.items()
                    }
                    rows.append({"cut": cut, "operator": factors.operator, "m": m, **found})
    return rows


def _factors(split: SplitModel, shape: tuple[int, ...], most: int, operators: Sequence[Operator]) -> list[Factors]:
    layer = split.server_layer
    if isinstance(layer, nn.Linear):
        return [factorise(layer, feature_shape=shape)]
    # All factors of a dense convolution would take minutes.
    ranks = {"patch": None, "dense": most}
    return [factorise(layer, feature_shape=shape, operator=name, rank=ranks[name]) for name in operators]


def _answer(split: SplitModel, veil: TopComponents, features: Tensor, y: Tensor) -> Estimate:
    batches = (z.to(split.device) for z in torch.split(features, 512))
    return _right(torch.cat([split.answer(veil, veil.encode(z)).cpu() for z in batches]), y)


def _right(logits: Tensor, y: Tensor) -> Estimate:
    return proportion((logits.argmax(1) == y).numpy())

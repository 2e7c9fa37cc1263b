"""The grid of a profile at one cut: which obfuscators are measured there."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from splitveil.codec import CODINGS
from splitveil.errors import ProfileError
from splitveil.linear import DEFAULT_TOP, Factors, FullyConnected, Operator, factorise
from splitveil.linear.layers import read_layers
from splitveil.obfuscate import Affine, DistortionBounded, DistortionFree, Tables, TopComponents
from splitveil.split import SplitModel

KEPT = (1, 2, 4, 8, 16, 32, 64)
EPSILONS = (0.05, 0.1, 0.2, 0.4)

Veil = TopComponents | DistortionFree | DistortionBounded | Affine | Tables


def check_grid(kept: Sequence[int], epsilons: Sequence[float], codings: Sequence[str]) -> None:
    """Raises `ProfileError` where a number of components, a distortion or a coding is impossible."""
    if not kept or any(type(m) is not int or m < 1 for m in kept):
        raise ProfileError(f"kept must name whole numbers of at least 1, not {list(kept)}")
    if any(not (math.isfinite(epsilon) and 0 <= epsilon <= 1) for epsilon in epsilons):
        raise ProfileError(f"epsilons are shares of the layer's output, from 0 to 1, not {list(epsilons)}")
    if not codings or not set(codings) <= set(CODINGS) or len(set(codings)) < len(codings):
        raise ProfileError(f"codings must name some of {', '.join(CODINGS)}, each once, not {list(codings)}")


def factors_at(split: SplitModel, x: Tensor, operator: Operator) -> Factors:
    """Factors of the server's first layer; of a dense convolution the leading ones alone, since all take minutes."""
    with torch.no_grad():
        shape = tuple(split.client(x.to(split.device)).shape[1:])
    layers = read_layers(split.server_layer, shape)
    connected = all(isinstance(part, FullyConnected) for part in layers.parts)
    leading = min(DEFAULT_TOP, layers.in_features, layers.out_features)
    rank = None if connected or operator == "patch" else leading
    factors = factorise(split.server_layer, feature_shape=shape, operator=operator, rank=rank)
    if not float(factors.s[0]):
        raise ProfileError(
            f"the weights of {split.layer_name!r} are all zero, so nothing can be sent there; train again"
        )
    return factors


def obfuscators(factors: Factors, kept: Sequence[int], epsilons: Sequence[float]) -> list[Veil]:
    """The obfuscators of one cut: from one component to all, then by distortion."""
    if not factors.complete:
        return [TopComponents(factors, m=m) for m in sorted(set(kept)) if m <= len(factors.s)]
    rank = int(factors.rank or 0)
    grid: list[Veil] = [TopComponents(factors, m=m) for m in sorted(set(kept)) if m < rank]
    grid.append(DistortionFree(factors) if factors.null_dimension else TopComponents(factors, m=rank))
    return grid + [DistortionBounded(factors, epsilon=epsilon, relative=True) for epsilon in sorted(set(epsilons))]

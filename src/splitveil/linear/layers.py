"""From PyTorch layers to linear maps: reads weights and geometry, and refuses what is not linear here."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from splitveil.errors import OperatorError, ShapeError
from splitveil.linear.convolution import Convolution
from splitveil.linear.maps import FullyConnected, LinearMap, Map, TokenWise

Layer = nn.Linear | nn.Conv2d


def read_layers(layer: Layer | Sequence[Layer], feature_shape: Sequence[int]) -> LinearMap:
    """The linear map of a layer, or of several that read the same tensor.

    The weights are copied: a map does not change when the layer is trained on.

    Args:
        layer: An `nn.Linear` or `nn.Conv2d`, or several of them.
        feature_shape: Shape of one feature, without the batch.

    Raises:
        OperatorError: another type of layer, padding other than zeros, weights that are not finite, or no layer.
        ShapeError: the feature does not fit a layer.
    """
    shape = _checked_shape(feature_shape)
    layers = tuple(layer) if isinstance(layer, Sequence) else (layer,)
    if not layers:
        raise OperatorError("There is no layer to factorise: pass the nn.Linear or nn.Conv2d that reads the feature.")
    return LinearMap(tuple(_read(one, shape) for one in layers))


def _checked_shape(feature_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(int(side) for side in feature_shape)
    if not shape or min(shape) < 1:
        raise ShapeError(
            f"feature_shape is {shape}, but it must be the shape of one feature without the batch, such as (64, 6, 6)."
        )
    return shape


def _read(layer: object, shape: tuple[int, ...]) -> Map:
    if isinstance(layer, nn.Linear):
        return _read_linear(layer, shape)
    if isinstance(layer, nn.Conv2d):
        return _read_convolution(layer, shape)
    raise OperatorError(f"{type(layer).__name__} cannot be factorised: cut before an nn.Linear or an nn.Conv2d.")


def _weight(layer: Layer) -> Tensor:
    weight = layer.weight.detach().clone()
    if not torch.isfinite(weight).all():
        raise OperatorError(f"The weights of {layer} are not all finite numbers: load or train the layer again.")
    return weight


def _read_linear(layer: nn.Linear, shape: tuple[int, ...]) -> Map:
    if prod(shape) == layer.in_features:
        return FullyConnected(_weight(layer), shape)
    if shape[-1] == layer.in_features:
        return TokenWise(_weight(layer), shape)
    raise ShapeError(
        f"A feature of shape {shape} does not fit {layer}: it needs {layer.in_features} elements in all "
        "or on the last axis."
    )


def _read_convolution(layer: nn.Conv2d, shape: tuple[int, ...]) -> Convolution:
    if layer.padding_mode != "zeros":
        raise OperatorError(
            f"{layer} pads with padding_mode={layer.padding_mode!r}: only padding_mode='zeros' can be factorised."
        )
    if len(shape) != 3 or shape[0] != layer.in_channels:
        raise ShapeError(f"A feature of shape {shape} does not fit {layer}: it needs ({layer.in_channels}, H, W).")
    stride, dilation = _pair(layer.stride), _pair(layer.dilation)
    map_ = Convolution(_weight(layer), shape, stride, _pads(layer, dilation), dilation, layer.groups)
    if min(map_.positions) < 1:
        raise ShapeError(f"The kernel of {layer} is larger than the padded feature of shape {shape}.")
    return map_


def _pads(layer: nn.Conv2d, dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":
        rows, columns = (d * (k - 1) for d, k in zip(dilation, layer.kernel_size, strict=True))
        return (rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)
    assert not isinstance(layer.padding, str), "nn.Conv2d accepts no other padding name"
    rows, columns = _pair(layer.padding)
    return (rows, columns, rows, columns)


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    rows, columns = numbers
    return int(rows), int(columns)

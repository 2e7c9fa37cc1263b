"""The number format of a model: everything here is fitted, measured and exported in float32."""

import torch
from torch import Tensor, nn

from splitveil.errors import ModelError

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
HOW = "convert it with model.float(), and cast nothing to another format in forward()"


def check_precision(model: nn.Module) -> None:
    """Raises `ModelError` where a model has weights in half, bfloat16, double or quantised format, all or some."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith(_QUANTISED):
            raise ModelError(
                f"the layer {name!r} is quantised ({type(module).__name__}), but models are taken in float32; give "
                "the model as it was before it was quantised"
            )
    for name, weight in model.named_parameters():
        if weight.is_quantized or (weight.is_floating_point() and weight.dtype != torch.float32):
            raise ModelError(f"the weights {name!r} are {_plain(weight)}, but models are taken in float32; {HOW}")


def check_float32(values: object, what: str) -> None:
    """Raises `ModelError` where a tensor is not of float32."""
    if isinstance(values, Tensor) and values.dtype != torch.float32:
        raise ModelError(f"{what} {_plain(values)}, but models are taken in float32; {HOW}")


def _plain(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")

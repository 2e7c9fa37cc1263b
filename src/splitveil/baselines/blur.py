"""Blurring the image before anything else (paper section 1; Vishwamitra et al. 2017)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from splitveil.baselines.defence import Defended, Undefended
from splitveil.baselines.finetuning import positive
from splitveil.baselines.training import feature, fresh, train
from splitveil.errors import BaselineError
from splitveil.obfuscate import Identity
from splitveil.split import SplitModel

_REACH = 3  # standard deviations to where the kernel goes


class GaussianBlur(nn.Sequential):
    """Gaussian blur of images (B, C, H, W): one convolution along each axis, with the image mirrored at its edges.

    Args:
        channels: C.
        sigma: standard deviation in pixels; the kernel ends beyond 3 of them, and sums to 1.
    """

    def __init__(self, channels: int, sigma: float) -> None:
        reach = reach_of(sigma)
        places = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = (-(places**2) / (2 * sigma**2)).exp()
        kernel = (kernel / kernel.sum()).float()
        super().__init__(_along(kernel[:, None], channels), _along(kernel[None], channels))


def reach_of(sigma: float) -> int:
    """Pixels that the kernel reaches to each side."""
    return math.ceil(_REACH * sigma)


def blurred(model: nn.Module, channels: int, sigma: float) -> nn.Module:
    """The model itself, now with a blur before its forward pass; the names of its modules and cuts stay."""
    kind: type[nn.Module] = type(model)

    class Blurred(kind):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.blur(x))  # type: ignore[no-any-return]

    Blurred.__name__ = f"Blurred{kind.__name__}"
    device = next(model.parameters()).device
    model.__class__ = Blurred
    model.add_module("blur", GaussianBlur(channels, sigma).to(device))
    return model


@dataclass(frozen=True)
class Blur:
    """Train a network of the same architecture on blurred images; the device blurs first.

    Attributes:
        sigma: standard deviation of the blur, in pixels.

    Raises:
        BaselineError: σ is not a finite number above 0; on fitting, the kernel is larger than the images allow.
    """

    sigma: float
    name: ClassVar[str] = "blur"
    supervised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("sigma", self.sigma)

    def fit(self, undefended: Undefended) -> Defended:
        """Train with the recipe of the undefended model; the blur is part of the client's half."""
        channels, *size = undefended.data.input_shape
        if reach_of(self.sigma) >= min(size):  # an image can be mirrored once
            raise BaselineError(
                f"a blur with sigma={self.sigma} reaches {reach_of(self.sigma)} pixels, as far as the images of "
                f"{size[0]} by {size[1]} are wide; choose a smaller sigma"
            )
        network = blurred(fresh(undefended.model, undefended.recipe.seed), channels, self.sigma)
        found = train(undefended, network)
        shape = tuple(feature(undefended).shape[1:])
        return Defended(SplitModel(network, undefended.at), Identity(shape), {"val_accuracy": found})


def _along(kernel: Tensor, channels: int) -> nn.Conv2d:
    height, width = kernel.shape
    # Without the weights that a convolution would draw from the caller's generator.
    layer: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, channels, channels, (height, width), padding=(height // 2, width // 2), padding_mode="reflect",
        groups=channels, bias=False,
    )  # fmt: skip
    layer.weight.data = kernel.expand(channels, 1, -1, -1).contiguous()
    return layer.requires_grad_(False)

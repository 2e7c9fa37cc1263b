"""Which images a model takes, and how many classes it answers with."""

import torch
from torch import Tensor, nn

from splitveil.errors import ModelError

InputShape = tuple[int, int, int]
_LARGEST = 8192


def declared_shape(model: nn.Module) -> tuple[int | None, int | None, int | None]:
    """What a model's ``input_shape`` says of its images, (C, H, W); None for what it leaves open."""
    shape = tuple(getattr(model, "input_shape", ()))
    if len(shape) != 3 or any(size is not None and (type(size) is not int or size < 1) for size in shape):
        return None, None, None
    return shape


def known_shape(model: nn.Module, size: tuple[int, int] | None) -> InputShape:
    """The shape of one image, (C, H, W): what the model says, completed by ``size`` and by trying it.

    Args:
        model: in evaluation mode.
        size: height and width, where the user names them.

    Raises:
        ModelError: the size is unknown or another than the model's, or the model takes neither RGB nor grey images.
    """
    channels, height, width = declared_shape(model)
    if size is None:
        if height is None or width is None:
            raise ModelError("the model does not say the size of its images; give it: --size HxW")
        size = height, width
    if max(size) > _LARGEST:
        raise ModelError(
            f"images of {size[0]}x{size[1]} pixels are larger than {_LARGEST} a side; give the model's own"
        )
    if (height or size[0], width or size[1]) != size:
        raise ModelError(f"the model takes images of {height}x{width} pixels, not {size[0]}x{size[1]}; drop --size")
    reason: Exception | None = None
    for tried in (3, 1) if channels is None else (channels,):
        try:
            answer_of(model, torch.zeros(2, tried, *size))
        except ModelError as error:
            reason = reason or error
        else:
            return tried, *size
    raise ModelError(f"the model takes neither RGB nor grey images of {size[0]}x{size[1]} pixels: {reason}")


def answer_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes) of images (B, C, H, W).

    Raises:
        ModelError: the model cannot answer them, or not by one row of two or more finite numbers for each.
    """
    try:
        with torch.no_grad():
            logits = model(images)
    except Exception as error:  # whatever the user's own code raises
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the model cannot read images of shape {tuple(images.shape[1:])} ({reason})") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the model answers {len(images)} images with {shape}, not with one row of logits for each")
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the model's answers are not finite numbers; check its weights")
    return logits

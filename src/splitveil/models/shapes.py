"""Which images a model takes, and how many classes it answers with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from splitveil.errors import ModelError
from splitveil.models.dice import drawing_operation, generator_states
from splitveil.models.precision import check_precision

InputShape = tuple[int, int, int]
_LARGEST = 8192
_LENGTHS = (2, 1, 3)  # of batches that a model is tried on


def declared_shape(model: nn.Module) -> tuple[int | None, int | None, int | None]:
    """What a model's ``input_shape`` says of its images, (C, H, W); None for what it leaves open."""
    shape = getattr(model, "input_shape", None)
    shape = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(shape) != 3 or any(size is not None and (type(size) is not int or size < 1) for size in shape):
        return None, None, None
    return shape


def known_shape(model: nn.Module, size: tuple[int, int] | None) -> InputShape:
    """The shape of one image, (C, H, W): what the model says, completed by ``size`` and by trying it.

    Args:
        model: in evaluation mode.
        size: height and width, where the user names them.

    Raises:
        ModelError: the size is unknown or another than the model's, the model takes neither RGB nor grey images, its
            weights are not of float32, it does not answer each image with a row of logits, or not alike from call to
            call.
    """
    check_precision(model)
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
        images = sample_images((tried, *size), max(_LENGTHS))
        try:
            _run(model, images)
        except ModelError as error:
            reason = reason or error
        else:
            _require_answers(model, images)
            return tried, *size
    raise ModelError(f"the model takes neither RGB nor grey images of {size[0]}x{size[1]} pixels: {reason}")


def sample_images(shape: Sequence[int], count: int) -> Tensor:
    """Images (count, C, H, W) in [0, 1], always the same: smooth ones, dark and bright, with some noise.

    Of another ``shape`` than (C, H, W) they are noise.

    No two are alike and none is of one colour, so that a model which takes an image's own mean and deviation
    can answer each.
    """
    generator = torch.Generator().manual_seed(0)
    if len(shape) != 3:
        return torch.rand(count, *shape, generator=generator)
    channels, height, width = shape
    smooth = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(smooth, size=(height, width), mode="bilinear")
    noise = torch.rand(count, channels, height, width, generator=generator)
    brightness = torch.linspace(0.3, 1.0, count)[:, None, None, None]
    return (0.8 * smooth + 0.2 * noise) * brightness


def declare_shape(model: nn.Module, shape: Sequence[int]) -> None:
    """Note on a model which images (C, H, W) it takes, where it does not say so itself."""
    if declared_shape(model) != tuple(shape):
        model.__dict__["input_shape"] = tuple(shape)


def _require_answers(model: nn.Module, images: Tensor) -> None:
    """Raise `ModelError` unless the model answers images, in batches of 1, 2 and more, alike from call to call."""
    batches = [images[:length] for length in _LENGTHS if length <= len(images)]
    with torch.random.fork_rng(devices=[]):
        for batch in batches:
            answer_of(model, batch)
        before = generator_states()
        first, second = (answer_of(model, batches[-1]) for _ in range(2))
        if torch.equal(first, second):
            return
        how = "it keeps something in between"
        if generator_states() != before:
            operation = drawing_operation(lambda: answer_of(model, batches[-1]))
            how = f"it draws random numbers in evaluation mode ({operation!r})"
    raise ModelError(f"the model answers the same images differently the second time: {how}")


def answer_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes) of images (B, C, H, W).

    Raises:
        ModelError: the model cannot answer them, or not by one row of two or more finite numbers for each.
    """
    logits = _run(model, images)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the model answers {len(images)} images with {shape}, not with one row of logits for each")
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the model's answers are not finite numbers; check its weights")
    return logits


def _run(model: nn.Module, images: Tensor) -> Any:
    try:
        with torch.no_grad():
            return model(images.clone())  # some models change what they are given
    except Exception as error:  # whatever the user's own code raises
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the model cannot read images of shape {tuple(images.shape[1:])} ({reason})") from error

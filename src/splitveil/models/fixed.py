"""A model's answers to images that are the same everywhere, by which it is known again."""

import hashlib
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGES = 8
NUMBERS = 16
"""Of one answer, at most. Of more classes signed sums are kept, so that every class has a part in each number."""
TOLERANCE = 1e-4
"""Of the answers' range: what another processor, number of threads or version of torch may change. Sums in another
order differ by some 1e-6 of it, and by some 1e-5 in deep networks."""
_GRAINS = (1, 2, 4, 16)  # pixels a side of one colour: kernels of all sizes find something to react to


def fixed_images(shape: Sequence[int]) -> Tensor:
    """Images (8, *shape) in [0, 1] of noise in squares of several sizes; the same with every version of everything.

    Args:
        shape: of one image, (C, H, W).
    """
    channels, height, width = shape
    images = []
    for index, grain in zip(range(IMAGES), itertools.cycle(_GRAINS), strict=False):
        rows, columns = math.ceil(height / grain), math.ceil(width / grain)
        noise = _octets(f"image {index}", channels * rows * columns).reshape(channels, rows, columns)
        large = noise.repeat_interleave(grain, 1).repeat_interleave(grain, 2)
        images.append(large[:, :height, :width])
    return torch.stack(images).float() / 255


@torch.no_grad()
def fixed_answers(model: nn.Module, shape: Sequence[int]) -> tuple[float, ...] | None:
    """What a model answers to `fixed_images`, in at most 128 numbers of six digits; None where they are not finite.

    Args:
        model: in evaluation mode.
        shape: of one image, (C, H, W).
    """
    device = next((p.device for p in model.parameters()), None)
    # A graphics card rounds the inputs of convolutions to ten bits where it is left to choose.
    with torch.backends.cudnn.flags(allow_tf32=False):
        logits = model(fixed_images(shape).to(device)).double().cpu()
    if not bool(logits.isfinite().all()):
        return None
    classes = logits.shape[1]
    if classes > NUMBERS:
        signs = (_octets("signs", classes * NUMBERS) % 2).double().reshape(classes, NUMBERS) * 2 - 1
        logits = logits @ signs / math.sqrt(classes)
    return tuple(float(f"{value:.6g}") for value in logits.flatten().tolist())


def answers_differ_by(then: Sequence[float], now: Sequence[float] | None) -> float:
    """The largest difference between two `fixed_answers`, as a share of the range of the first."""
    if now is None or len(now) != len(then):
        return math.inf
    largest = max(abs(a - b) for a, b in zip(then, now, strict=True))
    return largest / ((max(then) - min(then)) or max(map(abs, then)) or 1.0)


def _octets(name: str, count: int) -> Tensor:
    """Whole numbers (count,) from 0 to 255 that follow from the name alone."""
    stream = hashlib.shake_256(f"splitveil {name}".encode()).digest(count)
    return torch.frombuffer(bytearray(stream), dtype=torch.uint8).long()

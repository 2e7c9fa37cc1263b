"""The scales of integer messages, fixed from training images."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitveil.codec import Coding, fit_scales
from splitveil.data import Part
from splitveil.message import Obfuscator
from splitveil.split import SplitModel

SAMPLES = 2048
COEFFICIENTS = 2**16
"""Of one component, that scales are fitted to at most: maps are fitted to some of their positions."""
_BATCH = 512


@torch.no_grad()
def coding_scales(
    split: SplitModel, veil: Obfuscator, images: Part | Tensor, codings: Sequence[Coding]
) -> dict[Coding, NDArray[np.float32]]:
    """Scales (components,) of each integer coding, from at most the first 2,048 images.

    Each component has its scale for itself, so the scales of m components are the first m of those of more.

    Args:
        split: the model.
        veil: the obfuscator.
        images: of the training part, whose labels are not read; or as a tensor (N, C, H, W).
        codings: float32 has no scales, and is passed over.
    """
    wanted = [coding for coding in codings if coding != "float32"]
    if not wanted:
        return {}
    count = min(SAMPLES, len(images))
    places = _places(math.prod(veil.message.shape[1:]), count)
    encoded = []
    for start in range(0, count, _BATCH):
        message = veil.encode(split.client(_rows(images, start, count).to(split.device)))
        encoded.append(message.reshape(*message.shape[:2], -1)[:, :, places].cpu().numpy())
    table = np.concatenate(encoded)
    return {coding: fit_scales(table, coding) for coding in wanted}


def _rows(images: Part | Tensor, start: int, count: int) -> Tensor:
    rows = slice(start, min(start + _BATCH, count))
    return images[rows].float() if isinstance(images, Tensor) else images.images(rows)


def _places(positions: int, count: int) -> Tensor:
    """Which positions of a map are looked at: some of them, the same in every component and image."""
    # Drawn, because every n-th would be the same few columns of the map.
    order = np.random.default_rng(0).permutation(positions)
    return torch.from_numpy(np.sort(order[: max(1, COEFFICIENTS // count)]))

"""What is seen of an obfuscator, batch by batch: its answers in each coding, and the components that it sends."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splitveil.codec import Coding, FrameCoding, dequantise, quantise
from splitveil.obfuscate import Tables, kept_components
from splitveil.profiling.grid import Veil
from splitveil.profiling.samples import Samples
from splitveil.profiling.scaling import coding_scales
from splitveil.split import SplitModel

Scales = dict[Coding, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Point:
    """One obfuscator at one cut, and what was seen of it: answers by coding, and components sent."""

    veil: Veil
    answers: dict[FrameCoding, list[Tensor]]
    kept: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, veil: Veil, codings: Sequence[Coding]) -> "Point":
        """Nothing seen yet; digits have a coding of their own, and messages of varying length are exact."""
        if veil.message.levels is not None:
            return cls(veil, {"index": []})
        return cls(veil, {coding: [] for coding in (codings if veil.message.fixed_length else ("float32",))})


def scales_of(split: SplitModel, points: Sequence[Point], samples: Samples, codings: Sequence[Coding]) -> Scales:
    """Scales of the longest message of coefficients, which begin with those of every shorter one."""
    fixed = [point.veil for point in points if not isinstance(point.veil, Tables) and point.veil.message.fixed_length]
    return coding_scales(split, max(fixed, key=lambda veil: veil.m), samples.training, codings) if fixed else {}


@torch.no_grad()
def see(split: SplitModel, points: Sequence[Point], scales: Scales, x: Tensor) -> None:
    """One batch of images (B, C, H, W): the client's half once, then every point."""
    z = split.client(x.to(split.device))
    for point in points:
        message = point.veil.encode(z)
        for coding, answers in point.answers.items():
            read = message if coding in ("float32", "index") else _read(message, scales, coding)
            answers.append(split.answer(point.veil, read).argmax(1).cpu())
        fixed = point.veil.message.fixed_length
        point.kept.append(torch.full((len(z),), message.shape[1]) if fixed else kept_components(message).cpu())


def _read(message: Tensor, scales: Scales, coding: FrameCoding) -> Tensor:
    """Messages as the server reads them from integers."""
    assert coding != "index"
    integers = quantise(message.cpu().numpy(), scales[coding], coding)
    return torch.from_numpy(dequantise(integers, scales[coding])).to(message.device)

"""The images that a profile is measured on: a data set's validation part, or images without labels."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splitveil.data import Dataset, Part, Unlabelled
from splitveil.errors import ProfileError
from splitveil.profile import DataFacts

_BATCH = 512


@dataclass(frozen=True, eq=False)
class Samples:
    """The images of a profile.

    Attributes:
        facts: what the profile says of them.
        images: images (B, C, H, W) at some rows.
        y: labels (N,), where there are some.
        training: the images that scales are fitted to: those of the fit, or these where there are no others.
    """

    facts: DataFacts
    images: Callable[[slice | Tensor], Tensor]
    y: Tensor | None
    training: Part | Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""
        channels, height, width = self.images(slice(0, 1)).shape[1:]
        return channels, height, width

    def some(self, count: int) -> Tensor:
        """So many images (count, C, H, W), evenly spread over all; again from the first where there are fewer."""
        return self.images(self.rows(count))

    def rows(self, count: int) -> Tensor:
        """Where `some` finds them, (count,)."""
        there = self.facts.samples
        return torch.arange(count) % there if there < count else torch.linspace(0, there - 1, count).round().long()

    def batches(self) -> list[slice]:
        """Rows to take at a time."""
        return [slice(start, start + _BATCH) for start in range(0, self.facts.samples, _BATCH)]


def samples_of(data: Dataset | Unlabelled | Tensor) -> Samples:
    """The images of a data set's validation part, or images without labels.

    Args:
        data: a data set, a folder's images, or images (N, C, H, W) in [0, 1].

    Raises:
        ProfileError: it is neither.
    """
    if isinstance(data, Dataset):
        facts = DataFacts(name=data.name, digest=data.digest, part="val", samples=len(data.val), labelled=True)
        return Samples(facts, data.val.images, data.val.y, data.train)
    if isinstance(data, Unlabelled):
        measured, fitted = samples_of(data.measured.float() / 255), Part(data.fitted, torch.empty(0, dtype=torch.int64))
        return replace(measured, training=fitted)
    if not isinstance(data, Tensor):
        raise ProfileError(
            f"a profile is measured on a Dataset or on images (N, C, H, W), not on a {type(data).__name__}"
        )
    if data.dim() != 4 or not data.is_floating_point() or not len(data):
        raise ProfileError(
            f"images to profile on are floats of shape (N, C, H, W), not {data.dtype} of {tuple(data.shape)}"
        )
    state = hashlib.sha256(str(tuple(data.shape)).encode())
    state.update(data.detach().cpu().contiguous().float().numpy().tobytes())
    facts = DataFacts(name="images", digest=state.hexdigest(), part="given", samples=len(data), labelled=False)
    return Samples(facts, lambda rows: data[rows].float(), None, data)

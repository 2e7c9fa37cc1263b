"""The features that an obfuscator is fitted to: unlabelled, in batches, as often as they are asked for."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitveil.counting import multiply_accumulates
from splitveil.data import Part
from splitveil.errors import ModelError, ShapeError
from splitveil.models import Logits, are_probabilities, check_precision
from splitveil.soundness import check_model, check_server, frozen
from splitveil.split import SplitModel

_BATCH = 256
_LOOKED_AT = 64  # features whose answers show whether they are probabilities


@dataclass(frozen=True, eq=False)
class Features:
    """What the client's half makes of unlabelled images.

    Attributes:
        batches: gives the features (B, *shape) from the first to the last; may be called several times.
        count: how many features there are.
        shape: of one feature.
        client_macs: multiply-accumulates of the client's half for one image; 0 where it is not known.
    """

    batches: Callable[[], Iterator[Tensor]]
    count: int
    shape: tuple[int, ...]
    client_macs: int = 0

    @classmethod
    def of(cls, split: SplitModel, images: Part | Tensor) -> "Features":
        """Features of images, computed anew on each pass, so that only one batch is ever in memory.

        Args:
            split: whose client's half runs.
            images: a part of a data set, whose labels are not read; or images (N, C, H, W) in [0, 1].

        Raises:
            ShapeError: there are fewer than two images, they are no tensor, or whole numbers, such as pixels of 0 to
                255, or the client's half cannot take them.
            SplitError: the halves do not answer these images as the model does.
            ModelError: an answer depends on other images or on chance, or is not of float32; see `check_model`.
        """
        check_precision(split.model)
        if not isinstance(images, Part):
            _check_images(images)
        client, device = frozen(split.client), split.device
        starts = range(0, _several(len(images)), _BATCH)

        def some(start: int, count: int) -> Tensor:
            rows = slice(start, start + count)
            # A copy, because a model may work in place on what it is given.
            x = images.images(rows) if isinstance(images, Part) else images[rows].to(torch.float32, copy=True)
            return x.to(device)

        @torch.no_grad()
        def run(start: int, count: int = _BATCH) -> Tensor:
            return client(some(start, count))  # type: ignore[no-any-return]

        try:
            macs, shape = multiply_accumulates(client, some(0, 1)), tuple(run(0, 1).shape[1:])
        except (RuntimeError, IndexError) as error:  # torch's, of a layer deep inside
            given = tuple(some(0, 1).shape[1:])
            raise ShapeError(f"the model cannot take images of shape {given}; give them as it was trained") from error
        check_model(split, images)
        return cls(lambda: map(run, starts), len(images), shape, macs)

    @classmethod
    def known(cls, z: Tensor, *, client_macs: int = 0) -> "Features":
        """Features (N, *shape) that lie in memory; raises `ShapeError` where there are fewer than two."""
        _several(len(z))
        z = z.detach()  # their graph leads into the caller's model, which gets no gradient
        z = z.clone() if z.is_inference() else z
        return cls(lambda: iter(torch.split(z, _BATCH)), len(z), tuple(z.shape[1:]), client_macs)

    @property
    def size(self) -> int:
        """Numbers in one feature, n."""
        return math.prod(self.shape)

    def table(self, most: int) -> Tensor:
        """At most so many features (R, n) in memory, evenly spread over all of them."""
        return spread((z.flatten(1) for z in self.batches()), self.count, most)


def spread(batches: Iterable[Tensor], count: int, most: int) -> Tensor:
    """At most so many rows (R, n), evenly spread over ``count`` rows that come in batches (B, n); on the processor."""
    wanted = torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()
    kept, start = [], 0
    for rows in batches:
        here = wanted[(wanted >= start) & (wanted < start + len(rows))] - start
        kept.append(rows[here.to(rows.device)].cpu())
        start += len(rows)
    return torch.cat(kept)


def logits_of(split: SplitModel, features: Features) -> nn.Module:
    """A frozen copy of the server's half that gives logits: where it ends in a softmax, followed by a logarithm.

    Raises:
        ModelError: an answer to these features depends on others or on chance, or is not of float32.
    """
    z = next(iter(features.batches()))[:_LOOKED_AT]
    check_server(split, z)
    server = frozen(split.server)
    with torch.no_grad():
        answers = server(z.clone().to(split.device))
    return Logits(server) if are_probabilities(answers) else server


def check_finite(values: Tensor, what: str) -> Tensor:
    """The values; raises `ModelError` where one is infinite or not a number."""
    if not bool(values.isfinite().all()):
        raise ModelError(f"{what} are not all finite numbers; look at the model's weights and at the images")
    return values


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise ShapeError(f"images to fit to must be a tensor, not {type(images).__name__}; see torch.as_tensor")
    if not images.is_floating_point():
        raise ShapeError(f"images to fit to must be floats in [0, 1], not {images.dtype}; divide pixels by 255")
    if bool((images > 1).any()) and bool((images == images.round()).all()):
        raise ShapeError("images to fit to must be in [0, 1], but all are whole numbers; divide pixels by 255")


def _several(count: int) -> int:
    if count < 2:
        raise ShapeError(f"an obfuscator is fitted to at least two images, but there are {count}; give more")
    return count

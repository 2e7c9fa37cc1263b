"""A folder of images without labels: one part to fit to, and another to measure on."""

import hashlib
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splitveil.data.cache import Packed, kept
from splitveil.data.images import Picture, check_skipped, decode
from splitveil.data.listing import DataWarning, Listing, left_out, list_images, shown
from splitveil.data.source import Progress, Source
from splitveil.data.splitting import content_hashes, group_ids
from splitveil.errors import DataError
from splitveil.files import is_there

MEASURED = 0.2
"""Share of the different images that are kept for measuring."""


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Images of one size, of which nobody says what they show.

    Attributes:
        fitted: uint8 (N, C, H, W), to fit an obfuscator to.
        measured: uint8 (M, C, H, W), to measure it on; none of them is in ``fitted``.
        skipped: what was left out of the folder, each as "file: reason".
    """

    fitted: Tensor = field(repr=False)
    measured: Tensor = field(repr=False)
    skipped: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of shapes and pixels: of the images as they are used, not of their files."""
        state = hashlib.sha256()
        for pixels in (self.fitted, self.measured):
            state.update(str(tuple(pixels.shape)).encode())
            state.update(pixels.contiguous().numpy().data)
        return state.hexdigest()


def load_unlabelled(folder: str | Path, shape: tuple[int, int, int], *, progress: Progress | None = None) -> Unlabelled:
    """All images below a folder, at any depth, whole and resized; which part one is in depends on its pixels alone.

    A file is an image by its content, whatever its name. Hidden files are left out. Images are decoded once and kept in
    the cache folder.

    Args:
        folder: of images; names and subfolders mean nothing.
        shape: (C, H, W) of one image for the model; 3 channels are RGB, 1 is grey.
        progress: called as progress(done, total, what) while files are read for the first time.

    Raises:
        DataError: there is no such folder, it holds fewer than three different images, or more than 1 % of its
            image files cannot be read.

    Warns:
        DataWarning: something was left out; all of it stands in ``skipped``.
    """
    place = Path(folder).expanduser()
    if not is_there(place) or not place.is_dir():
        raise DataError(f"there is no folder {place}; name one that holds images")
    if shape[0] not in (1, 3):
        raise DataError(f"images are read as RGB or grey, but the model takes {shape[0]} channels; pass arrays instead")
    listing = list_images(place)
    options = {"shape": shape, "left out": [listing.skipped, listing.ignored]}
    source = Source("images", progress=progress)
    images = kept(source, place, listing.files, options, lambda: _build(source, place, listing, shape), _pack, _unpack)
    if images.skipped:
        warnings.warn(f"{shown(place)}: {left_out(images.skipped)}", DataWarning, stacklevel=2)
    return images


def _pack(images: Unlabelled) -> Packed:
    return {"fitted": images.fitted, "measured": images.measured}, {"skipped": images.skipped}


def _unpack(packed: Packed) -> Unlabelled:
    tensors, facts = packed
    return Unlabelled(tensors["fitted"], tensors["measured"], tuple(facts["skipped"]))


def _build(source: Source, folder: Path, listing: Listing, shape: tuple[int, int, int]) -> Unlabelled:
    channels, height, width = shape
    name = shown(folder)
    if not listing.files:
        reason = f"; {left_out([*listing.skipped, *listing.ignored])}" if listing.skipped or listing.ignored else ""
        raise DataError(f"{name} has no image files{reason}; name a folder that holds some")
    pictures = [Picture(path) for path in listing.files]
    found = decode(source, folder, pictures, (height, width), channels=1 if channels == 1 else 3)
    skipped = [*listing.skipped, *found.skipped]
    check_skipped(Source(name), skipped, len(listing.files) + len(listing.skipped))
    pixels = torch.from_numpy(found.pixels)
    content = content_hashes(pixels)
    group = group_ids(content)  # numbered in the order of the hashes, so equal images share a part
    different = int(group.max(initial=-1)) + 1
    if different < 3:
        raise DataError(f"{name} holds {different} different images; give at least three, better a thousand")
    order, few = np.argsort(content, kind="stable"), max(1, round(MEASURED * different))
    measured = group[order] < few
    return Unlabelled(pixels[order[~measured]], pixels[order[measured]], (*skipped, *listing.ignored))

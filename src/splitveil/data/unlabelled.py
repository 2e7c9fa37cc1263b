"""A folder of images without labels: one part to fit to, and another to measure on."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from splitveil.data.cache import File, content_key, if_writable, list_files
from splitveil.data.images import SUFFIXES, Picture, check_skipped, decode
from splitveil.data.source import Progress, Source
from splitveil.data.splitting import content_hashes, group_ids
from splitveil.errors import DataError, RunError
from splitveil.files import cache_folder, is_there
from splitveil.tensors import read_tensors, write_tensors

MEASURED = 0.2
"""Share of the different images that are kept for measuring."""
_VERSION = 1  # raise it whenever other pixels or parts would come of the same files


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Images of one size, of which nobody says what they show.

    Attributes:
        fitted: uint8 (N, C, H, W), to fit an obfuscator to.
        measured: uint8 (M, C, H, W), to measure it on; none of them is in ``fitted``.
        skipped: files that could not be used, each as "file: reason".
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

    Files are decoded once and kept in the cache folder.

    Args:
        folder: of images; names and subfolders mean nothing.
        shape: (C, H, W) of one image for the model; 3 channels are RGB, 1 is grey.
        progress: called as progress(done, total, what) while files are read for the first time.

    Raises:
        DataError: there is no such folder, it holds fewer than three different images, or more than 1 % of its
            image files cannot be read.
    """
    place = Path(folder).expanduser()
    if not is_there(place) or not place.is_dir():
        raise DataError(f"there is no folder {place}; name one that holds images")
    if shape[0] not in (1, 3):
        raise DataError(f"images are read as RGB or grey, but the model takes {shape[0]} channels; pass arrays instead")
    files = list_files(place, SUFFIXES)
    source = Source("images", progress=progress)
    key = content_key(source, place, files, json.dumps([_VERSION, "unlabelled", shape]))
    kept = cache_folder() / f"images-{key[:32]}.safetensors"
    if (known := _read(kept)) is not None:
        return known
    images = _build(source, place, files, shape)
    tensors = {"fitted": images.fitted, "measured": images.measured}
    if_writable(lambda: write_tensors(kept, tensors, {"skipped": images.skipped, "digest": images.digest}))
    return images


def _read(path: Path) -> Unlabelled | None:
    """What is in the cache, or None where it is not there or not what was written."""
    if not path.is_file():
        return None
    try:
        tensors, facts = read_tensors(path)
        images = Unlabelled(tensors["fitted"].clone(), tensors["measured"].clone(), tuple(facts["skipped"]))
        return images if images.digest == facts["digest"] else None
    except (RunError, LookupError, TypeError):
        return None


def _build(source: Source, folder: Path, files: list[File], shape: tuple[int, int, int]) -> Unlabelled:
    channels, height, width = shape
    if not files:
        raise DataError(f"{folder} has no image files ({', '.join(SUFFIXES)}); name a folder that holds some")
    found = decode(
        source, folder, [Picture(path) for path, _, _ in files], (height, width), channels=1 if channels == 1 else 3
    )
    check_skipped(Source(str(folder)), found.skipped, len(files))
    pixels = torch.from_numpy(found.pixels)
    content = content_hashes(pixels)
    group = group_ids(content)  # numbered in the order of the hashes, so equal images share a part
    different = int(group.max(initial=-1)) + 1
    if different < 3:
        raise DataError(f"{folder} holds {different} different images; give at least three, better a thousand")
    order, kept = np.argsort(content, kind="stable"), max(1, round(MEASURED * different))
    measured = group[order] < kept
    return Unlabelled(pixels[order[~measured]], pixels[order[measured]], found.skipped)

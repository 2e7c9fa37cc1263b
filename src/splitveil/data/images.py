"""Picture files to pixels, in parallel; what cannot be read is left out and named."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitveil.data.listing import shown
from splitveil.data.source import Source
from splitveil.errors import DataError
from splitveil.picture import Crop, Pixels, read_photo

Size = tuple[int, int]  # (height, width)

_TOGETHER = 1024  # pictures that wait for a thread at once: a million of them would fill memory


@dataclass(frozen=True)
class Picture:
    """One sample's file, relative to the data set's folder, and which part of it to take (None: all)."""

    file: str
    crop: Crop | None = None


@dataclass(frozen=True)
class Decoded:
    """Pixels (n, C, H, W) of the pictures that could be read, their rows in the list, the others by name."""

    pixels: Pixels
    rows: NDArray[np.int64]
    skipped: tuple[str, ...]


def decode(
    source: Source, folder: Path, pictures: Sequence[Picture], size: Size, *, channels: Literal[1, 3] = 3
) -> Decoded:
    """Decode all pictures to RGB or grey and resize them, on all cores.

    Args:
        source: Told about progress.
        folder: What the pictures' files are relative to.
        pictures: What to read.
        size: Height and width of the result.
        channels: 3 (RGB) or 1 (grey).
    """
    pixels = np.empty((len(pictures), channels, *size), np.uint8)
    problems: list[str | None] = [None] * len(pictures)

    def work(row: int) -> None:
        try:
            pixels[row] = read_picture(folder, pictures[row], size, channels=channels)
        except Exception as error:  # Pillow's readers raise whatever their formats bring about
            problems[row] = f"{shown(pictures[row].file)}: {_reason(error)}"

    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")  # of damaged metadata, and of photos of 90 megapixels
        for start in range(0, len(pictures), _TOGETHER):
            some = range(start, min(start + _TOGETHER, len(pictures)))
            for row, _ in zip(some, pool.map(work, some), strict=True):
                source.report(row + 1, len(pictures), "decoding")
    rows = [row for row, problem in enumerate(problems) if problem is None]
    for place, row in enumerate(rows):  # in place, because a copy of all might not fit into memory
        if place != row:
            pixels[place] = pixels[row]
    skipped = tuple(problem for problem in problems if problem is not None)
    return Decoded(pixels[: len(rows)], np.array(rows, np.int64), skipped)


def read_picture(folder: Path, picture: Picture, size: Size, *, channels: Literal[1, 3] = 3) -> Pixels:
    """One picture as RGB (3, H, W) or grey (1, H, W); see `read_photo`."""
    return read_photo(folder / picture.file, size, crop=picture.crop, mode="RGB" if channels == 3 else "L")


def check_skipped(source: Source, skipped: Sequence[str], total: int) -> None:
    """More than one file in a hundred that cannot be used is an error, not a footnote.

    Raises:
        DataError: naming the first of them.
    """
    if not total:
        raise DataError(f"{source.name} has no image files; check that the folder is complete")
    if len(skipped) * 100 > total:
        raise DataError(
            f"{len(skipped)} of the {total} files of {source.name} cannot be used, more than 1 %; "
            f"repair or remove them, the first is {skipped[0]}"
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())[:200] or type(error).__name__

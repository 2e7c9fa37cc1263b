"""A photo as the network's input: upright, cropped, resized, scaled; the same code for training and for the edge."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Crop = Callable[[float, float], Box]  # from an image's width and height


def read_photo(file: Path, size: tuple[int, int], *, crop: Crop | None = None, mode: str = "RGB") -> Pixels:
    """One picture, (C, H, W): upright by its EXIF data, cropped, resized with antialiasing.

    Args:
        file: of any format that Pillow reads.
        size: height and width of the result.
        crop: which part of the upright picture to take; all of it where not given.
        mode: "RGB" or "L" (grey).

    Raises:
        OSError, ValueError and others: if it cannot be read, or has more than 8 bits a channel.
    """
    with Image.open(file) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
        upright = ImageOps.exif_transpose(image).convert(mode)
    box = crop(*upright.size) if crop else None
    resized = upright.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(resized)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

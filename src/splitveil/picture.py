"""A photo as the network's input: upright, cropped, resized, scaled; the same code for training and for the edge."""

import functools
import os
import re
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader, BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Crop = Callable[[float, float], Box]  # from an image's width and height

RULE = "bicubic by axis, 1"
"""Names how pixels are made (docs/edge.md). What was decoded by another rule is not used again."""

LARGEST = 2**30
"""Bytes of a file. Pillow opens at most 179 megapixels, which fill 0.7 GiB even uncompressed with four channels."""

_LARGE = 24_000_000
"""Pixels. Decoding takes about eight bytes for each, so larger photos are decoded one at a time, not on every core."""

_FORMATS = (
    "JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "QOI", "DIB", "ICO", "CUR", "ICNS", "PSD",
    "DDS", "SGI", "SUN", "PCX", "DCX", "MSP", "XBM", "XPM", "TGA",
)  # fmt: skip
"""What is read, common ones first. EPS and WMF are missing because Pillow runs other programs for them."""

_COMMON = _FORMATS[:5]
"""Those that Pillow has at hand; it takes 70 ms to import the modules of the others."""

_MAGIC = frozenset(_FORMATS) - {"DIB", "ICO", "CUR", "PCX", "MSP", "XBM", "TGA"}
"""Those that are known by their first bytes alone; others need the right ending, too."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG, _CHUNK = b"\x89PNG\r\n\x1a\n", 12  # how the file begins; bytes of a chunk beside its content
_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_one_large = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A child has none of the threads that might hold the lock, so it would wait for ever.
    os.register_at_fork(after_in_child=lambda: globals().update(_one_large=threading.Lock()))


def read_photo(file: Path | bytes, size: tuple[int, int], *, crop: Crop | None = None, mode: str = "RGB") -> Pixels:
    """One picture, (C, H, W): upright by its EXIF data, cropped, resized with antialiasing.

    Of an animation the first frame counts. Damaged metadata are ignored where the pixels are whole.

    Args:
        file: of a format that Pillow reads without other programs; or the file's bytes.
        size: height and width of the result.
        crop: which part of the upright picture to take; all of it where not given.
        mode: "RGB" or "L" (grey).

    Raises:
        OSError, ValueError and others: if it cannot be read, or has more than 8 bits a channel.
    """
    if isinstance(file, bytes):
        content = file
    else:
        with open_file(file) as opened:
            if os.fstat(opened.fileno()).st_size > LARGEST:
                raise ValueError("larger than 1 GiB")
            content = opened.read()
    with _opened(content) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
        upright = _upright(image)
        # Alpha and colour keys are dropped; Pillow warns of some unless they are taken off first.
        upright.info.pop("transparency", None)
        plain = upright if upright.mode == mode else upright.convert(mode)
        box = crop(*plain.size) if crop else (0.0, 0.0, *plain.size)
        pixels = np.array(resize(plain, size, box))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def resize(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """A part of an 8-bit image, resized by Pillow's bicubic filter with antialiasing, one axis after the other.

    Values are rounded to 8 bits between the axes, so their order shows. Versions of Pillow choose it differently in
    one call for both; so there are two calls here, in the order that Pillow 13 would choose.

    Args:
        image: of mode RGB or L.
        size: height and width of the result.
        box: left, top, right and bottom of the part, in pixels.
    """
    (height, width), (left, top, right, bottom) = size, box
    bicubic = Image.Resampling.BICUBIC

    def across(part: Image.Image) -> Image.Image:
        return part.resize((width, part.height), bicubic, box=(left, 0, right, part.height))

    def down(part: Image.Image) -> Image.Image:
        return part.resize((part.width, height), bicubic, box=(0, top, part.width, bottom))

    if image.height > height and image.height - height > 2 * (image.width - width):
        return across(down(image))
    return down(across(image))


def open_file(file: Path) -> BufferedReader:
    """A file, open for reading.

    Raises:
        ValueError: if it is a pipe, a device or the like, which might never end.
        OSError: if it cannot be opened.
    """
    # Without blocking, because opening a pipe waits for its writer.
    handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    opened = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        opened.close()
        raise ValueError("not a regular file")
    return opened


def looks_like_photo(file: Path) -> bool:
    """Whether a file begins as a picture does, whatever its name; files that cannot be read do not."""
    try:
        with open_file(file) as opened, Image.open(opened, formats=[name for name in _formats() if name in _MAGIC]):
            return True
    except Exception:  # Pillow's readers raise whatever their formats bring about
        return False


@functools.cache
def endings() -> frozenset[str]:
    """Lower-case endings of the names of pictures that are read, such as ".jpg"."""
    formats = _formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that the installed Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """The picture in a file, decoded; large ones wait for each other until the caller is done."""
    bare = _without_metadata(content) if content.startswith(_PNG) else content
    try:
        image = _open(content)
    except Exception:
        if bare == content:
            raise
        content, image = bare, _open(bare)
    with _one_large if image.width * image.height > _LARGE else nullcontext():
        try:
            image.load()
        except Exception:
            if bare == content:
                raise
            image = _open(bare)  # what is damaged may follow the pixels
            image.load()
        yield image


def _open(content: bytes) -> Image.Image:
    Image.preinit()
    try:
        return Image.open(BytesIO(content), formats=_COMMON)
    except UnidentifiedImageError:
        pass
    try:
        return Image.open(BytesIO(content), formats=_formats())
    except UnidentifiedImageError:
        raise UnidentifiedImageError("not an image" if content else "an empty file") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # readers of damaged EXIF data raise anything
        turn = None
    return image if turn is None else image.transpose(turn)


def _without_metadata(png: bytes) -> bytes:
    """A PNG file with nothing but pixels, and EXIF data where they are whole.

    Raises:
        ValueError: if the checksum of what holds pixels is wrong; Pillow would read some of that.
    """
    kept, place = [_PNG], len(_PNG)
    while len(png) >= place + _CHUNK:
        end, whole = _chunk(png, place)
        kind = png[place + 4 : place + 8]
        if whole and kind in (*_PIXELS, b"tRNS", b"eXIf"):
            kept.append(png[place:end])
        if kind in _PIXELS and not whole:
            raise ValueError("damaged or cut off")
        # A damaged length says nothing of where its chunk ends.
        place = end if whole or _chunk(png, end)[1] else _next_pixels(png, place + 1)
    return b"".join(kept)


def _chunk(png: bytes, place: int) -> tuple[int, bool]:
    """Where the chunk that begins at a place ends, and whether its checksum is right."""
    if len(png) < place + _CHUNK:
        return len(png), False
    end = place + _CHUNK + int.from_bytes(png[place : place + 4], "big")
    return end, end <= len(png) and zlib.crc32(png[place + 4 : end - 4]) == int.from_bytes(png[end - 4 : end], "big")


def _next_pixels(png: bytes, place: int) -> int:
    """Where the next whole chunk of pixels begins; the file's length if there is none."""
    named = islice(re.finditer(b"|".join(_PIXELS), png[place:]), 100)  # more are an attack on our time
    starts = (place + each.start() - 4 for each in named)
    return next((start for start in starts if start >= place and _chunk(png, start)[1]), len(png))

"""The edge's half without any network: photos in, frames out."""

import os
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import ValidationError

from splitveil.bundle import Bundle, EdgeManifest, Graph, check_form, read_edge, to_frames
from splitveil.bundle.manifest import MANIFEST
from splitveil.codec import FrameCoding
from splitveil.errors import BundleError, DataError, ShapeError
from splitveil.files import is_there
from splitveil.forking import keep_in_children, undivided
from splitveil.picture import Box, read_photo
from splitveil.profile import Profile


class ArrayLike(Protocol):
    """What NumPy can read, such as a tensor of torch, which is never imported for it."""

    def __array__(self, *arguments: Any) -> NDArray[Any]: ...


Photo = str | Path | bytes | Image.Image | NDArray[np.uint8] | NDArray[np.float32] | ArrayLike
"""A picture's file, its bytes, or it opened by Pillow; or its pixels, uint8 (C, H, W); or a network's input, float32
(C, H, W) in [0, 1]. Pixels and inputs may be arrays of NumPy or tensors of torch."""
Images = NDArray[np.float32]
_TOGETHER = 32  # photos in one run of the graph: more take more memory, and no less time each
_SINGLE = (str, bytes, bytearray, memoryview, Path, Image.Image)


class EdgeEncoder:
    """What an edge bundle does: photos to the bytes that may leave the device.

         photo ─► upright, cropped, resized, scaled ─► edge.onnx ─► coefficients or digits ─► frames

    Args:
        bundle: the folder ``edge`` that `splitveil export` wrote.
        m: components to send; what the bundle's policy says where not given.
        coding: how they are written; likewise.
        public_key: PEM file of an Ed25519 key; the bundle must then carry its signature.
        threads: of ONNX Runtime; 0: one per core.

    May be used by several threads at once, and in children after `os.fork()`.

    Attributes:
        manifest: what the bundle says of itself.
        m, coding: what is sent.
        raw_bytes: length of the frame that would carry the feature as it is.

    Raises:
        BundleError: the bundle is missing, damaged, not signed as asked, or holds the profile of another model.
        WireError: the bundle does not allow this m or coding.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        m: int | None = None,
        coding: FrameCoding | None = None,
        public_key: str | Path | None = None,
        threads: int = 1,
    ) -> None:
        found = read_edge(edge_folder(bundle), public_key=public_key, to_load=threads == 1)
        self.manifest: EdgeManifest = found.manifest
        policy, messages = found.manifest.policy, found.manifest.messages
        self.m = policy.m if m is None else m
        self.coding: FrameCoding = coding or policy.coding
        check_form(messages, self.m, self.coding)
        self.raw_bytes = _raw_bytes(found)
        outside = (messages.components, *messages.positions)
        self._shapes, self._threads = (found.manifest.picture.shape, outside), threads
        # ONNX Runtime's own threads are missing in a child, which makes the graph anew from this.
        self._content = found.files.get("edge.onnx", b"")
        self._graph, self._process = Graph(found.graph, *self._shapes, threads), os.getpid()
        keep_in_children(self._graph)

    def frames(self, photos: Iterable[Photo]) -> list[bytes]:
        """One frame per photo, all of the same length.

        Raises:
            DataError: a photo cannot be read, or is none.
            ShapeError: an array has not the shape of the network's input.
            WireError: a coefficient is not finite, or a digit not one of its level.
        """
        identity, found = self.manifest.short_identity, list[bytes]()
        for some in in_batches(photos, _TOGETHER):
            given = self._run(np.stack([self.image(photo) for photo in some]))
            found += to_frames(given, self.manifest.messages, identity, m=self.m, coding=self.coding)
        return found

    def image(self, photo: Photo) -> Images:
        """The network's input (C, H, W), float32 in [0, 1]; raises `DataError` and `ShapeError` as `frames` does."""
        pixels = self._pixels(photo) if isinstance(photo, _SINGLE) else _array(photo)
        if pixels.shape != self.manifest.picture.shape:
            raise ShapeError(f"a picture has the shape {self.manifest.picture.shape} here, not {pixels.shape}")
        if pixels.dtype == np.uint8:
            return pixels.astype(np.float32) / np.float32(self.manifest.picture.divisor)
        if pixels.dtype != np.float32:
            raise DataError(f"a picture is an array of uint8, or of float32 in [0, 1], not of {pixels.dtype}")
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise DataError("a picture of float32 lies in [0, 1], but this one does not; divide 8-bit pixels by 255")
        return np.asarray(pixels, dtype=np.float32)

    def _run(self, images: Images) -> NDArray[np.float32]:
        if self._content and self._process != os.getpid():
            self._graph, self._process = Graph(self._content, *self._shapes, self._threads), os.getpid()
            keep_in_children(self._graph)
        with undivided():  # else a child may inherit a lock of ONNX Runtime that nobody opens any more
            return self._graph.run(images)

    def _pixels(self, photo: Any) -> NDArray[np.uint8]:
        picture = self.manifest.picture
        shown = photo if isinstance(photo, str | Path) else f"a photo ({type(photo).__name__})"
        try:
            file = _content(photo)
            if isinstance(file, Path) and file.exists() and not file.is_file():  # a pipe would be waited for
                raise ValueError("it is a folder or the like, but files are read, such as FOLDER/*.png")
            mode = "L" if picture.shape[0] == 1 else "RGB"
            return read_photo(file, picture.shape[1:], crop=self._box if picture.crop else None, mode=mode)
        except FileNotFoundError as error:
            raise DataError(f"there is no photo {shown}; check its name") from error
        except Exception as error:  # Pillow's readers raise whatever their formats bring about
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{shown} cannot be read as a photo ({reason}); take another") from error

    def _box(self, width: float, height: float) -> Box:
        assert self.manifest.picture.crop
        left, top, right, bottom = self.manifest.picture.crop
        return left * width, top * height, right * width, bottom * height


def in_batches(photos: Iterable[Photo], size: int) -> Iterator[list[Photo]]:
    """Photos in lists of at most so many, of which no more are taken than are asked for.

    Raises:
        DataError: this is one photo, or no iterable.
    """
    if isinstance(photos, _SINGLE):
        shown = f"{str(photos)[:50]!r} is one text" if isinstance(photos, str) else f"this is {type(photos).__name__}"
        raise DataError(f"photos come as a list, but {shown}; give [photo]")
    if not isinstance(photos, Iterable) and not hasattr(photos, "__getitem__"):
        raise DataError(f"photos come as a list or another iterable, not a {type(photos).__name__}; give [photo]")
    rest = iter(photos)
    while some := list(islice(rest, size)):
        yield some


def edge_folder(bundle: str | Path) -> Path:
    """The folder ``edge`` where that above it is named, as `splitveil export` makes it; else what is named."""
    folder = Path(bundle)
    inside = folder / "edge"
    return inside if is_there(inside / MANIFEST) and not is_there(folder / MANIFEST) else folder


def _content(photo: Any) -> Path | bytes:
    """A file of a picture, or its bytes."""
    if isinstance(photo, Image.Image):
        content = BytesIO()
        ImageOps.exif_transpose(photo).save(content, "TIFF")  # which loses nothing, and has all modes that are photos'
        return content.getvalue()
    return Path(photo) if isinstance(photo, str | Path) else bytes(photo)


def _array(photo: Any) -> NDArray[Any]:
    """Pixels of what holds an array; raises `DataError` where it does not."""
    if isinstance(photo, np.ndarray):
        return photo
    if not hasattr(photo, "__array__"):
        raise DataError(f"a photo is a file, its bytes, a picture or an array, not a {type(photo).__name__}")
    try:
        return np.asarray(photo.detach().cpu() if hasattr(photo, "detach") else photo)  # of torch: without gradients
    except Exception as error:  # whatever the library raises whose array this is
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"a photo cannot be read as an array of NumPy ({reason}); convert it") from error


def _raw_bytes(bundle: Bundle[EdgeManifest]) -> int:
    """What the profile says of the raw feature at the bundle's cut.

    Raises:
        BundleError: the profile is damaged, or of another model or cut.
    """
    manifest = bundle.manifest
    try:
        profile = Profile.model_validate_json(bundle.files["profile.json"])
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise BundleError(f"the bundle's profile.json is no profile ({reason}); export again") from error
    if profile.model != manifest.model:
        raise BundleError(
            f"the bundle's profile is of the model {profile.model.weights[:12]}…, but its graph of "
            f"{manifest.model.weights[:12]}…; export again"
        )
    for row in profile.rows:
        if (row.layer, row.operator) == (manifest.layer, manifest.operator):
            return row.raw_bytes
    raise BundleError(f"the bundle's profile says nothing of its cut at {manifest.layer!r}; export again")

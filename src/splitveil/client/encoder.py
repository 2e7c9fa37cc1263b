"""The edge's half without any network: photos in, frames out."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from splitveil.bundle import Bundle, EdgeManifest, Graph, check_form, read_edge, to_frames
from splitveil.codec import FrameCoding
from splitveil.errors import BundleError, DataError, ShapeError
from splitveil.picture import Box, read_photo
from splitveil.profile import Profile

Photo = str | Path | NDArray[np.uint8] | NDArray[np.float32]
"""A picture's file; or its pixels, uint8 (C, H, W); or a network's input, float32 (C, H, W) in [0, 1]."""
Images = NDArray[np.float32]


class EdgeEncoder:
    """What an edge bundle does: photos to the bytes that may leave the device.

         photo ─► upright, cropped, resized, scaled ─► edge.onnx ─► coefficients or digits ─► frames

    Args:
        bundle: the folder ``edge`` that `splitveil export` wrote.
        m: components to send; what the bundle's policy says where not given.
        coding: how they are written; likewise.
        public_key: PEM file of an Ed25519 key; the bundle must then carry its signature.
        threads: of ONNX Runtime; 0: one per core.

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
        found = read_edge(bundle, public_key=public_key)
        self.manifest: EdgeManifest = found.manifest
        policy, messages = found.manifest.policy, found.manifest.messages
        self.m = policy.m if m is None else m
        self.coding: FrameCoding = coding or policy.coding
        check_form(messages, self.m, self.coding)
        self.raw_bytes = _raw_bytes(found)
        outside = (messages.components, *messages.positions)
        self._graph = Graph(found.files["edge.onnx"], found.manifest.picture.shape, outside, threads)

    def frames(self, photos: Iterable[Photo]) -> list[bytes]:
        """One frame per photo, all of the same length.

        Raises:
            DataError: a photo cannot be read, or is none.
            ShapeError: an array has not the shape of the network's input.
            WireError: a coefficient is not finite, or a digit not one of its level.
        """
        if isinstance(photos, str):
            raise DataError(f"photos come as a list, but {photos[:50]!r} is one text; give [photo]")
        images = [self.image(photo) for photo in photos]
        if not images:
            return []
        given = self._graph.run(np.stack(images))
        identity = self.manifest.short_identity
        return to_frames(given, self.manifest.messages, identity, m=self.m, coding=self.coding)

    def image(self, photo: Photo) -> Images:
        """The network's input (C, H, W), float32 in [0, 1]; raises `DataError` and `ShapeError` as `frames` does."""
        if not isinstance(photo, str | Path | np.ndarray):
            raise DataError(f"a photo is a file or an array, not a {type(photo).__name__}")
        pixels = photo if isinstance(photo, np.ndarray) else self._pixels(Path(photo))
        if pixels.shape != self.manifest.picture.shape:
            raise ShapeError(f"a picture has the shape {self.manifest.picture.shape} here, not {pixels.shape}")
        if pixels.dtype == np.uint8:
            return pixels.astype(np.float32) / np.float32(self.manifest.picture.divisor)
        if pixels.dtype != np.float32:
            raise DataError(f"a picture is an array of uint8, or of float32 in [0, 1], not of {pixels.dtype}")
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise DataError("a picture of float32 lies in [0, 1], but this one does not; divide 8-bit pixels by 255")
        return np.asarray(pixels, dtype=np.float32)

    def _pixels(self, file: Path) -> NDArray[np.uint8]:
        picture = self.manifest.picture
        try:
            if file.exists() and not file.is_file():  # a pipe would be waited for
                raise ValueError("it is a folder or the like, but files are read, such as FOLDER/*.png")
            mode = "L" if picture.shape[0] == 1 else "RGB"
            return read_photo(file, picture.shape[1:], crop=self._box if picture.crop else None, mode=mode)
        except FileNotFoundError as error:
            raise DataError(f"there is no photo {file}; check its name") from error
        except Exception as error:  # Pillow's readers raise whatever their formats bring about
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{file} cannot be read as a photo ({reason}); take another") from error

    def _box(self, width: float, height: float) -> Box:
        assert self.manifest.picture.crop
        left, top, right, bottom = self.manifest.picture.crop
        return left * width, top * height, right * width, bottom * height


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

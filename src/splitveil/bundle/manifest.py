"""What the manifests of both bundles say: which files, how messages are read, how a photo becomes an input."""

import hashlib
import json
import math
import re
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from splitveil.codec import LARGEST, Coding, FrameCoding, index_bytes
from splitveil.profile import ModelFacts
from splitveil.wire import HEADER_BYTES, IDENTITY_BYTES, payload_bytes

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
# What the fields of a frame can say; see docs/wire-format.md.
_MOST = 2**16 - 1
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

Positive = Annotated[int, Field(ge=1, le=_MOST)]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
NAME = "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# What float32 can hold, and its product with the largest integer too: a coefficient would be infinite, or always zero.
Scale = Annotated[float, Field(ge=2.0**-149, le=2.0**120)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class File(_Strict):
    """One file of a bundle: its size in bytes and its SHA-256."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Digest


class Messages(_Strict):
    """How messages are written and read; the same in both bundles.

    Attributes:
        components: the most that a message may have, m'; of finite messages their digits.
        positions: shape of one component: empty for a vector, (H', W') for maps.
        codings: how messages may be written.
        scales: of the integer codings, one per component.
        certified: whether every message must have all components in the one coding of whole numbers, so that the
            number of different messages is known.
        levels: of finite messages, how many values each digit takes; null where messages are coefficients.
    """

    components: Positive
    positions: tuple[Positive, ...]
    codings: Annotated[tuple[FrameCoding, ...], Field(min_length=1)]
    scales: dict[Coding, tuple[Scale, ...]]
    certified: bool
    levels: tuple[Positive, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one message: components, then positions."""
        return (self.components, *self.positions)

    @property
    def places(self) -> int:
        """Coefficients of one component."""
        return int(np.prod(self.positions, dtype=np.int64))

    @property
    def distinct(self) -> int | None:
        """How many different messages there are; None unless certified, as only then their number is kept to."""
        if not self.certified:
            return None
        if self.levels is not None:
            return math.prod(self.levels)
        (values,) = [2 * LARGEST[coding] + 1 for coding in self.scales]
        return int(values ** (self.components * self.places))

    def frame_bytes(self, m: int, coding: FrameCoding) -> int:
        """Length of the frame of m components; that of an index is always the same."""
        numbers = m * self.places if self.levels is None else index_bytes(self.levels)
        return HEADER_BYTES + payload_bytes(numbers, coding)

    def scale(self, coding: Coding) -> NDArray[np.float32]:
        """Scales (components,) of an integer coding."""
        return np.asarray(self.scales[coding], dtype=np.float32)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.codings)) < len(self.codings):
            raise ValueError("a coding is named twice")
        if ("index" in self.codings) != (self.levels is not None):
            raise ValueError("finite messages, which have levels, are coded as index, and no others are")
        if set(self.scales) != set(self.codings) - {"float32", "index"}:
            raise ValueError("every integer coding has scales, and no other has")
        if any(len(scales) != self.components for scales in self.scales.values()):
            raise ValueError(f"a coding has not one scale for each of the {self.components} components")
        if self.places > _MOST:
            raise ValueError(f"{self.places} coefficients per component do not fit into a frame")
        if self.certified and (len(self.codings) != 1 or "float32" in self.codings):
            raise ValueError("a certified bundle has exactly one coding, of integers")
        return self._finite() if self.levels is not None else self

    def _finite(self) -> Self:
        assert self.levels is not None
        if not self.certified or self.codings != ("index",):
            raise ValueError("a bundle of finite messages is certified, and they are coded as index alone")
        if self.positions or self.components != len(self.levels):
            raise ValueError("each component of a finite message is one digit with a level of its own")
        if index_bytes(self.levels) > _MOST:
            raise ValueError("the index of so many levels does not fit into a frame")
        return self


class Picture(_Strict):
    """How a photo becomes the network's input; splitveil.picture does it.

    Attributes:
        shape: of the input, (C, H, W); C is 1 for grey and 3 for RGB.
        crop: left, top, right, bottom of what is taken of an upright photo, as shares of its width and height; null
            for all of it.
        resampling: of the resizing.
        divisor: what an 8-bit value is divided by.
    """

    shape: tuple[Positive, Positive, Positive]
    crop: tuple[Fraction, Fraction, Fraction, Fraction] | None
    resampling: Literal["bicubic"]
    divisor: Annotated[int, Field(ge=1, le=255)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shape[0] not in (1, 3):
            raise ValueError(f"a photo has 1 or 3 channels, not {self.shape[0]}")
        if self.crop and not (self.crop[0] < self.crop[2] and self.crop[1] < self.crop[3]):
            raise ValueError(f"the crop {self.crop} is empty")
        return self


class Policy(_Strict):
    """What a client sends where its user does not say otherwise.

    Attributes:
        m: components.
        coding: how they are written.
        max_drop: points of accuracy that may be lost, the wish that m was chosen by; null where m was given.
        proven_drop: points that the accuracy is proven to drop by at most; null where nothing was proven.
        confidence: of that proof.
    """

    m: Positive
    coding: FrameCoding
    max_drop: Annotated[float, Field(ge=0, le=100)] | None
    proven_drop: float | None
    confidence: Annotated[float, Field(gt=0, lt=1)] | None


class _Manifest(_Strict):
    schema_version: Literal[1]
    splitveil: str
    name: Name
    identity: Digest
    messages: Messages
    files: Annotated[dict[str, File], Field(min_length=1)]

    @property
    def short_identity(self) -> bytes:
        """The identity as a frame carries it."""
        return bytes.fromhex(self.identity)[:IDENTITY_BYTES]

    @model_validator(mode="after")
    def _plain_names(self) -> Self:
        for name in self.files:
            if not _FILE.fullmatch(name) or name in (MANIFEST, SIGNATURE):
                raise ValueError(f"{name!r} is no name of a file inside the bundle")
        return self


class EdgeManifest(_Manifest):
    """What the edge bundle holds: photo to coefficients or digits.

    Attributes:
        model: what was trained.
        cut, layer, operator, method: where it is cut, and how the messages are computed.
        classes: names of the answers.
        picture: how a photo becomes an input.
        policy: what is sent.
    """

    GRAPH: ClassVar = "edge.onnx"
    kind: Literal["edge"]
    model: ModelFacts
    cut: Positive | None
    layer: str
    operator: Literal["dense", "patch"]
    method: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    picture: Picture
    policy: Policy

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one row of the graph's input: a photo's."""
        return self.picture.shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one row of the graph's output: a message's."""
        return self.messages.shape

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if set(self.files) != {"edge.onnx", "profile.json"}:
            raise ValueError("an edge bundle holds edge.onnx and profile.json")
        if self.picture.shape != self.model.input_shape or len(self.classes) != self.model.classes:
            raise ValueError("picture and classes are not those of the model")
        if self.policy.m > self.messages.components or self.policy.coding not in self.messages.codings:
            raise ValueError("the policy asks for what the messages cannot be")
        if self.messages.certified and self.policy.m != self.messages.components:
            raise ValueError("a certified bundle sends all components")
        return self


class ServerManifest(_Manifest):
    """What the server bundle holds: coefficients or digits to logits.

    Attributes:
        n_classes: how many logits there are.
        rows_independent: whether the export has seen that each row is answered by itself, whatever rows are computed
            with it; only then may rows of different requests be computed together. False in bundles from before.
    """

    GRAPH: ClassVar = "server.onnx"
    kind: Literal["server"]
    n_classes: Annotated[int, Field(ge=2)]
    rows_independent: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one row of the graph's input: a message's."""
        return self.messages.shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one row of the graph's output: logits."""
        return (self.n_classes,)

    @property
    def parameters(self) -> dict[str, str]:
        """What a server says of the bundle beside its inputs and outputs."""
        messages = self.messages
        levels = {} if messages.levels is None else {"levels": ",".join(map(str, messages.levels))}
        return {
            "identity": self.identity, "components": str(messages.components), "codings": ",".join(messages.codings),
            "certified": str(messages.certified).lower(), **levels,
        }  # fmt: skip

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if set(self.files) != {"server.onnx"}:
            raise ValueError("a server bundle holds server.onnx")
        if self.identity != identity_of(self.messages, self.files["server.onnx"].sha256):
            raise ValueError("the identity is not that of this graph and these messages")
        return self


def identity_of(messages: Messages, graph: str) -> str:
    """What tells bundles apart: SHA-256 of how messages are read, and of the server's graph (its SHA-256)."""
    # Without what is null: bundles of coefficients keep the identities that they had before there were levels.
    content = {"messages": messages.model_dump(mode="json", exclude_none=True), "graph": graph}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

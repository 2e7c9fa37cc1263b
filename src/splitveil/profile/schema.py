"""What a profile holds: a model's cuts and the components kept there, with what each costs and what it is worth."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from splitveil.certificate import Certificate
from splitveil.codec import FrameCoding, index_bytes
from splitveil.wire import HEADER_BYTES, payload_bytes

SCHEMA_VERSION = 1
_ROUNDING = 1e-9

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
# Estimates first: what has their three numbers is one, and no table of attacks.
Leaked = Annotated["Interval | dict[str, float | str] | float | str", Field(union_mode="left_to_right")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Method = Literal[
    "top", "free", "bounded", "covariance-aware", "server-aware", "distilled", "quantised", "codebook"
]  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Interval(_Strict):
    """A number with its confidence interval; shares of 1."""

    value: float
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the interval {self.low} to {self.high} does not hold its value {self.value}")
        return self


class ModelFacts(_Strict):
    """Which model was measured.

    Attributes:
        name: of the architecture.
        input_shape: of one image, (C, H, W).
        classes: how many answers there are.
        weights: `weights_digest`.
        answers: to images that are the same everywhere (`splitveil.models.fixed_answers`), since a digest of weights
            does not see code, plain tensors and buffers that are not kept; null in profiles from before, and where
            they are not finite.
    """

    name: str
    input_shape: tuple[Positive, Positive, Positive]
    classes: Annotated[int, Field(ge=2)]
    weights: Digest
    answers: tuple[float, ...] | None = None


class DataFacts(_Strict):
    """On what: the data set's name and digest, which part of it ("given": images without a data set), how many."""

    name: str
    digest: Digest
    part: Literal["val", "given"]
    samples: Positive
    labelled: bool


class Reference(_Strict):
    """The uncut model that a drop is measured against: the model itself (own), or one that was trained plainly."""

    own: bool
    weights: Digest
    accuracy: Interval | None


class Row(_Strict):
    """One way to cut and obfuscate. Shares are of 1, counts are of the samples; see docs/profile.md.

    Attributes:
        cut: the cut's number, null for a model without numbered cuts.
        layer: name of the layer whose input crosses.
        operator: "dense" or "patch"; "dense" where the obfuscator is no map of the server's first layer.
        method: "top" (the m strongest components), "free" (all of them), "bounded" (as many as epsilon asks for), or
            that of an obfuscator that was fitted to images.
        m: components sent, digits of finite messages; null for "bounded", where each query has its own number.
        epsilon: distortion allowed, as a share of each query's ‖Wz‖; null but for "bounded".
        coding: how messages are written; float32 for "bounded", and in profiles from before there were others; "index"
            for finite messages, and only for these.
        messages: of finite messages how many different ones there are; null where they are real numbers.
        obfuscator: digest of the fitted obfuscator whose first m components are sent, or its finite messages; null
            where the model alone says what is sent.
        message_shape: shape of one message, of the longest for "bounded".
        fixed_length: whether every message has the same length.
        mean_components: mean number of components sent.
        bytes_mean, bytes_most: of the frames.
        raw_bytes: of a frame with the feature as it is.
        client_macs, encoder_macs: multiply-accumulates per query, of the client's half and of the obfuscator.
        client_parameters, encoder_parameters: numbers stored on the edge, for either.
        samples: images measured.
        agreeing: of these, answered as by the uncut model.
        agreement: that share.
        accuracy: share answered right; null without labels.
        lost, gained: the reference right and this wrong; the reference wrong and this right; null without labels.
        drop: (lost − gained) / samples, with an exact interval; null without labels.
        leakage: by hidden attribute, what `splitveil.measure.Leakage.as_row` gives; of float32 rows alone.
    """

    cut: Positive | None
    layer: str
    operator: Literal["dense", "patch"]
    method: Method
    m: Positive | None
    epsilon: Annotated[float, Field(ge=0)] | None
    coding: FrameCoding = "float32"
    messages: Positive | None = None
    obfuscator: Digest | None = None
    message_shape: Annotated[tuple[Count, ...], Field(min_length=1)]
    fixed_length: bool
    mean_components: Annotated[float, Field(ge=0)]
    bytes_mean: Annotated[float, Field(gt=0)]
    bytes_most: Positive
    raw_bytes: Positive
    client_macs: Count
    encoder_macs: Count
    client_parameters: Count
    encoder_parameters: Count
    samples: Positive
    agreeing: Count
    agreement: Interval
    accuracy: Interval | None
    lost: Count | None
    gained: Count | None
    drop: Interval | None
    leakage: dict[str, dict[str, Leaked]]

    @property
    def place(self) -> str:
        """The cut in words."""
        return f"cut {self.cut}" if self.cut is not None else f"cut {self.layer!r}"

    @property
    def edge_macs(self) -> int:
        """Multiply-accumulates per query on the edge."""
        return self.client_macs + self.encoder_macs

    @property
    def shorter_than_feature(self) -> bool:
        """Whether there are fewer coefficients or digits than the feature has numbers, however either is written."""
        return HEADER_BYTES + payload_bytes(math.prod(self.message_shape), "float32") < self.raw_bytes

    @property
    def bits(self) -> float | None:
        """What one message can tell at most, see `Certificate`; None where there is no such bound."""
        return None if self.messages is None else Certificate(self.messages).bits

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        bounded = self.method == "bounded"
        if (self.m is None) != bounded or (self.epsilon is not None) != bounded or self.fixed_length == bounded:
            raise ValueError(f"the method {self.method!r} does not go with m, epsilon or fixed_length as given")
        if self.obfuscator is None and self.method not in ("top", "free", "bounded"):
            raise ValueError(
                f"a row of the method {self.method!r} names its obfuscator by a digest, but this one does not"
            )
        if self.m is not None and self.mean_components != self.m:
            raise ValueError(f"every message has m={self.m} components, so their mean is not {self.mean_components}")
        if self.m is not None and self.message_shape[0] != self.m:
            raise ValueError(f"a message of m={self.m} components has not the shape {self.message_shape}")
        if self.mean_components > self.message_shape[0] + _ROUNDING or self.bytes_mean > self.bytes_most + _ROUNDING:
            raise ValueError("a mean lies above the most that there can be")
        self._bytes_consistent()
        _check_share("agreement", self.agreement, self.agreeing, self.samples)
        return self._labels_consistent()

    def _bytes_consistent(self) -> None:
        if self.coding != "float32" and not self.fixed_length:
            raise ValueError(f"messages of varying length are written as float32, not as {self.coding}")
        if (self.coding == "index") != (self.messages is not None):
            raise ValueError("finite messages, of which there is a number, are coded as index, and no others are")
        numbers = math.prod(self.message_shape) if self.messages is None else index_bytes([self.messages])
        longest = HEADER_BYTES + payload_bytes(numbers, self.coding)
        if self.bytes_most > longest or (
            self.fixed_length and (self.bytes_mean, self.bytes_most) != (longest, longest)
        ):
            raise ValueError(
                f"a frame of shape {self.message_shape} in {self.coding} has {longest} bytes, not {self.bytes_most}"
            )

    def _labels_consistent(self) -> Self:
        given = (self.accuracy, self.lost, self.gained, self.drop)
        if self.accuracy is None or self.lost is None or self.gained is None or self.drop is None:
            if given != (None,) * 4:
                raise ValueError("accuracy, lost, gained and drop are there together or not at all")
            return self
        if self.lost + self.gained > self.samples:
            raise ValueError(f"{self.lost} lost and {self.gained} gained are more than the {self.samples} samples")
        _check_share("drop", self.drop, self.lost - self.gained, self.samples)
        return self


class Profile(_Strict):
    """What a provider publishes about a model, and what `choose` picks from; see docs/profile.md.

    Attributes:
        schema_version: of this format.
        model: which model.
        data: on what it was measured.
        reference: what drops are measured against.
        versions: of the software.
        confidence: of every interval.
        rows: what was measured, by cut and then by components kept.
    """

    schema_version: Literal[1]
    model: ModelFacts
    data: DataFacts
    reference: Reference
    versions: dict[str, str]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.reference.accuracy is not None) != self.data.labelled:
            raise ValueError("the reference has an accuracy where there are labels, and only there")
        if self.reference.own and self.reference.weights != self.model.weights:
            raise ValueError("the reference is the model's own, but of other weights")
        seen = set()
        for row in self.rows:
            _check_row(self, row)
            seen.add(
                (row.layer, row.operator, row.method, row.m, row.epsilon, row.coding, row.messages, row.obfuscator)
            )
        if len(seen) < len(self.rows):
            raise ValueError("two rows are of the same cut, operator, method, components and coding")
        _check_cuts(self.rows)
        _check_codings(self.rows)
        return self


def _check_share(name: str, found: Interval, count: int, samples: int) -> None:
    if count > samples or not math.isclose(found.value, count / samples, abs_tol=_ROUNDING):
        raise ValueError(f"the {name} of {found.value} is not {count} of {samples} samples")


def _check_cuts(rows: Sequence[Row]) -> None:
    """One layer and one cost per cut, and a deeper cut costs no less: `choose` goes by this order."""
    places = {(row.cut or 0, row.client_macs, row.layer) for row in rows}
    numbered = sorted(place for place in places if place[0])
    if len({cut for cut, _, _ in numbered}) < len(numbered) or len({layer for _, _, layer in places}) < len(places):
        raise ValueError("a cut has one layer and one cost of the client's half, but its rows differ in them")
    costs = [macs for _, macs, _ in numbered]
    if costs != sorted(costs):
        raise ValueError("a deeper cut cannot cost the client less")


def _check_codings(rows: Sequence[Row]) -> None:
    """`choose` looks at one coding, and must find every cut and every m' there."""
    found: dict[FrameCoding, set[tuple[str, str, int | None, str | None]]] = {}
    for row in rows:
        if row.fixed_length and row.messages is None:
            found.setdefault(row.coding, set()).add((row.layer, row.operator, row.m, row.obfuscator))
    if len({frozenset(places) for places in found.values()}) > 1:
        raise ValueError("not every cut and m' was measured in the same codings")


def _check_row(profile: Profile, row: Row) -> None:
    where, reference = f"the row of {row.place}, {row.method}", profile.reference.accuracy
    if row.samples != profile.data.samples:
        raise ValueError(f"{where} has {row.samples} samples, but the data {profile.data.samples}")
    if (row.drop is not None) != profile.data.labelled:
        raise ValueError(f"{where} has a drop where the data has no labels, or none where it has")
    if row.drop is None or row.accuracy is None or reference is None:
        return
    if not math.isclose(row.accuracy.value + row.drop.value, reference.value, abs_tol=_ROUNDING):
        raise ValueError(f"{where} has an accuracy and a drop that do not add up to the reference's accuracy")

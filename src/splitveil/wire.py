"""One frame on the wire: a message as bytes and back. Free of torch; the only reader of untrusted bytes.

    offset  size  field
    0       2     magic "SV"
    2       1     version, 1
    3       1     coding: 0 float32, 1 int8, 2 int4 (two a byte, the first one low), or 3 index (of a finite message)
    4       4     identity of model and basis (first bytes of a SHA-256)
    8       2     components sent, m'; 1 for an index
    10      2     positions per component (1 for a vector, H'·W' for a map); bytes of an index
    12      4     CRC-32 of bytes 0 to 11 and of the payload
    16      …     coefficients, component by component, or the index, an unsigned integer

All numbers are little-endian. Every byte count in splitveil is ``len(encode(frame))``.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitveil.codec import FRAME_CODINGS, LARGEST, FrameCoding, from_index, index_bytes, to_index
from splitveil.errors import WireError
from splitveil.message import Message

MAGIC = b"SV"
VERSION = 1
HEADER_BYTES = 16
IDENTITY_BYTES = 4
_FIELDS = struct.Struct("<2sBB4sHH")
_CHECKSUM = struct.Struct("<I")
_MOST = 2**16 - 1

Values = NDArray[np.float32] | NDArray[np.int8] | NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Frame:
    """What one query sends.

    Attributes:
        identity: 4 bytes that name the model and the basis; the other side refuses what it does not know.
        values: coefficients (components sent, positions): float32, or int8 for the integer codings; of an index its
            bytes (1, index_bytes), uint8, little-endian.
        coding: how they are written; int4 holds −7 to 7, int8 −127 to 127.
    """

    identity: bytes
    values: Values
    coding: FrameCoding = "float32"


def payload_bytes(numbers: int, coding: FrameCoding) -> int:
    """Bytes that so many coefficients take; of an index, so many bytes are themselves."""
    return {"float32": 4 * numbers, "int8": numbers, "int4": (numbers + 1) // 2, "index": numbers}[coding]


def encode(frame: Frame) -> bytes:
    """The frame as bytes.

    Raises:
        WireError: the identity is not 4 bytes, the values are no finite table, do not fit the coding, or are too many.
    """
    if len(frame.identity) != IDENTITY_BYTES:
        raise WireError(f"a frame's identity has {IDENTITY_BYTES} bytes, not {len(frame.identity)}")
    if frame.values.ndim != 2 or max(frame.values.shape) > _MOST:
        raise WireError(f"a frame holds a table of at most {_MOST} by {_MOST} coefficients, not {frame.values.shape}")
    payload = _payload(frame.values, frame.coding)
    coding = FRAME_CODINGS.index(frame.coding)
    header = _FIELDS.pack(MAGIC, VERSION, coding, frame.identity, *frame.values.shape)
    return header + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(header))) + payload


def decode(data: bytes) -> Frame:
    """The frame that some bytes stand for; lengths are checked before anything is allocated.

    Raises:
        WireError: the bytes are not exactly one valid frame.
    """
    if len(data) < HEADER_BYTES:
        raise WireError(f"a frame has at least {HEADER_BYTES} bytes, but {len(data)} came")
    magic, version, coding, identity, components, positions = _FIELDS.unpack_from(data)
    if magic != MAGIC:
        raise WireError("these bytes are not a splitveil frame")
    if version != VERSION or coding >= len(FRAME_CODINGS):
        raise WireError(f"frame version {version} with coding {coding} is not known here; update this side")
    expected = HEADER_BYTES + payload_bytes(components * positions, FRAME_CODINGS[coding])
    if len(data) != expected:
        raise WireError(f"a frame of {components} by {positions} numbers has {expected} bytes, but {len(data)} came")
    (checksum,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
    if checksum != zlib.crc32(data[HEADER_BYTES:], zlib.crc32(data[: _FIELDS.size])):
        raise WireError("a frame's checksum does not fit its content; it was damaged on the way")
    values = _values(data, (components, positions), FRAME_CODINGS[coding])
    return Frame(identity, values.reshape(components, positions), FRAME_CODINGS[coding])


def pack(message: NDArray[np.float32], kept: int, identity: bytes) -> bytes:
    """Bytes of one message (components, *positions), of which the first ``kept`` components are sent as float32.

    Raises:
        WireError: ``kept`` is outside the message, or see `encode`.
    """
    if not 0 <= kept <= len(message):
        raise WireError(f"cannot send {kept} components of a message that has {len(message)}")
    positions = math.prod(message.shape[1:])
    return encode(Frame(identity, message.reshape(len(message), positions)[:kept]))


def unpack(data: Sequence[bytes], facts: Message, identity: bytes) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Messages (B, *facts.shape), zero where nothing was sent, and the components that each frame held, (B,).

    Raises:
        WireError: a frame is damaged, of another model or basis, of integers, or does not fit the message's facts.
    """
    components, positions = facts.shape[0], math.prod(facts.shape[1:])
    frames = [decode(one) for one in data]
    for frame in frames:
        check_identity(frame, identity)
        if frame.coding != "float32":
            raise WireError(f"coefficients are read as float32 here, but a frame of {frame.coding} came")
        if len(frame.values) > components or frame.values.shape[1] != positions:
            raise WireError(f"a message of shape {frame.values.shape} does not fit {(components, positions)}")
        if facts.fixed_length and len(frame.values) != components:
            raise WireError(f"every message here has {components} components, but one has {len(frame.values)}")
    messages = np.zeros((len(frames), components, positions), dtype=np.float32)
    for row, frame in zip(messages, frames, strict=True):
        row[: len(frame.values)] = frame.values
    kept = np.array([len(frame.values) for frame in frames], dtype=np.int64)
    return messages.reshape(len(frames), *facts.shape), kept


def pack_digits(digits: NDArray[np.integer | np.floating], levels: Sequence[int], identity: bytes) -> list[bytes]:
    """Frames of finite messages, all of one length; raises `WireError` as `to_index` and `encode` do.

    Args:
        digits: (B, n), whole numbers of any type, digit i from 0 to levels[i] - 1.
        levels: (n,).
        identity: 4 bytes, see `Frame`.
    """
    return [encode(Frame(identity, octets[None], "index")) for octets in to_index(digits, levels)]


def unpack_digits(data: Sequence[bytes], levels: Sequence[int], identity: bytes) -> NDArray[np.int64]:
    """Digits (B, n) of the frames of finite messages.

    Raises:
        WireError: a frame is damaged, of another model or basis, no index of this length, or beyond the levels.
    """
    size = index_bytes(levels)
    octets = np.zeros((len(data), size), np.uint8)
    for row, one in zip(octets, data, strict=True):
        frame = decode(one)
        check_identity(frame, identity)
        if frame.coding != "index" or frame.values.shape[1] != size:
            raise WireError(
                f"every message here is an index of {size} bytes, but a frame with {frame.values.size} values coded as "
                f"{frame.coding} came"
            )
        row[:] = frame.values[0]
    return from_index(octets, levels)


def check_identity(frame: Frame, identity: bytes) -> None:
    """Raises `WireError` where a frame is of another model or basis."""
    if frame.identity != identity:
        raise WireError(
            f"a frame of {frame.identity.hex()} cannot be answered by {identity.hex()}: "
            "client and server hold different models or bases"
        )


def _payload(values: Values, coding: FrameCoding) -> bytes:
    if coding == "float32":
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            floats = np.ascontiguousarray(values, dtype="<f4")
        if not np.isfinite(floats).all():
            raise WireError("a message with coefficients that are not finite cannot be sent; check the input")
        return floats.tobytes()
    if coding == "index":
        if values.dtype != np.uint8:
            raise WireError(f"an index is given by its bytes, uint8, not by {values.dtype}")
        _check_index(values.shape)
        return values.tobytes()
    if values.dtype != np.int8 or (np.abs(values.astype(np.int16)) > LARGEST[coding]).any():
        raise WireError(f"coefficients coded as {coding} are int8 numbers of at most ±{LARGEST[coding]}")
    flat = np.ascontiguousarray(values).reshape(-1)
    if coding == "int8":
        return flat.tobytes()
    nibbles = np.append(flat, np.zeros(flat.size % 2, np.int8)).view(np.uint8) & 0xF
    return (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()


def _values(data: bytes, shape: tuple[int, int], coding: FrameCoding) -> Values:
    """The payload's numbers, in a row; raises `WireError` where one cannot have been written by `encode`."""
    if coding == "float32":
        floats = np.frombuffer(data, dtype="<f4", offset=HEADER_BYTES)
        if not np.isfinite(floats).all():
            raise WireError("a frame holds coefficients that are not finite")
        return floats
    if coding == "index":
        _check_index(shape)
        return np.frombuffer(data, dtype=np.uint8, offset=HEADER_BYTES)
    integers = np.frombuffer(data, dtype=np.int8, offset=HEADER_BYTES)
    if coding == "int4":
        # Shifting a nibble to the top of its byte and back again extends its sign.
        halves = np.stack([integers << 4, integers], axis=1) >> 4
        count = shape[0] * shape[1]
        if halves.reshape(-1)[count:].any():
            raise WireError("the half byte that fills up a frame is not zero")
        integers = halves.reshape(-1)[:count].astype(np.int8)
    if (integers < -LARGEST[coding]).any():
        raise WireError(f"a frame holds integers below -{LARGEST[coding]}")
    return integers


def _check_index(shape: tuple[int, ...]) -> None:
    if shape[0] != 1 or shape[1] < 1:
        raise WireError(f"an index is one component of at least one byte, not {shape[0]} of {shape[1]}")

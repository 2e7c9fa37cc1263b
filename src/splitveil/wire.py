"""One frame on the wire: a message as bytes and back. Free of torch; the only reader of untrusted bytes.

    offset  size  field
    0       2     magic "SV"
    2       1     version, 1
    3       1     coding of the coefficients: 0 float32 (little-endian), 1 int8, 2 int4 (two a byte, the first one low)
    4       4     identity of model and basis (first bytes of a SHA-256)
    8       2     components sent, m'
    10      2     positions per component (1 for a vector, H'·W' for a map)
    12      4     CRC-32 of bytes 0 to 11 and of the payload
    16      …     coefficients, component by component

All integers of the header are little-endian. Every byte count in splitveil is ``len(encode(frame))``.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitveil.codec import CODINGS, LARGEST, Coding
from splitveil.errors import WireError
from splitveil.message import Message

MAGIC = b"SV"
VERSION = 1
HEADER_BYTES = 16
IDENTITY_BYTES = 4
_FIELDS = struct.Struct("<2sBB4sHH")
_CHECKSUM = struct.Struct("<I")
_MOST = 2**16 - 1


@dataclass(frozen=True, eq=False)
class Frame:
    """What one query sends.

    Attributes:
        identity: 4 bytes that name the model and the basis; the other side refuses what it does not know.
        values: coefficients (components sent, positions): float32, or int8 for the integer codings.
        coding: how a coefficient is written; int4 holds −7 to 7, int8 −127 to 127.
    """

    identity: bytes
    values: NDArray[np.float32] | NDArray[np.int8]
    coding: Coding = "float32"


def payload_bytes(coefficients: int, coding: Coding) -> int:
    """Bytes that so many coefficients take."""
    return {"float32": 4 * coefficients, "int8": coefficients, "int4": (coefficients + 1) // 2}[coding]


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
    coding = CODINGS.index(frame.coding)
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
    if version != VERSION or coding >= len(CODINGS):
        raise WireError(f"frame version {version} with coding {coding} is not known here; update this side")
    expected = HEADER_BYTES + payload_bytes(components * positions, CODINGS[coding])
    if len(data) != expected:
        raise WireError(
            f"a frame of {components} by {positions} coefficients has {expected} bytes, but {len(data)} came"
        )
    (checksum,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
    if checksum != zlib.crc32(data[HEADER_BYTES:], zlib.crc32(data[: _FIELDS.size])):
        raise WireError("a frame's checksum does not fit its content; it was damaged on the way")
    values = _values(data, components * positions, CODINGS[coding])
    return Frame(identity, values.reshape(components, positions), CODINGS[coding])


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


def check_identity(frame: Frame, identity: bytes) -> None:
    """Raises `WireError` where a frame is of another model or basis."""
    if frame.identity != identity:
        raise WireError(
            f"a frame of {frame.identity.hex()} cannot be answered by {identity.hex()}: "
            "client and server hold different models or bases"
        )


def _payload(values: NDArray[np.float32] | NDArray[np.int8], coding: Coding) -> bytes:
    if coding == "float32":
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            floats = np.ascontiguousarray(values, dtype="<f4")
        if not np.isfinite(floats).all():
            raise WireError("a message with coefficients that are not finite cannot be sent; check the input")
        return floats.tobytes()
    if values.dtype != np.int8 or (np.abs(values.astype(np.int16)) > LARGEST[coding]).any():
        raise WireError(f"coefficients coded as {coding} are int8 numbers of at most ±{LARGEST[coding]}")
    flat = np.ascontiguousarray(values).reshape(-1)
    if coding == "int8":
        return flat.tobytes()
    nibbles = np.append(flat, np.zeros(flat.size % 2, np.int8)).view(np.uint8) & 0xF
    return (nibbles[0::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()


def _values(data: bytes, count: int, coding: Coding) -> NDArray[np.float32] | NDArray[np.int8]:
    """The payload's coefficients (count,); raises `WireError` where one cannot have been written by `encode`."""
    if coding == "float32":
        floats = np.frombuffer(data, dtype="<f4", offset=HEADER_BYTES)
        if not np.isfinite(floats).all():
            raise WireError("a frame holds coefficients that are not finite")
        return floats
    integers = np.frombuffer(data, dtype=np.int8, offset=HEADER_BYTES)
    if coding == "int4":
        # Shifting a nibble to the top of its byte and back again extends its sign.
        halves = np.stack([integers << 4, integers], axis=1) >> 4
        if halves.reshape(-1)[count:].any():
            raise WireError("the half byte that fills up a frame is not zero")
        integers = halves.reshape(-1)[:count].astype(np.int8)
    if (integers < -LARGEST[coding]).any():
        raise WireError(f"a frame holds integers below -{LARGEST[coding]}")
    return integers

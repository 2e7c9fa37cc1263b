"""A second reader of frames and requests, written from docs/wire-format.md and the protocol's text alone.

It shares no line with the product, and is slow and plain. None means that the bytes must be refused.
"""

import binascii
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

FLOAT32, INT8, INT4, INDEX = range(4)
NAMES = ("float32", "int8", "int4", "index")


class Read(NamedTuple):
    """A frame: its fields, and numbers component by component; of an index its bytes."""

    coding: int
    identity: bytes
    components: int
    positions: int
    numbers: list[Any]


@dataclass(frozen=True)
class Facts:
    """What a bundle's manifest says of its messages."""

    identity: bytes
    components: int
    positions: tuple[int, ...]
    codings: tuple[str, ...]
    scales: dict[str, tuple[float, ...]]
    certified: bool
    levels: tuple[int, ...] | None = None

    @property
    def places(self) -> int:
        return math.prod(self.positions)


def read_frame(data: bytes) -> Read | None:
    """The one frame that some bytes are."""
    if len(data) < 16 or data[:3] != b"\x53\x56\x01" or data[3] > 3:
        return None
    coding = data[3]
    components, positions = data[8] + 256 * data[9], data[10] + 256 * data[11]
    count = components * positions
    if len(data) - 16 != (4 * count, count, count // 2 + count % 2, count)[coding]:
        return None
    if int.from_bytes(data[12:16], "little") != binascii.crc32(data[:12] + data[16:]):
        return None
    payload = data[16:]
    numbers: list[Any]
    if coding == FLOAT32:
        numbers = list(struct.unpack(f"<{count}f", payload))
        if not all(math.isfinite(number) for number in numbers):
            return None
    elif coding == INT8:
        numbers = [byte - 256 if byte > 127 else byte for byte in payload]
        if -128 in numbers:
            return None
    elif coding == INT4:
        halves = [half for byte in payload for half in (byte % 16, byte // 16)]
        numbers = [half - 16 if half > 7 else half for half in halves]
        if any(numbers[count:]) or -8 in numbers:
            return None
        del numbers[count:]
    else:
        if components != 1 or positions == 0:
            return None
        numbers = list(payload)
    return Read(coding, data[4:8], components, positions, numbers)


def read_message(data: bytes, facts: Facts) -> list[float] | None:
    """Coefficients of a bundle, component by component, zero beyond those sent; or digits."""
    frame = read_frame(data)
    if frame is None or frame.identity != facts.identity or NAMES[frame.coding] not in facts.codings:
        return None
    if facts.levels is not None:
        return _digits(frame, facts.levels)
    if not 1 <= frame.components <= facts.components or frame.positions != facts.places:
        return None
    if facts.certified and frame.components != facts.components:
        return None
    found = [float(number) for number in frame.numbers]
    if frame.coding != FLOAT32:
        scales = facts.scales[NAMES[frame.coding]]
        found = [float(Fraction(number) * Fraction(scales[i // facts.places])) for i, number in enumerate(found)]
    return found + [0.0] * ((facts.components - frame.components) * facts.places)


def _digits(frame: Read, levels: Sequence[int]) -> list[float] | None:
    most = 1
    for level in levels:
        most *= level
    size = 1
    while 256**size < most:
        size += 1
    if frame.positions != size:
        return None
    index = sum(byte * 256**place for place, byte in enumerate(frame.numbers))
    if index >= most:
        return None
    found = []
    for level in reversed(levels):
        found.append(float(index % level))
        index //= level
    return found[::-1]


def write_frame(frame: Read) -> bytes:
    """The one way to write a frame."""
    count = len(frame.numbers)
    if frame.coding == FLOAT32:
        payload = struct.pack(f"<{count}f", *frame.numbers)
    elif frame.coding == INT4:
        halves = [number % 16 for number in frame.numbers] + [0] * (count % 2)
        payload = bytes(low + 16 * high for low, high in zip(halves[::2], halves[1::2], strict=True))
    else:
        payload = bytes(number % 256 for number in frame.numbers)
    head = b"SV\x01" + bytes([frame.coding]) + frame.identity
    head += frame.components.to_bytes(2, "little") + frame.positions.to_bytes(2, "little")
    return head + binascii.crc32(head + payload).to_bytes(4, "little") + payload


class NoJSONError(ValueError):
    pass


def read_json(text: bytes) -> Any:
    """Strict JSON (RFC 8259) in UTF-8; raises `ValueError`."""

    def constant(name: str) -> Any:
        raise NoJSONError(name)

    plain = text.decode()
    if any(ord(character) < 32 and character not in " \t\n\r" for character in plain) or plain[:1] == "\ufeff":
        raise NoJSONError("control character")
    found = json.loads(plain, parse_constant=constant)
    json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no character
    return found


def read_request(body: bytes, json_length: int | None, facts: Facts, max_batch: int) -> list[list[float]] | None:
    """Rows of coefficients or digits that an inference request of REST carries."""
    if json_length is not None and json_length > len(body):
        return None
    text, raw = (body, b"") if json_length is None else (body[:json_length], body[json_length:])
    try:
        content = read_json(text)
    except (ValueError, RecursionError):
        return None
    if not _is_request(content):
        return None
    (given,) = content["inputs"]
    numbers = _numbers(given, raw, given["shape"])
    return None if numbers is None else read_tensor(given, numbers, facts, max_batch)


def read_tensor(given: dict[str, Any], numbers: Any, facts: Facts, max_batch: int) -> list[list[float]] | None:
    """Rows of coefficients or digits of an input.

    Args:
        given: name, datatype and shape.
        numbers: its data, as bytes or a flat list.
        facts: of the bundle.
        max_batch: rows that a request may have.
    """
    shape = given["shape"]
    if len(shape) < 2 or not 1 <= shape[0] <= max_batch:
        return None
    if given["name"] == "frame":
        return _frames(given, numbers, facts)
    if given["name"] != "coefficients" or facts.certified or given["datatype"] != "FP32":
        return None
    if not 1 <= shape[1] <= facts.components or tuple(shape[2:]) != facts.positions:
        return None
    if isinstance(numbers, bytes):
        if len(numbers) % 4:
            return None
        numbers = struct.unpack(f"<{len(numbers) // 4}f", numbers)
    if len(numbers) != math.prod(shape):
        return None
    try:
        # FP32 is what the nearest one is; what lies beyond all is infinite.
        floats = [struct.unpack("<f", struct.pack("<f", float(number)))[0] for number in numbers]
    except OverflowError:
        return None
    if not all(map(math.isfinite, floats)):
        return None
    size = shape[1] * facts.places
    missing = [0.0] * ((facts.components - shape[1]) * facts.places)
    return [floats[i * size : (i + 1) * size] + missing for i in range(shape[0])]


def _is_request(content: Any) -> bool:
    """Whether everything beside the data is as the protocol says."""
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), list) or len(content["inputs"]) != 1:
        return False
    if not isinstance(content.get("id", ""), str) or len(content.get("id", "")) > 1000:
        return False
    if not isinstance(content.get("parameters", {}), dict) or not _are_outputs(content.get("outputs")):
        return False
    given = content["inputs"][0]
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        return False
    shape = given.get("shape")
    return (
        isinstance(given.get("datatype"), str)
        and isinstance(given.get("parameters", {}), dict)
        and not any(key.startswith("shared_memory") for key in given.get("parameters", {}))
        and isinstance(shape, list)
        and len(shape) <= 8
        and len(shape) > 0
        and all(type(size) is int and 0 <= size < 2**31 for size in shape)
    )


def _are_outputs(outputs: Any) -> bool:
    if outputs is None or outputs == []:
        return True
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        return False
    parameters = outputs[0].get("parameters", {})
    return (
        outputs[0].get("name") == "logits"
        and isinstance(parameters, dict)
        and not any(key == "classification" or key.startswith("shared_memory") for key in parameters)
    )


def _numbers(given: dict[str, Any], raw: bytes, shape: list[int]) -> Any:
    """Bytes, or a flat list of numbers, as many as the shape says."""
    size = given.get("parameters", {}).get("binary_data_size")
    if size is not None:
        return raw if type(size) is int and size == len(raw) else None
    data = given.get("data")
    if not isinstance(data, list) or raw:
        return None
    if data and isinstance(data[0], list):
        for length in shape[1:] if len(data) == shape[0] else [-1]:
            if not all(isinstance(row, list) and len(row) == length for row in data):
                return None
            data = [number for row in data for number in row]
    if len(data) != math.prod(shape) or not all(type(number) in (int, float) for number in data):
        return None
    return data


def _frames(given: dict[str, Any], numbers: Any, facts: Facts) -> list[list[float]] | None:
    shape = given["shape"]
    if given["datatype"] != "UINT8" or len(shape) != 2 or shape[1] < 1:
        return None
    if not isinstance(numbers, bytes):
        if not all(type(number) is int and 0 <= number < 256 for number in numbers):
            return None
        numbers = bytes(numbers)
    if len(numbers) != shape[0] * shape[1]:
        return None
    found = [read_message(numbers[i * shape[1] : (i + 1) * shape[1]], facts) for i in range(shape[0])]
    return None if None in found else found

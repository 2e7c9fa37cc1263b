"""Protocol Buffers, the encoding of ONNX files, read strictly: there is one way to write each message."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from splitveil.bundle.memory import Content
from splitveil.errors import GraphError

INT, FLOAT, TEXT, BYTES = "int", "float", "text", "bytes"
"""Kinds of a field's value: int64 or an enumeration; float32; UTF-8; a view of bytes. A `Schema` is a kind, too."""
_WIRES = {INT: 0, TEXT: 2, BYTES: 2, FLOAT: 5}  # a message is of wire type 2 as well; groups (3, 4) have no kind
LONGEST_TEXT = 1000  # bytes; names are those of a network's layers
MOST_FIELDS = 1_000_000  # of a file, a second's work; a vision transformer of 600 MB has 30,000


class Field(NamedTuple):
    """What a message may have under a number.

    Attributes:
        name: under which `read` gives the value.
        kind: INT, FLOAT, TEXT, BYTES or the schema of a message.
        repeated: whether there may be several; `read` then gives a list.
        required: whether there must be one.
    """

    name: str
    kind: "str | Mapping[int, Field | str]"
    repeated: bool = False
    required: bool = False


Schema = Mapping[int, Field | str]
"""By number; a text says why a field is refused that ONNX has."""


def read(schema: Schema, data: Content, place: str) -> dict[str, Any]:
    """The fields of a message by name; what is repeated is a list, what is optional and absent is missing.

    Fields come in the order of their numbers, as all known writers put them; numbers have no byte too many; nothing is
    twice, unknown or left over. Different files therefore never have the same content, and what another reader would
    make of a file is known. Bytes are not copied.

    Args:
        schema: the fields by number.
        data: of the message.
        place: its name in errors.

    Raises:
        GraphError: the bytes are no such message.
    """
    return _Reader(memoryview(data)).message(schema, 0, len(data), place)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._fields = 0

    def message(self, schema: Schema, at: int, end: int, place: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            field.name: [] for field in schema.values() if isinstance(field, Field) and field.repeated
        }
        last = 0
        while at < end:
            tag, at = self._varint(at, end, place)
            number, wire = tag >> 3, tag & 7
            field = schema.get(number)
            if not isinstance(field, Field):
                raise GraphError(place, field or f"it has a field {number}, which is never written")
            inner = f"{place}.{field.name}"
            if wire != (_WIRES[field.kind] if isinstance(field.kind, str) else 2):
                raise GraphError(inner, f"it has the wire type {wire}")
            if number < last or (number == last and not field.repeated):
                raise GraphError(inner, "it stands twice" if number == last else "it is out of order")
            last = number
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise GraphError(inner, f"there are more than {MOST_FIELDS} fields")
            if field.repeated:
                inner += f"[{len(found[field.name])}]"
            value, at = self._value(field.kind, at, end, inner)
            if field.repeated:
                found[field.name].append(value)
            else:
                found[field.name] = value
        for field in schema.values():
            if isinstance(field, Field) and field.required and found.get(field.name, []) == []:
                raise GraphError(f"{place}.{field.name}", "it is missing")
        return found

    def _value(self, kind: str | Schema, at: int, end: int, place: str) -> tuple[Any, int]:
        if kind == INT:
            value, at = self._varint(at, end, place)
            return value - (value >> 63 << 64), at
        if kind == FLOAT:
            if at + 4 > end:
                raise GraphError(place, "it is cut off")
            return float(np.frombuffer(self._data[at : at + 4], "<f4")[0]), at + 4
        length, at = self._varint(at, end, place)
        if length > end - at:
            raise GraphError(place, "it is cut off")
        if not isinstance(kind, str):
            return self.message(kind, at, at + length, place), at + length
        part = self._data[at : at + length]
        return (_text(part, place) if kind == TEXT else part), at + length

    def _varint(self, at: int, end: int, place: str) -> tuple[int, int]:
        """A number below 2^64 and where it ends."""
        value = shift = 0
        while at < end:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if (byte == 0 and shift) or value >> 64:
                    raise GraphError(place, "a number has more bytes than it needs")
                return value, at
            shift += 7
            if shift > 63:
                raise GraphError(place, "a number has more bytes than it needs")
        raise GraphError(place, "it is cut off")


def _text(part: memoryview, place: str) -> str:
    if len(part) > LONGEST_TEXT:
        raise GraphError(place, f"it is longer than {LONGEST_TEXT} bytes")
    try:
        text = str(part, "utf-8")
    except UnicodeDecodeError as error:
        raise GraphError(place, "it is no UTF-8") from error
    if not text.isprintable():
        raise GraphError(place, "it has characters that cannot be printed")
    return text

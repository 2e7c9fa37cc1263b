"""A frame's bytes with its fields named; what is sent, for people to look at."""

from dataclasses import dataclass

from splitveil.wire import HEADER_BYTES, decode

_ENDS = (("magic", 2), ("version", 3), ("coding", 4), ("identity", 8), ("components", 10), ("positions", 12),
         ("checksum", HEADER_BYTES))  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One field of a frame.

    Attributes:
        name: as in docs/wire-format.md.
        hex: its bytes.
        meaning: what they say.
    """

    name: str
    hex: str
    meaning: str


def describe(data: bytes) -> list[Field]:
    """The fields of a frame in order; together they are all of its bytes.

    Raises:
        WireError: the bytes are no frame.
    """
    frame = decode(data)
    components, positions = frame.values.shape
    meanings = {
        "magic": "a splitveil frame", "version": str(data[2]), "coding": frame.coding,
        "identity": "of the bundle", "components": f"m' = {components}", "positions": f"{positions} per component",
        "checksum": "CRC-32 of all the rest", "payload": f"{frame.values.size} coefficients as {frame.coding}",
    }  # fmt: skip
    if frame.coding == "index":
        meanings |= {"components": "one index", "positions": f"of {positions} bytes", "payload": "the index"}
    found, start = [], 0
    for name, end in (*_ENDS, ("payload", len(data))):
        found.append(Field(name, data[start:end].hex(), meanings[name]))
        start = end
    return found

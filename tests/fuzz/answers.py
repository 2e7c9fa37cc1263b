"""What the client reads of a server: logits, objects, refusals, identities, against readers of its own."""

import json
import math
import random
import struct
from typing import Any

from splitveil.client.protocol import (
    HEADER_LENGTH,
    configured_identity,
    longest_answer,
    read_logits,
    read_object,
    read_refusal,
)
from splitveil.errors import RemoteError

from .target import WORDS, Target, change_bytes, change_json

KEYS = (*WORDS, "error", "outputs", "identity", "string_value", "name", "datatype")
CONFIG = {"name": "made", "parameters": {"identity": {"string_value": "ab" * 32}}}


def written(rows: int, classes: int) -> tuple[bytes, bytes]:
    """Both parts of a right answer."""
    raw = struct.pack(f"<{rows * classes}f", *(index / 3 - 1 for index in range(rows * classes)))
    output = {"name": "logits", "datatype": "FP32", "shape": [rows, classes],
              "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
    return json.dumps({"model_name": "made", "outputs": [output]}).encode(), raw


def joined(rows: int, classes: int, header: bytes, body: bytes) -> bytes:
    """A case: what was asked for, the header that says how long the JSON is, the body."""
    return bytes([rows, classes, len(header) % 256]) + header[:255] + body


class Answers(Target):
    """The functions of `splitveil.client.protocol`."""

    def seeds(self) -> list[bytes]:
        found = []
        for rows, classes in ((1, 2), (1, 10), (3, 4), (32, 2)):
            text, raw = written(rows, classes)
            found.append(joined(rows, classes, str(len(text)).encode(), text + raw))
        for content in (CONFIG, {"error": "a sentence.\x1b[2J\n" * 3}, {"identity": "ab", "versions": ["1"]}):
            text = json.dumps(content).encode()
            found.append(joined(1, 2, str(len(text)).encode(), text))
        return found

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        if len(data) < 3:
            return change_bytes(data, rng)
        rows, classes, size = data[:3]
        header, body = data[3 : 3 + size], data[3 + size :]
        length = int(header) if header.isdigit() and len(header) < 6 else len(body)
        text, raw = body[:length], body[length:]
        match rng.randrange(6):
            case 0:
                header = rng.choice((change_bytes(header, rng, 20), b"", b"0", b"-1", "²".encode(), b"1e2", b"9" * 30))
                return joined(rows, classes, header, body)
            case 1:
                raw = change_bytes(raw, rng, 3000)
            case 2:
                raw = raw[:-4] + rng.choice((b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\xff\xff\x7f\x7f", b""))
            case 3:
                return joined(max(1, rows - 1), classes, header, body)
            case _:
                text = change_json(text, rng, KEYS)
        return joined(rows, classes, str(len(text)).encode(), text + raw)

    def check(self, data: bytes) -> None:
        rows, classes = max(1, data[0]) if data else 1, max(2, data[1]) if len(data) > 1 else 2
        size = data[2] if len(data) > 2 else 0
        header, body = data[3 : 3 + size].decode("latin-1"), data[3 + size :]
        expected = logits(body, header, rows, classes)
        try:
            found = read_logits(body, {HEADER_LENGTH: header}, rows, classes)
        except RemoteError as error:
            assert expected is None, "a right answer is refused"
            assert str(error).isprintable()
        else:
            assert expected is not None, "an answer is believed that is none"
            assert found.shape == (rows, classes)
            assert found.ravel().tolist() == expected
            assert len(body) <= longest_answer(rows, classes) or len(body) > 60_000
        self._check_words(body)

    def _check_words(self, body: bytes) -> None:
        sentence = read_refusal(body)
        assert len(sentence) <= 300
        assert sentence.isprintable()
        try:
            content = read_object(body)
        except RemoteError:
            assert sentence == ""
            return
        assert isinstance(content, dict)
        entry: Any = content.get("parameters")
        entry = entry.get("identity") if isinstance(entry, dict) else None
        assert configured_identity(content) == (entry.get("string_value") if isinstance(entry, dict) else None)


def logits(body: bytes, header: str, rows: int, classes: int) -> list[float] | None:
    """Logits of an answer, row by row; None where it is not exactly that."""
    if not (0 < len(header) < 9 and set(header) <= set("0123456789")) or int(header) > len(body):
        return None
    try:
        content = json.loads(body[: int(header)])
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("outputs"), list) or len(content["outputs"]) != 1:
        return None
    output, raw = content["outputs"][0], body[int(header) :]
    if not isinstance(output, dict) or not isinstance(output.get("parameters"), dict):
        return None
    size = output["parameters"].get("binary_data_size")
    if [output.get("name"), output.get("datatype"), output.get("shape")] != ["logits", "FP32", [rows, classes]]:
        return None
    if size != 4 * rows * classes or len(raw) != size:
        return None
    found = list(struct.unpack(f"<{rows * classes}f", raw))
    return found if all(map(math.isfinite, found)) else None

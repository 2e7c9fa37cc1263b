"""Bodies of REST: the rows that a server would compute on are those that the second reader reads."""

import json
import random
import struct
from types import SimpleNamespace
from typing import Any

from splitveil.serve.query import read_coefficients
from splitveil.serve.refusal import RefusedError
from splitveil.serve.rest_infer import read_query

from . import oracle
from .bundles import COEFFICIENTS, FINITE, IDENTITY, MAX_BATCH, valid_frame
from .frames import change_frame
from .target import Target, change_bytes, change_json

KINDS = (*COEFFICIENTS, *FINITE[:2], FINITE[5])
MODELS: list[Any] = [
    SimpleNamespace(messages=messages, frame_identity=IDENTITY, max_batch=MAX_BATCH) for messages, _ in KINDS
]
ALL_JSON = 2**24 - 1  # where there is no header that says how much is JSON


def joined(kind: int, length: int, body: bytes) -> bytes:
    """A case: which bundle, how much of the body is JSON, the body."""
    return bytes([kind]) + length.to_bytes(3, "little") + body


def apart(data: bytes) -> tuple[int, int, bytes]:
    """A case taken apart."""
    return data[0] % len(KINDS) if data else 0, int.from_bytes(data[1:4], "little"), data[4:]


class Requests(Target):
    """`read_query` and `read_coefficients` of REST."""

    def seeds(self) -> list[bytes]:
        rng, found = random.Random(0), []
        for kind, (_, facts) in enumerate(KINDS):
            for rows in (1, 2, MAX_BATCH):
                frame = b"".join([valid_frame(facts, random.Random(5))] * rows)
                shape = [rows, len(frame) // rows]
                tensor = {"name": "frame", "datatype": "UINT8", "shape": shape}
                found += _both_ways(kind, tensor, list(frame), frame)
                nested = [list(frame[i * shape[1] : (i + 1) * shape[1]]) for i in range(rows)]
                found.append(joined(kind, ALL_JSON, json.dumps({"inputs": [{**tensor, "data": nested}]}).encode()))
                floats = [rng.uniform(-2, 2) for _ in range(rows * facts.components * facts.places)]
                tensor = {
                    "name": "coefficients",
                    "datatype": "FP32",
                    "shape": [rows, facts.components, *facts.positions],
                }
                found += _both_ways(kind, tensor, floats, struct.pack(f"<{len(floats)}f", *floats))
        return found

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        kind, length, body = apart(data)
        if rng.random() < 0.03:
            kind = rng.randrange(len(KINDS))
        if length == ALL_JSON or length > len(body):
            return joined(kind, length if rng.random() < 0.98 else rng.randrange(200), change_json(body, rng))
        text, raw = body[:length], body[length:]
        choice = rng.random()
        if choice < 0.4:
            text = change_json(text, rng)
        elif choice < 0.7:
            raw = change_frame(raw, rng)
        elif choice < 0.9:
            raw = change_bytes(raw, rng, 2000)
        else:
            return joined(kind, max(0, length + rng.choice((-1, 1, 4, len(raw)))), body)
        return joined(kind, len(text), text + raw)

    def check(self, data: bytes) -> None:
        kind, length, body = apart(data)
        model, facts = MODELS[kind], KINDS[kind][1]
        json_length = None if length == ALL_JSON else length
        expected = oracle.read_request(body, json_length, facts, MAX_BATCH)
        try:
            found = read_coefficients(read_query(body, json_length).tensor, model)
        except RefusedError as refusal:
            assert refusal.reason == "invalid" or len(body) > 8000, refusal.reason
            assert expected is None, f"a valid request is refused: {refusal}"
            assert len(str(refusal)) < 1000
            return
        assert expected is not None, "a request is answered that must not be"
        assert found.shape == (len(expected), facts.components, *facts.positions)
        assert found.reshape(len(expected), -1).tolist() == expected


def _both_ways(kind: int, tensor: dict[str, Any], numbers: list[Any], raw: bytes) -> list[bytes]:
    """As JSON alone, and as JSON with raw bytes behind it."""
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    content = {"id": "a", "parameters": {}, "inputs": [{**tensor, "data": numbers}], "outputs": outputs}
    binary = {"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}
    text = json.dumps(binary).encode()
    return [joined(kind, ALL_JSON, json.dumps(content).encode()), joined(kind, len(text), text + raw)]

"""Coverage-guided fuzzing of everything that reads untrusted bytes, by Atheris.

    python tests/fuzzing.py TARGET [libFuzzer's options, such as -runs=1000000 or a folder of earlier inputs]

A target returns, or raises the named error; anything else is a finding, which Atheris prints and keeps.
"""

import contextlib
import struct
import sys
import zlib
from types import SimpleNamespace
from typing import Any

import atheris

with atheris.instrument_imports(include=["splitveil"]):
    from pydantic import ValidationError

    from splitveil.bundle import EdgeManifest, Messages, ServerManifest, from_frames, to_frames
    from splitveil.errors import WireError
    from splitveil.serve.query import read_coefficients
    from splitveil.serve.refusal import RefusedError
    from splitveil.serve.rest_infer import read_query
    from splitveil.wire import decode, encode

MESSAGES = Messages(
    components=4, positions=(3,), codings=("float32", "int8", "int4"), certified=False,
    scales={"int8": (0.5, 0.25, 0.125, 1.0), "int4": (1.0, 2.0, 3.0, 4.0)},
)  # fmt: skip

FINITE = Messages(components=3, positions=(), codings=("index",), scales={}, certified=True, levels=(5, 7, 11))


def sealed(data: bytes) -> bytes:
    """A frame with the right magic, version and checksum around arbitrary fields, so that the checks behind are met."""
    head = b"SV\x01" + data[:9].ljust(9, b"\0")
    payload = data[9:]
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


def frame(data: bytes) -> None:
    """A frame that is read is written back to the same bytes: there is one way to write each."""
    for bytes_ in (data, sealed(data)):
        with contextlib.suppress(WireError):
            assert encode(decode(bytes_)) == bytes_


def message(data: bytes) -> None:
    """Coefficients of a bundle's messages have its shape, whatever came."""
    for bytes_ in (data, sealed(data)):
        with contextlib.suppress(WireError):
            assert from_frames([bytes_], MESSAGES, bytes_[4:8]).shape == (1, 4, 3)


def finite(data: bytes) -> None:
    """A finite message that is read is written back to the same bytes: there are as many frames as messages."""
    for bytes_ in (
        data,
        sealed(data),
        sealed(b"\3" + data[:4].ljust(4, b"\0") + b"\1\0\2\0" + data[4:6].ljust(2, b"\0")),
    ):
        with contextlib.suppress(WireError):
            digits = from_frames([bytes_], FINITE, bytes_[4:8])
            assert to_frames(digits, FINITE, bytes_[4:8], m=3, coding="index") == [bytes_]


def manifest(data: bytes) -> None:
    """A manifest is one or is refused."""
    for model in (EdgeManifest, ServerManifest):
        with contextlib.suppress(ValidationError):
            model.model_validate_json(data)


MODELS: list[Any] = [
    SimpleNamespace(messages=messages, frame_identity=b"abcd", max_batch=8) for messages in (MESSAGES, FINITE)
]


def request(data: bytes) -> None:
    """A body is a query whose coefficients or digits have the bundle's shape, or is refused."""
    length = int.from_bytes(data[:2], "little")
    for body, json_length in ((data, None), (data[2:], length)):
        for model in MODELS:
            with contextlib.suppress(RefusedError):
                found = read_coefficients(read_query(body, json_length).tensor, model)
                assert found.shape[1:] == (model.messages.components, *model.messages.positions)
                assert 1 <= len(found) <= 8


TARGETS = {"frame": frame, "message": message, "finite": finite, "manifest": manifest, "request": request}


def main() -> None:
    """Fuzz the named target."""
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, lambda data: target(bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

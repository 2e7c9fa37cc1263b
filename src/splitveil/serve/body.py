"""Bodies of HTTP requests: received within limits, decompressed within limits."""

import zlib
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive

from splitveil.serve.refusal import RefusedError
from splitveil.serve.service import Service

# gzip, and zlib's own format, which is what HTTP calls deflate.
_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
_MOST_DIGITS = 15
COMPRESS_FROM = 1024
"""Answers that are shorter are not compressed: they would hardly shrink."""


@dataclass(slots=True)
class Head:
    """The headers that matter.

    Attributes:
        authorization: for `Tokens`.
        length: of the body as sent; None where the client does not say.
        json_length: how much of the body is JSON; None: all of it.
        encoding: of the body; empty where it is as it is.
        accepts: how the answer may be compressed.
    """

    authorization: bytes = b""
    length: int | None = None
    json_length: int | None = None
    encoding: bytes = b""
    accepts: bytes = b""


def read_head(headers: list[tuple[bytes, bytes]]) -> Head:
    """What matters of the headers; raises `RefusedError` where one is no number that should be."""
    head = Head()
    for name, value in headers:
        if name == b"inference-header-content-length":
            head.json_length = _number(name, value)
        elif name == b"content-length":
            head.length = _number(name, value)
        elif name == b"authorization":
            head.authorization = value
        elif name == b"content-encoding":
            head.encoding = b"" if value == b"identity" else value.strip().lower()
        elif name == b"accept-encoding":
            head.accepts = value.lower()
    return head


async def read_body(receive: Receive, head: Head, service: Service) -> bytes:
    """The body as it was before compression.

    Raises:
        RefusedError: it is too long, as sent or decompressed, was compressed in an unknown way, or never came whole.
    """
    most = service.settings.max_body
    if head.encoding and head.encoding not in _WINDOW:
        raise RefusedError("encoding", "bodies may be compressed by gzip or deflate, and in no other way")
    if head.length is not None and head.length > most:
        raise _too_long(most)
    message = await receive()
    if message["type"] != "http.request":
        raise RefusedError("slow", "the request ended early")
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        with service.buffering(most if head.length is None else head.length):
            body = await _rest(receive, body, most)
    elif len(body) > most:
        raise _too_long(most)
    return decompress(body, head.encoding, most) if head.encoding else body


async def _rest(receive: Receive, first: bytes, most: int) -> bytes:
    whole = bytearray(first)
    more = True
    while more:
        message: Any = await receive()
        if message["type"] != "http.request":
            raise RefusedError("slow", "the request ended early")
        whole += message.get("body", b"")
        more = message.get("more_body", False)
        if len(whole) > most:
            raise _too_long(most)
    return bytes(whole)


def decompress(body: bytes, encoding: bytes, most: int) -> bytes:
    """What was compressed; never allocates more than ``most`` bytes, however small the body."""
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    try:
        plain = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise RefusedError("invalid", f"the body is not compressed by {encoding.decode()} as it says") from error
    if len(plain) > most:
        raise _too_long(most)
    if not unpacker.eof or unpacker.unused_data:
        raise RefusedError("invalid", f"the body is not one whole stream of {encoding.decode()}")
    return plain


def compress(body: bytes, accepts: bytes) -> tuple[bytes, bytes]:
    """The body as the client accepts it, and the name of its encoding; empty where it stays as it is."""
    if not accepts or len(body) < COMPRESS_FROM:
        return body, b""
    wanted = [item.replace(b" ", b"") for item in accepts.split(b",")]
    for name in (b"gzip", b"deflate"):
        if any(item == name or (item.startswith(name + b";q=") and item.strip(b"0.")[-1:] != b"=") for item in wanted):
            packer = zlib.compressobj(1, zlib.DEFLATED, _WINDOW[name])
            return packer.compress(body) + packer.flush(), name
    return body, b""


def _number(name: bytes, value: bytes) -> int:
    if not value.isdigit() or len(value) > _MOST_DIGITS:
        raise RefusedError("invalid", f"the header {name.decode()} is no number of bytes")
    return int(value)


def _too_long(most: int) -> RefusedError:
    return RefusedError("large", f"a request has at most {most} bytes, also when decompressed; send fewer rows")

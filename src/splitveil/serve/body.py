"""Bodies of HTTP requests: received within limits, decompressed within limits."""

import asyncio
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import Receive, Scope

from splitveil.serve.refusal import RefusedError
from splitveil.serve.service import Service
from splitveil.serve.shares import Caller, Held

# gzip, and zlib's own format, which is what HTTP calls deflate.
_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
_MOST_DIGITS = 15
_READ = {
    b"host", b"accept-encoding", b"content-length", b"inference-header-content-length", b"authorization",
    b"content-encoding", b"origin", b"x-forwarded-for",
}  # fmt: skip
COMPRESS_FROM = 1024
"""Answers that are shorter are not compressed: they would hardly shrink."""
INLINE_BYTES = 2**14
"""Compressed or not, so much is packed or unpacked at once, which takes a tenth of a millisecond; more in a thread."""
PIECE = 2**20
"""Bytes that are unpacked before they are counted."""
MOST_RATIO, FREE_BYTES = 100, 2**18
"""Beyond the second, what is unpacked may be so many times what was sent. Numbers shrink tenfold at best; a bomb, by
which a few bytes cost much time, shrinks a thousandfold."""


@dataclass(slots=True)
class Head:
    """The headers that matter.

    Attributes:
        authorization: for `Tokens`.
        length: of the body as sent; None where the client does not say.
        json_length: how much of the body is JSON; None: all of it.
        encoding: of the body; empty where it is as it is.
        accepts: how the answer may be compressed.
        forwarded: addresses that proxies have seen; empty where there are none.
        origin: of the page that asks, which browsers say; None: no page does.
        host: of the server, as the client calls it.
    """

    authorization: bytes = b""
    length: int | None = None
    json_length: int | None = None
    encoding: bytes = b""
    accepts: bytes = b""
    forwarded: bytes = b""
    origin: bytes | None = None
    host: bytes = b""


def read_head(headers: list[tuple[bytes, bytes]]) -> Head:
    """What matters of the headers; raises `RefusedError` where one is no number that should be, or comes twice."""
    head = Head()
    for name, value in headers:
        if name not in _READ:
            continue
        if name == b"host":
            head.host = value
        elif name == b"accept-encoding":
            head.accepts = value.lower()
        elif name == b"content-length":
            head.length = _number(name, value)
        elif name == b"inference-header-content-length":
            _once(name, head.json_length is None)
            head.json_length = _number(name, value)
        elif name == b"authorization":
            _once(name, not head.authorization)
            head.authorization = value
        elif name == b"content-encoding":
            _once(name, not head.encoding)
            head.encoding = b"" if value == b"identity" else value.strip().lower()
        elif name == b"origin":
            _once(name, head.origin is None)
            head.origin = value
        elif name == b"x-forwarded-for":
            head.forwarded += b"," + value
    return head


def let_in(service: Service, scope: Scope, head: Head) -> Caller:
    """Under which names a request counts.

    Raises:
        RefusedError: it needs a token and has none, or a page of another origin has a browser change or ask something,
            which browsers do with the rights of the machine that they run on.
    """
    if scope["method"] == "POST" and head.origin is not None:
        _, separator, authority = head.origin.lower().partition(b"://")
        if not separator or not authority or authority != head.host.lower():
            raise RefusedError("forbidden", "pages of another origin may not ask this server")
    client = scope.get("client")
    return service.let_in(client[0] if client else "", head.authorization, head.forwarded)


async def read_body(receive: Receive, head: Head, held: Held, most: int) -> bytes | bytearray:
    """The body as it was sent, counted as it comes.

    Args:
        receive: of ASGI.
        head: of the request.
        held: counts the bytes.
        most: bytes of the body.

    Raises:
        RefusedError: it is too long, there is no room for it, or it never came whole.
    """
    if head.encoding and head.encoding not in _WINDOW:
        raise RefusedError("encoding", "bodies may be compressed by gzip or deflate, and in no other way")
    if head.length is not None and head.length > most:
        raise _too_long(most)
    whole: bytes | bytearray = b""
    more = True
    while more:
        message: Any = await receive()
        if message["type"] != "http.request":
            raise RefusedError("slow", "the request ended early")
        part: bytes = message.get("body", b"")
        held.add(len(part))
        more = message.get("more_body", False)
        if not whole and not more:
            whole = part
        else:
            whole = whole if isinstance(whole, bytearray) else bytearray(whole)
            whole += part
        if len(whole) > most:
            raise _too_long(most)
    return whole


async def decompress(
    body: bytes | bytearray, encoding: bytes, held: Held, most: int, service: Service, caller: Caller
) -> bytes | bytearray:
    """What was compressed; never allocates much more than ``most`` bytes, however small the body.

    Args:
        body: as sent.
        encoding: of the body.
        held: counts the bytes.
        most: bytes of the result.
        service: lends a thread.
        caller: who waits for it.

    Raises:
        RefusedError: it is too long, shrank too well to be numbers, or is not one whole stream.
    """
    packed = _Packed(body, encoding)
    most = min(most, max(FREE_BYTES, MOST_RATIO * len(body)))
    plain = bytearray()
    try:
        if len(body) <= INLINE_BYTES:
            plain += packed.read(INLINE_BYTES)
            held.add(len(plain))
        while not packed.ended and len(plain) <= most:
            part = await service.aside(caller, partial(packed.read, PIECE))
            if not part and not packed.ended:
                break
            held.add(len(part))
            plain += part
    except zlib.error as error:
        raise RefusedError("invalid", f"the body is not compressed by {encoding.decode()} as it says") from error
    if len(plain) > most:
        raise _too_long(most)
    if not packed.whole:
        raise RefusedError("invalid", f"the body is not one whole stream of {encoding.decode()}")
    return plain


class _Packed:
    """A compressed body that is unpacked piece by piece, however little comes of one."""

    def __init__(self, body: bytes | bytearray, encoding: bytes) -> None:
        self._stream = zlib.decompressobj(_WINDOW[encoding])
        self._rest = memoryview(body)

    @property
    def ended(self) -> bool:
        return self._stream.eof

    @property
    def whole(self) -> bool:
        return self._stream.eof and not self._stream.unused_data and not self._rest

    def read(self, most: int) -> bytes:
        """The next bytes, at most so many; none where the body ends early."""
        found = bytearray()
        while len(found) < most and not self._stream.eof:
            piece: bytes | memoryview = self._stream.unconsumed_tail
            if not piece:
                piece, self._rest = self._rest[:INLINE_BYTES], self._rest[INLINE_BYTES:]
            part = self._stream.decompress(piece, most - len(found))
            if not part and not piece:
                break
            found += part
        return bytes(found)


async def compress(body: bytes, accepts: bytes) -> tuple[bytes, bytes]:
    """The body as the client accepts it, and the name of its encoding; empty where it stays as it is."""
    wanted = [item.replace(b" ", b"") for item in accepts.split(b",")]
    for name in (b"gzip", b"deflate"):
        if any(item == name or (item.startswith(name + b";q=") and item.strip(b"0.")[-1:] != b"=") for item in wanted):
            pack = partial(_pack, body, name)
            return (pack() if len(body) <= INLINE_BYTES else await asyncio.to_thread(pack)), name
    return body, b""


def _pack(body: bytes, encoding: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, _WINDOW[encoding])
    return packer.compress(body) + packer.flush()


def _once(name: bytes, first: bool) -> None:
    if not first:
        raise RefusedError("invalid", f"the header {name.decode()} comes twice; send it once")


def _number(name: bytes, value: bytes) -> int:
    if not value.isdigit() or len(value) > _MOST_DIGITS:
        raise RefusedError("invalid", f"the header {name.decode()} is no number of bytes")
    return int(value)


def _too_long(most: int) -> RefusedError:
    return RefusedError("large", f"this request has at most {most} bytes, also when decompressed; send fewer rows")

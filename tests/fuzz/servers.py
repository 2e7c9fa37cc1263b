"""Hostile servers: a real client believes exactly the answers that are right, and ends with one sentence otherwise."""

import asyncio
import copy
import json
import random
import ssl
from contextlib import suppress
from typing import Self

from splitveil.client import Access, Answer, AsyncEdgeClient, Patience
from splitveil.client.connection import Connection
from splitveil.client.patience import Clock
from splitveil.errors import RemoteError

from . import answers
from .manifests import BUNDLE
from .target import Target, change_bytes, change_json

MARK = b"\r\n=== next request ===\r\n"  # between what is said to one request and to the next
FRAMES = [bytes.fromhex(text) for text in json.loads((BUNDLE / "answers.json").read_bytes())["frames"]]
IDENTITY = json.loads((BUNDLE / "edge" / "manifest.json").read_bytes())["identity"]
CLASSES = 3
PATIENCE = Patience(timeout=5, deadline=10, retries=0, first_wait=0)
TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
SILENCE = 0.01  # seconds without a further request, after which a connection is closed
LINES = (
    b"Content-Encoding: gzip", b"Content-Encoding: identity", b"Transfer-Encoding: chunked", b"Content-Length: 5",
    b"Content-Length: 99999999999", b"Content-Length: -1", b"Location: http://127.0.0.1:1/", b"Retry-After: 1e9",
    b"Retry-After: 99999999999999999999", b"Retry-After: Fri, 31 Dec 9999 23:59:59 GMT", b"Connection: close",
    b"Inference-Header-Content-Length: 5", b"Inference-Header-Content-Length: \xb2", b"X: " + b"a" * 200_000,
    b"X: \xff\xfe", b": a", b" folded", b"Set-Cookie: a=b; Domain=.", b"Upgrade: h2c",
    b"Content-Type: text/html; charset=x",
)  # fmt: skip
FIRST = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 301 Moved", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 400 Bad", b"HTTP/1.1 401 Unauthorized",
    b"HTTP/1.1 404 Not Found", b"HTTP/1.1 407 Proxy", b"HTTP/1.1 429 Too Many", b"HTTP/1.1 500 \x1b[2J",
    b"HTTP/1.1 503 Busy", b"HTTP/1.1 999 X", b"HTTP/1.1 1 X", b"HTTP/1.0 200 OK", b"HTTP/2.0 200 OK", b"HTTP/0.9", b"",
    b"\x15\x03\x01\x00\x02\x02\x28", b"\0\0\x12\x04\0\0\0\0\0", b"SSH-2.0-x", b"HTTP/1.1 200", b"HTTP/1.1 -200 OK",
)  # fmt: skip


def reply(body: bytes, *lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """A valid answer of HTTP."""
    return b"\r\n".join((first, b"Content-Length: %d" % len(body), *lines, b"", b"")) + body


class _Plain(Access):
    """For plain HTTP: no authorities, which are read for a hundredth of a second."""

    def trust(self) -> ssl.SSLContext:
        return TRUST


class Servers(Target):
    """`AsyncEdgeClient`, which asks who is there, then for logits. A case is what is said, request by request."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._said: list[bytes] = []
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._url = url
        self._client = AsyncEdgeClient(BUNDLE / "edge", url)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._loop.run_until_complete(self._server.wait_closed())
        self._loop.close()

    def seeds(self) -> list[bytes]:
        who = reply(json.dumps({"name": "old", "versions": ["1"], "identity": IDENTITY}).encode())
        text, raw = answers.written(len(FRAMES), CLASSES)
        right = reply(text + raw, b"Inference-Header-Content-Length: %d" % len(text))
        older = reply(json.dumps({"name": "old", "versions": ["2", "1"], "identity": "ab" * 32}).encode())
        triton = reply(json.dumps({"name": "old", "versions": ["1"]}).encode())
        config = reply(json.dumps({"parameters": {"identity": {"string_value": IDENTITY}}}).encode())
        refused = reply(b'{"error": "a sentence"}', first=b"HTTP/1.1 400 Bad Request")
        chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nInference-Header-Content-Length: %d\r\n\r\n" % len(
            text
        )
        chunks += b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(text), text, len(raw), raw)
        return [
            MARK.join(said)
            for said in (
                (who, right), (who, right), (who, chunks), (older, older, who, right), (triton, config, right),
                (who, refused, who), (who, refused, older, older, who, right),
            )
        ]  # fmt: skip

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        said = data.split(MARK)
        place = rng.randrange(len(said))
        head, gap, body = said[place].partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        line = rng.randrange(len(lines))
        match rng.randrange(8):
            case 0:
                lines.insert(line + 1, rng.choice(LINES))
            case 1:
                lines[0] = rng.choice(FIRST)
            case 2:
                lines[line] = change_bytes(lines[line], rng, 70_000)
            case 3:
                del lines[line]
            case 4 | 5:
                end = body.rfind(b"}") + 1
                body = change_json(body[:end], rng, answers.KEYS) + body[end:]
                lines = [
                    b"Content-Length: %d" % len(body) if each.startswith(b"Content-Length") else each for each in lines
                ]
            case 6:
                said.insert(place, said[place])
                return MARK.join(said)
            case _:
                body = change_bytes(body, rng, 70_000)
        said[place] = b"\r\n".join(lines) + gap + body
        return MARK.join(said)

    def check(self, data: bytes) -> None:
        self._said = data.split(MARK)
        try:
            found = self._loop.run_until_complete(self._ask())
        except RemoteError as error:
            assert str(error).isprintable()
            assert len(str(error)) < 1000
            return
        # What is believed is one of the things that were said, read by another reader.
        right = [logits for said in data.split(MARK) for logits in _logits(said)]
        assert [answer.logits.tolist() for answer in found] in right, "an answer is believed that was not given"

    async def _ask(self) -> list[Answer]:
        client = copy.copy(self._client)  # a new one, but for the bundle, whose reading would take most of the time
        client._connection = Connection(self._url, _Plain(), PATIENCE, None, Clock())
        try:
            return await client.ask(FRAMES)
        finally:
            await client.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say the next thing to each request; what is asked does not matter."""
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            while self._said:
                async with asyncio.timeout(SILENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                    lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                    await reader.readexactly(int(lines[0][15:]) if lines else 0)
                if self._said:
                    writer.write(self._said.pop(0))
                    await writer.drain()
        writer.close()


def _logits(said: bytes) -> list[list[list[float]]]:
    """Logits of an answer, whatever its head says of how long it is."""
    found = []
    for body in _bodies(said):
        for end in range(len(body)):
            if body[end : end + 1] == b"}":
                rows = answers.logits(body[: end + 1 + 4 * len(FRAMES) * CLASSES], str(end + 1), len(FRAMES), CLASSES)
                if rows is not None:
                    found.append([rows[start : start + CLASSES] for start in range(0, len(rows), CLASSES)])
    return found


def _bodies(said: bytes) -> list[bytes]:
    """The body, as it is and out of chunks."""
    body = said.rpartition(b"HTTP/1.1 200 OK")[2].partition(b"\r\n\r\n")[2] or said.partition(b"\r\n\r\n")[2]
    joined, rest = b"", body
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        with suppress(ValueError):
            length = int(size.partition(b";")[0], 16)
            joined, rest = joined + rest[:length], rest[length + 2 :]
            continue
        break
    return [body, joined]

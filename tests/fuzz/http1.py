"""Raw HTTP/1: what is answered is what another parser (h11) finds in the same bytes, and the answers are right."""

import contextlib
import gzip
import json
import random
import re
import struct
from typing import NamedTuple

import h11

from .bundles import MAX_BATCH
from .oracle import read_request
from .served import COMPONENTS, INFER, Served
from .target import change_bytes, change_json

STATUSES = {100, 200, 400, 403, 404, 405, 408, 413, 415, 417, 431}  # of what is refused; 500 is a fault, 503 for others
LINES = (
    b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: +5", b"Content-Length: 5, 5", b"Content-Length : 5",
    b"Content-Length: 99999999999999999999", b"Content-Length:", b"Content-Length: -1", b"Content-Length: 0x5",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: identity",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\x0bchunked", b"Host: y", b"Host:", b"Host: x, y", b" folded", b"\tfolded", b": nameless",
    b"Name", b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade, HTTP2-Settings",
    b"Upgrade: h2c", b"Upgrade: websocket", b"Expect: 100-continue", b"Expect: 200-ok", b"Origin: http://evil",
    b"Content-Encoding: gzip", b"Content-Encoding: br", b"Accept-Encoding: gzip;q=0.5, deflate", b"Trailer: X",
    b"Inference-Header-Content-Length: 10", b"Inference-Header-Content-Length: 99999", b"Authorization: Bearer a",
    b"Inference-Header-Content-Length: -1", b"X: " + b"a" * 9000, b"X: \xff\xfe", b"X: a\0b", b"X-Forwarded-For: ::1",
    b"Authorization: Bearer b", b"Cookie: a=b",
)  # fmt: skip
FIRST = (
    b"GET / HTTP/1.1", b"GET  / HTTP/1.1", b"GET /v2 HTTP/1.1 ", b"GET /v2 HTTP/1.0", b"GET /v2 HTTP/0.9", b"GET /v2",
    b"GET /v2 HTTP/2.0", b"GET http://x/v2 HTTP/1.1", b"GET http://evil/v2 HTTP/1.1", b"CONNECT x:1 HTTP/1.1",
    b"OPTIONS * HTTP/1.1", b"HEAD /v2 HTTP/1.1", b"PRI * HTTP/2.0", b"get /v2 HTTP/1.1", b"GET /v2?a=%00 HTTP/1.1",
    b"GET /v2/models/..%2f..%2fetc HTTP/1.1", b"GET /v2/models/" + b"a" * 5000 + b" HTTP/1.1", b"GET /v2#a HTTP/1.1",
    b"GET /metrics HTTP/1.1", b"GET //evil/v2 HTTP/1.1", b"GET /v2/ HTTP/1.1", b"POST /v2/models/made/infer HTTP/1.1",
    b"DELETE /v2/models/made HTTP/1.1", b"GET /v2/models/m\xff HTTP/1.1", b"\x16\x03\x01\x02\x00\x01", b"",
)  # fmt: skip
CHUNKS = (
    b"5\r\n",
    b"5;a=b\r\n",
    b"0005\r\n",
    b"5 \r\n",
    b"ffffffffffffffff\r\n",
    b"-5\r\n",
    b"5\n",
    b"0\r\n",
    b"g\r\n",
)


class Request(NamedTuple):
    """What another parser finds: complete, or the last one cut off."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes
    complete: bool


class Answer(NamedTuple):
    """One answer of the server."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Http1(Served):
    """The port of REST."""

    def seeds(self) -> list[bytes]:
        numbers = [0.5] * COMPONENTS
        tensor = {"name": "coefficients", "datatype": "FP32", "shape": [1, COMPONENTS]}
        plain = json.dumps({"id": "a", "inputs": [{**tensor, "data": numbers}]}).encode()
        raw = struct.pack(f"<{COMPONENTS}f", *numbers)
        header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}).encode()
        packed = gzip.compress(plain, 1, mtime=0)
        length = b"Inference-Header-Content-Length: %d" % len(header)
        gets = [request(b"GET", path) for path in
                (b"/v2/health/live", b"/v2/health/ready", b"/v2", b"/v2/models/made", b"/v2/models/made/config",
                 b"/v2/models/made/versions/1/ready", b"/v2/models/stats", b"/metrics")]  # fmt: skip
        posts = [
            post(plain), post(header + raw, length), post(packed, b"Content-Encoding: gzip"),
            post(plain, b"Expect: 100-continue"), post(plain, b"Accept-Encoding: gzip"), chunked(plain),
            chunked(plain, 7), request(b"POST", b"/v2/repository/index", b"{}"),
            request(b"POST", b"/v2/repository/models/made/load", b"{}"),
        ]  # fmt: skip
        return [*gets, *posts * 3, posts[0] + gets[0] + posts[1], gets[0] * 3, posts[5] + posts[0]]

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        head, gap, body = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        place = rng.randrange(len(lines))
        match rng.randrange(10):
            case 0:
                lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(LINES))
            case 1:
                lines[0] = rng.choice(FIRST)
            case 2:
                lines.insert(place, lines[place])
            case 3:
                del lines[place]
            case 4:
                lines[place] = change_bytes(lines[place], rng)
            case 5:
                lines[place] = lines[place].replace(
                    b": ", rng.choice((b":", b" : ", b":\t", b": \r", b"\n", b":\r\n ")), 1
                )
            case 6:
                end = rng.choice((b"\n", b"\r", b"\r\r\n", b" \r\n"))
                return end.join(lines) + rng.choice((gap, end * 2)) + body
            case 7 if b"chunked" in head:
                body = body.replace(
                    rng.choice((b"\r\n", b"0\r\n\r\n", body[: body.find(b"\r\n") + 2])), rng.choice(CHUNKS), 1
                )
            case 7 | 8:
                return resized(lines, change_json(body, rng))
            case _:
                return change_bytes(data, rng)
        return b"\r\n".join(lines) + gap + body

    def check(self, data: bytes) -> None:
        asked = requests_in(data)
        answers = answers_in(self._exchange(data), [request.method for request in asked])
        for answer in answers:
            assert answer.status in STATUSES, f"status {answer.status}: {answer.body[:200]!r}"
            assert b"location" not in answer.headers
        final = [answer for answer in answers if answer.status != 100]
        for answer, request in zip(final, asked, strict=False):
            if answer.status == 200:
                self._check_answer(answer, request)
        for answer in final[len(asked) :]:
            assert answer.status != 200, "a request is answered that another parser does not see"

    def _check_answer(self, answer: Answer, request: Request) -> None:
        if request.method == b"HEAD":
            return
        content = answer.body
        if answer.headers.get(b"content-encoding") == b"gzip":
            content = gzip.decompress(content)
        if request.method != b"POST" or not request.target.endswith(b"/infer"):
            return  # whose body nobody waits for
        assert request.complete, "a request is answered that another parser takes for unfinished"
        body = request.body
        if request.headers.get(b"content-encoding", b"identity").strip().lower() in (b"gzip", b"x-gzip"):
            body = gzip.decompress(body)
        elif request.headers.get(b"content-encoding", b"identity") != b"identity":
            return
        length = request.headers.get(b"inference-header-content-length")
        rows = read_request(body, None if length is None else int(length), self.facts, MAX_BATCH)
        assert rows is not None, "a request is answered that must not be"
        json_length = answer.headers.get(b"inference-header-content-length")
        if json_length is None:
            self.check_logits(json.loads(content)["outputs"][0]["data"], rows)
        else:
            self.check_logits(
                struct.unpack(f"<{(len(content) - int(json_length)) // 4}f", content[int(json_length) :]), rows
            )

    def _exchange(self, data: bytes) -> bytes:
        """Everything that comes back on a connection of its own."""
        found = b""
        with self.connect(self.server.host) as connection, contextlib.suppress(ConnectionError):
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                connection.shutdown(1)
            while part := connection.recv(65_536):
                found += part
        return found


def request(method: bytes, path: bytes, body: bytes | None = None, *lines: bytes) -> bytes:
    """A valid request."""
    length = () if body is None else (b"Content-Length: %d" % len(body),)
    return b"\r\n".join((method + b" " + path + b" HTTP/1.1", b"Host: x", *length, *lines, b"", b"")) + (body or b"")


def post(body: bytes, *lines: bytes) -> bytes:
    """A valid inference."""
    return request(b"POST", INFER.encode(), body, *lines)


def chunked(body: bytes, size: int = 10_000) -> bytes:
    """The same in chunks."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return request(b"POST", INFER.encode(), None, b"Transfer-Encoding: chunked") + b"".join(
        b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b"")
    )


def resized(lines: list[bytes], body: bytes) -> bytes:
    """With the length of its body."""
    found = [
        b"Content-Length: %d" % len(body) if line.lower().startswith(b"content-length:") else line for line in lines
    ]
    return b"\r\n".join(found) + b"\r\n\r\n" + body


def requests_in(data: bytes) -> list[Request]:
    """What h11 finds, until something is no request."""
    # Empty lines before a request, and more than one space in its first line, are harmless, and h11 knows neither.
    data = re.sub(rb"\r\n\r\n(\r\n)+(?=[A-Z]+ )", b"\r\n\r\n", data)
    data = re.sub(rb"(?m)^([A-Z]+) +(\S+) +HTTP/", rb"\1 \2 HTTP/", data.lstrip(b"\r\n"))
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    parser.receive_data(data)
    parser.receive_data(b"")
    found: list[Request] = []
    with contextlib.suppress(h11.RemoteProtocolError):
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                found.append(Request(event.method, event.target, dict(event.headers), b"", False))
            elif isinstance(event, h11.Data):
                found[-1] = found[-1]._replace(body=found[-1].body + bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                found[-1] = found[-1]._replace(complete=True)
                parser.send(h11.Response(status_code=400, headers=[("content-length", "0")]))
                parser.send(h11.EndOfMessage())
                if parser.our_state is not h11.DONE:
                    break
                parser.start_next_cycle()
            else:
                break
    return found


def answers_in(data: bytes, methods: list[bytes]) -> list[Answer]:
    """The answers, each of which must be valid and whole."""
    found: list[Answer] = []
    number = 0
    while data:
        head, gap, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        status = re.fullmatch(rb"HTTP/1\.[01] (\d{3}) [ -~]*", first)
        assert gap, f"no answer: {data[:100]!r}"
        assert status, f"no answer: {data[:100]!r}"
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
        code = int(status[1])
        # Who refuses a head that is no valid one does not go by its method.
        last = headers.get(b"connection") == b"close" and rest
        empty = code == 100 or (methods[number : number + 1] == [b"HEAD"] and not last)
        size = 0 if empty else int(headers[b"content-length"])
        assert len(rest) >= size, "an answer is cut off"
        found.append(Answer(code, headers, rest[:size]))
        number += code != 100
        data = rest[size:]
    return found

"""Raw HTTP/1: what two servers could read in two ways is refused, what is legal is answered, each request once."""

import contextlib
import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest

from made_server import HANGING, Half, Server, server_bundle, serving

INFER = b"/v2/models/made/infer"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return server_bundle(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--timeout", 5) as running:
        yield running


@pytest.fixture(scope="module")
def body(folder: Path) -> bytes:
    data = Half(folder).random(1, 6).ravel().tolist()
    return json.dumps(
        {"inputs": [{"name": "coefficients", "datatype": "FP32", "shape": [1, 6], "data": data}]}
    ).encode()


def connect(server: Server) -> socket.socket:
    host, port = server.host.split(":")
    return socket.create_connection((host, int(port)), timeout=HANGING)


def everything(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            found += part
    return found


def told(server: Server, sent: bytes) -> bytes:
    """All that the server says to some bytes, after which the client closes its side."""
    with closing(connect(server)) as connection:
        with contextlib.suppress(OSError):  # where it does not want to hear the rest
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        return everything(connection)


def statuses(said: bytes) -> list[int]:
    return [int(part[:3]) for part in re.split(rb"HTTP/1\.1 (?=\d{3} )", said)[1:]]


def post(body: bytes, *fields: bytes, version: bytes = b"1.1") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"POST %s HTTP/%s\r\nHost: x\r\n%s\r\n%s" % (INFER, version, lines, body)


GET = b"GET /v2/health/live HTTP/1.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
AMBIGUOUS = {
    "no Host": GET + b"\r\n",
    "an empty Host": GET + b"Host:\r\n\r\n",
    "two Hosts": GET + b"Host: x\r\nHost: y\r\n\r\n",
    "the same Host twice": GET + b"Host: x\r\nhost: x\r\n\r\n",
    "two names in a Host": GET + b"Host: x, y\r\n\r\n",
    "a user in a Host": GET + b"Host: x@y\r\n\r\n",
    "a path in a Host": GET + b"Host: x/y\r\n\r\n",
    "two authorizations": LIVE + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
    "two origins": LIVE + b"Origin: http://x\r\nOrigin: http://y\r\n\r\n",
    "two types": LIVE + b"Content-Type: a/b\r\nContent-Type: c/d\r\n\r\n",
    "two codings of the body": post(b"", b"Content-Encoding: gzip", b"Content-Encoding: gzip", b"Content-Length: 0"),
    "two lengths": post(b"{}", b"Content-Length: 2", b"Content-Length: 3"),
    "the same length twice": post(b"{}", b"Content-Length: 2", b"Content-Length: 2"),
    "a list of lengths": post(b"{}", b"Content-Length: 2, 2"),
    "a signed length": post(b"{}", b"Content-Length: +2"),
    "a hexadecimal length": post(b"{}", b"Content-Length: 0x2"),
    "an overflowing length": post(b"{}", b"Content-Length: 18446744073709551618"),
    "a length and chunks": post(b"0\r\n\r\n", b"Content-Length: 5", CHUNKED),
    "chunks and a length": post(b"0\r\n\r\n", CHUNKED, b"Content-Length: 5"),
    "chunks in HTTP/1.0": post(b"0\r\n\r\n", CHUNKED, version=b"1.0"),
    "chunks twice": post(b"0\r\n\r\n", CHUNKED, CHUNKED),
    "another coding before chunks": post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked"),
    "another coding after chunks": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, gzip"),
    "identity": post(b"{}", b"Transfer-Encoding: identity"),
    "almost chunks": post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"),
    "a control character before chunks": post(b"0\r\n\r\n", b"Transfer-Encoding: \x0bchunked"),
    "a blank before the colon": post(b"0\r\n\r\n", b"Transfer-Encoding : chunked"),
    "a folded header": LIVE + b"X: a\r\n b\r\n\r\n",
    "a folded first header": GET + b" Host: x\r\n\r\n",
    "bare line feeds": b"GET /v2/health/live HTTP/1.1\nHost: x\n\n",
    "a bare line feed in the headers": LIVE + b"X: a\nY: b\r\n\r\n",
    "a bare carriage return": LIVE + b"X: a\rY: b\r\n\r\n",
    "a NUL in a value": LIVE + b"X: a\0b\r\n\r\n",
    "a NUL in a name": LIVE + b"X\0: a\r\n\r\n",
    "a header without a colon": LIVE + b"Xyz\r\n\r\n",
    "a header without a name": LIVE + b": a\r\n\r\n",
    "an unknown method": b"FOO /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2.0 in one line": b"GET /v2/health/live HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/0.9 in one line": b"GET /v2/health/live HTTP/0.9\r\nHost: x\r\n\r\n",
    "a URL of another host": b"GET http://evil/v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "a URL of another scheme": b"GET ftp://x/v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "no path": b"GET v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n",
    "a fragment": b"GET /v2/health/live#x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a control character in the path": b"GET /v2/health/live\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an overflowing chunk": post(b"10000000000000002\r\n{}\r\n0\r\n\r\n", CHUNKED),
    "a signed chunk": post(b"+2\r\n{}\r\n0\r\n\r\n", CHUNKED),
    "a hexadecimal chunk": post(b"0x2\r\n{}\r\n0\r\n\r\n", CHUNKED),
    "a blank after a chunk's size": post(b"2 \r\n{}\r\n0\r\n\r\n", CHUNKED),
    "a chunk that is longer than it says": post(b"1\r\n{}\r\n0\r\n\r\n", CHUNKED),
    "a bare line feed after a chunk's size": post(b"2\n{}\r\n0\r\n\r\n", CHUNKED),
    "a line feed in a chunk's extension": post(b"2;a\nb\r\n{}\r\n0\r\n\r\n", CHUNKED),
    "a length behind chunks": post(b"2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n", CHUNKED),
}  # fmt: skip


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_what_could_be_read_in_two_ways_is_refused_and_ends_the_connection(server: Server, sent: bytes) -> None:
    said = told(server, sent + LIVE + b"\r\n")
    assert statuses(said) == [400]
    assert b"connection: close\r\n" in said


def test_other_expectations_than_a_go_on_are_refused(server: Server, body: bytes) -> None:
    length = b"Content-Length: %d" % len(body)
    assert statuses(told(server, post(body, length, b"Expect: more"))) == [417]
    assert statuses(told(server, post(body, length, b"Expect: 100-continue"))) == [100, 200]
    assert statuses(told(server, post(body, length, b"Expect: 100-continue", version=b"1.0"))) == [200]


LEGAL = {
    "an older client without a Host": b"GET /v2/health/live HTTP/1.0\r\n\r\n",
    "a port in the Host": GET + b"Host: x:80\r\n\r\n",
    "an IPv6 address in the Host": GET + b"Host: [::1]:8000\r\n\r\n",
    "a URL of the same host": b"GET http://X:80/v2/health/live HTTP/1.1\r\nHost: x:80\r\n\r\n",
    "empty lines before": b"\r\n\r\n" + LIVE + b"\r\n",
    "an offer of HTTP/2": LIVE + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n",
    "an offer of a web socket": LIVE + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a query behind the path": b"GET /v2/health/live?x=y HTTP/1.1\r\nHost: x\r\n\r\n",
    "a body where none is read": LIVE + b"Content-Length: 2\r\n\r\n{}",
}  # fmt: skip


@pytest.mark.parametrize("sent", LEGAL.values(), ids=LEGAL.keys())
def test_what_is_legal_is_answered(server: Server, sent: bytes) -> None:
    assert statuses(told(server, sent)) == [200]


@pytest.mark.parametrize("parts", [1, 7, 10_000])
def test_chunks_with_extensions_are_answered_however_they_come(server: Server, body: bytes, parts: int) -> None:
    size = max(1, len(body) // parts)
    chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for i in range(0, len(body), size)
                      if (part := body[i : i + size]))  # fmt: skip
    assert statuses(told(server, post(chunks + b"0\r\n\r\n", CHUNKED))) == [200]


def test_a_header_behind_the_body_is_no_header(folder: Path, body: bytes, tmp_path: Path) -> None:
    """A proxy that strips or checks what is before the body would not see it."""
    (tmp_path / "tokens").write_text("correct-horse-battery-staple\n")
    with serving(folder, "--token-file", tmp_path / "tokens") as server:
        token = b"Authorization: Bearer correct-horse-battery-staple\r\n"
        chunks = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
        assert statuses(told(server, post(chunks + token + b"\r\n", CHUNKED))) == [401]
        assert statuses(told(server, post(chunks + b"\r\n", CHUNKED, token.strip()))) == [200]


def test_a_client_that_has_closed_its_side_gets_every_answer(server: Server, body: bytes) -> None:
    request = post(body, b"Content-Length: %d" % len(body))
    assert statuses(told(server, request)) == [200]
    assert statuses(told(server, 5 * request)) == [200] * 5
    assert statuses(told(server, request + request[:-1])) == [200, 400]
    assert statuses(told(server, request + LIVE)) == [200, 400]
    assert told(server, b"") == b""


def test_many_requests_at_once_are_answered_one_by_one(server: Server, body: bytes) -> None:
    """More bytes than a head may have, in one piece and in several, and a body of more than a step among them."""
    padded = body + b" " * 100_000
    request = post(padded, b"Content-Length: %d" % len(padded))
    small = 2000 * (LIVE + b"\r\n")
    assert len(small) > 2**16
    assert statuses(told(server, small + request + small + request)) == [200] * 4002


def test_nonsense_behind_requests_is_refused_after_they_are_answered(server: Server, body: bytes) -> None:
    request = post(body, b"Content-Length: %d" % len(body))
    assert statuses(told(server, 2 * request + b"nonsense\r\n\r\n" + request)) == [200, 200, 400]
    bad = post(b"zz\r\n", CHUNKED)
    assert statuses(told(server, 2 * request + bad + request)) == [200, 200, 400]


@pytest.mark.parametrize("size", [60_000, 66_000])
def test_only_the_bytes_of_one_head_count(server: Server, size: int) -> None:
    head = LIVE + b"X: " + b"y" * size + b"\r\n\r\n"
    expected = [200, 200, 200] if size < 2**16 else [200, 431]
    assert statuses(told(server, LIVE + b"\r\n" + 2 * head)) == expected


def test_too_many_headers_are_refused(server: Server) -> None:
    assert statuses(told(server, LIVE + b"X: y\r\n" * 99 + b"\r\n")) == [200]
    assert statuses(told(server, LIVE + b"X: y\r\n" * 100 + b"\r\n")) == [431]


@pytest.mark.parametrize("path", ["/v2/", "/v2/health/live/", "/v2/models/made/", "//evil.example/", "/metrics/"])
def test_nobody_is_redirected(server: Server, path: str) -> None:
    said = told(server, f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode())
    assert statuses(said) == [404]
    assert b"location" not in said.lower()


def test_pages_of_other_origins_may_not_post(server: Server, body: bytes) -> None:
    paths = ["/v2/models/made/infer", "/v2/repository/index", "/v2/repository/models/made/load",
             "/v2/repository/models/made/unload"]  # fmt: skip
    with httpx.Client(base_url=server.rest) as client:
        for path in paths:
            for origin in ("http://evil.example", "null", "", server.rest + "0", "http://" + server.host.split(":")[0]):
                reply = client.post(path, content=body, headers={"Origin": origin})
                assert (reply.status_code, "another origin" in reply.text) == (403, True), (path, origin)
        assert client.get("/v2/health/ready").status_code == 200  # nothing was unloaded
        for origin in (server.rest, server.rest.upper().replace("HTTP", "http")):
            assert client.post(paths[0], content=body, headers={"Origin": origin}).status_code == 200


def test_health_is_an_object(server: Server) -> None:
    """KServe's client reads one."""
    with httpx.Client(base_url=server.rest) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        assert client.get("/v2/models/made/ready").json() == {"name": "made", "ready": True}


def test_a_client_that_resets_its_connection_is_no_exception(server: Server, body: bytes) -> None:
    several = 8 * (post(body, b"Content-Length: %d" % len(body)) + LIVE + b"\r\n")
    for _ in range(40):
        with closing(connect(server)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets
            connection.sendall(several)


def test_answers_are_right_after_all_that(server: Server, folder: Path, body: bytes) -> None:
    half = Half(folder)
    reply = httpx.post(server.rest + INFER.decode(), content=body)
    np.testing.assert_allclose(reply.json()["outputs"][0]["data"], half.logits(half.random(1, 6))[0], 1e-4, 1e-4)
    server.stop()
    logged = {json.loads(line)["event"] for line in server.log.splitlines()}
    assert logged <= {"loaded", "ready", "load", "unload", "draining", "stopped"}  # nothing went wrong

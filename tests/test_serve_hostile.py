"""Slow, silent, endless, oversized and senseless clients: others are answered, and memory stays bounded."""

import contextlib
import gzip
import json
import random
import resource
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from fuzz.http2 import END_HEADERS, HEADERS, PREFACE, RESET, SETTINGS, Part, header, written
from made_server import HANGING, Half, Server, server_bundle, serving

MIB = 2**20
INFER = "/v2/models/made/infer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return server_bundle(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--timeout", 1, "--max-body", 1) as running:
        yield running


@pytest.fixture
def half(folder: Path) -> Half:
    return Half(folder)


def connect(server: Server) -> socket.socket:
    host, port = server.host.split(":")
    return socket.create_connection((host, int(port)), timeout=HANGING)


def question(half: Half) -> bytes:
    sent = half.random(1, 6)
    tensor = {"name": "coefficients", "datatype": "FP32", "shape": [1, 6], "data": sent.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def answers(server: Server, half: Half) -> bool:
    """Whether a normal client is answered rightly."""
    reply = httpx.post(server.rest + INFER, verify=False, content=question(half), timeout=HANGING)
    expected = half.logits(half.random(1, 6))
    return reply.status_code == 200 and np.allclose(reply.json()["outputs"][0]["data"], expected, 1e-4, 1e-4)


def everything(connection: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            found += part
    return found


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"P",
        b"\r\n",
        b"POST /v2/models/made/infer HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /v2/models/made/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"POST /v2/models/made/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=["silence", "one byte", "an empty line", "in a header", "in a body", "in a chunk", "in a body nobody reads"],
)
def test_clients_that_stop_half_way_are_cut_off(server: Server, half: Half, start: bytes) -> None:
    with closing(connect(server)) as connection:
        connection.sendall(start)
        assert answers(server, half)
        assert everything(connection).startswith((b"HTTP/1.1 408 Request Timeout\r\n", b"HTTP/1.1 200 OK\r\n"))
    assert answers(server, half)


def test_a_byte_now_and_then_does_not_buy_time(server: Server, half: Half) -> None:
    with closing(connect(server)) as connection:
        connection.sendall(b"POST /v2/models/made/infer HTTP/1.1\r\n")
        connection.settimeout(0.1)
        found, sent = b"", 0
        while not found and sent < 10 * HANGING:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"X: y\r\n")
                sent += 1
            with contextlib.suppress(TimeoutError):
                found = connection.recv(100)
        assert found.startswith(b"HTTP/1.1 408 ")
    assert answers(server, half)


def test_an_idle_connection_after_a_request_is_no_slow_one(server: Server, half: Half) -> None:
    """The time of reading does not run between requests; an empty line between them does not stop the clock."""
    body = question(half)
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (INFER.encode(), len(body), body)
    with closing(connect(server)) as idle, closing(connect(server)) as other:
        for connection in (idle, other):
            connection.sendall(request)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        other.sendall(b"\r\n")
        assert everything(other) == b""  # takes longer than the time of reading
        idle.sendall(request)
        assert idle.recv(65_536).startswith(b"HTTP/1.1 200")


def test_requests_sent_at_once_over_one_connection_are_answered_in_order(server: Server, half: Half) -> None:
    body = question(half)
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (INFER.encode(), len(body), body)
    health = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n%s\r\n"
    with closing(connect(server)) as connection:
        connection.sendall(request + health % b"" + request + health % b"Connection: close\r\n")
        found = everything(connection)
    assert found.count(b"HTTP/1.1 200 OK\r\n") == 4
    assert [len(part) > 200 for part in found.split(b"HTTP/1.1 200 OK\r\n")[1:]] == [True, False, True, False]


def test_a_client_that_takes_no_answer_is_cut_off(server: Server, half: Half) -> None:
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.host.split(":")
        connection.connect((host, int(port)))
        connection.settimeout(HANGING)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
            while True:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
    assert answers(server, half)


@pytest.mark.parametrize("chunked", [False, True])
def test_oversized_bodies_are_refused_before_they_are_there(server: Server, half: Half, chunked: bool) -> None:
    with closing(connect(server)) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode()
        if chunked:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(3):
                    connection.sendall(b"%x\r\n%s\r\n" % (MIB // 2, b" " * (MIB // 2)))
        else:
            connection.sendall(head + b"Content-Length: 1048577\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")
    assert answers(server, half)


@pytest.mark.parametrize(
    "piece", [b"A" * 1000, b"X-H: " + b"y" * 1000 + b"\r\n"], ids=["one endless", "endlessly many"]
)
def test_endless_headers_are_refused(server: Server, half: Half, piece: bytes) -> None:
    with closing(connect(server)) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX: y")
            connection.sendall(b"" if piece.startswith(b"A") else b"\r\n")
            for _ in range(2000):
                connection.sendall(piece)
        assert everything(connection)[:13] in (b"HTTP/1.1 431 ", b"")
    assert answers(server, half)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bombs_are_refused_unexploded(server: Server, half: Half, encoding: str) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    bomb = b"".join([*(packer.compress(bytes(MIB)) for _ in range(150)), packer.flush()])
    assert len(bomb) < MIB
    before = server.peak()
    for _ in range(3):
        reply = httpx.post(
            server.rest + INFER, verify=False, content=bomb, headers={"Content-Encoding": encoding}, timeout=HANGING
        )
        assert reply.status_code == 413
    assert server.peak() - before < 30 * MIB
    assert answers(server, half)


def test_grpc_bombs_and_oversized_messages(server: Server, half: Half) -> None:
    before = server.peak()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        values = np.zeros((3 * MIB, 6), np.float32)
        tensor = triton_grpc.InferInput("coefficients", list(values.shape), "FP32")
        tensor.set_data_from_numpy(values)
        for algorithm in (None, "gzip"):
            with pytest.raises(InferenceServerException) as caught:
                client.infer("made", [tensor], compression_algorithm=algorithm)
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert server.peak() - before < 30 * MIB
    assert answers(server, half)


def test_senseless_bytes_on_both_ports(server: Server, half: Half) -> None:
    noise = random.Random(0)
    for port in (server.host, server.grpc):
        host, number = port.split(":")
        for size in (1, 10, 100, 1000, 100_000) * 4:
            with (
                closing(socket.create_connection((host, int(number)), timeout=HANGING)) as connection,
                contextlib.suppress(BrokenPipeError, ConnectionResetError),
            ):
                connection.sendall(noise.randbytes(size) if size % 100 else b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                connection.sendall(noise.randbytes(size))
    for _ in range(200):
        body = bytearray(question(half))
        for _ in range(noise.randrange(1, 8)):
            body[noise.randrange(len(body))] = noise.randrange(256)
        reply = httpx.post(server.rest + INFER, verify=False, content=bytes(body))
        assert reply.status_code in (200, 400)
    assert answers(server, half)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        assert client.is_server_live()
    assert not server.events("fault")


def test_a_thousand_idle_connections(folder: Path, half: Half) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip("this system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    try:
        with serving(folder, "--timeout", HANGING) as server, ExitStack() as stack:
            assert answers(server, half)
            before = server.peak()
            for number in range(1000):
                connection = stack.enter_context(closing(connect(server)))
                connection.sendall(b"POST / HTTP/1.1\r\nHost" if number % 2 else b"")
                if number % 100 == 0:
                    assert answers(server, half)
            assert answers(server, half)
            assert server.peak() - before < 64 * MIB
            with triton_grpc.InferenceServerClient(server.grpc) as client:
                assert client.is_server_ready()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_connections_are_told_to_come_back(folder: Path, half: Half) -> None:
    with serving(folder, "--max-connections", 3) as server:
        with ExitStack() as stack:
            held = [stack.enter_context(closing(connect(server))) for _ in range(3)]
            extra = stack.enter_context(closing(connect(server)))
            said = everything(extra)
            assert said.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"retry-after: 1\r\n" in said
            held[0].sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert held[0].recv(1000).startswith(b"HTTP/1.1 200")
        for _ in range(100):  # until the server has seen that they have left
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(server.rest + "/v2/health/live", verify=False).status_code == 200:
                    break
        assert answers(server, half)


@pytest.mark.parametrize("arrived", [1, 900_000])
def test_bodies_on_their_way_share_a_bound_by_what_has_come(tmp_path: Path, arrived: int) -> None:
    """Of three bodies that declare a megabyte, those that bring it do not all fit; those that bring nothing do."""
    import asyncio

    from splitveil.serve import Settings, application, open_models

    settings = Settings(max_body=MIB, max_buffered=2 * MIB, max_connections=8, share=1)
    folder = server_bundle(tmp_path / "bundle", positions=(64, 64))  # whose requests may be long
    app = application(open_models([folder], settings), settings)
    release = asyncio.Event()
    statuses = []

    async def ask() -> None:
        parts = iter([{"type": "http.request", "body": bytes(arrived), "more_body": True}])

        async def receive() -> object:
            for part in parts:
                return part
            await release.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await app(
            {"type": "http", "method": "POST", "path": INFER, "headers": [(b"content-length", b"1000000")],
             "query_string": b"", "root_path": ""}, receive, send,
        )  # fmt: skip

    async def three() -> None:
        tasks = [asyncio.create_task(ask()) for _ in range(3)]
        for _ in range(100):  # turns of the loop, in which all has come that will
            await asyncio.sleep(0)
        assert statuses == ([503] if arrived > 1 else [])
        release.set()
        await asyncio.gather(*tasks)
        assert app.state.service.buffered.used == 0

    asyncio.run(three())


def test_bodies_that_are_being_answered_share_the_bound(folder: Path, half: Half) -> None:
    """As they are when decompressed, and by either protocol."""
    import asyncio
    import os
    import signal

    import tritonclient.grpc.aio as triton_grpc_aio

    from splitveil.serve import Addresses, Settings, open_models, serve

    settings = Settings(http_port=0, grpc_port=0, max_buffered=1000)
    large = question(half) + b" " * 2000
    bodies = [(question(half), {}), (large, {}), (gzip.compress(large), {"Content-Encoding": "gzip"})]

    async def ask(addresses: Addresses) -> tuple[list[int], list[object]]:
        async with httpx.AsyncClient(base_url=addresses.rest, timeout=HANGING) as client:
            replies = [await client.post(INFER, content=content, headers=headers) for content, headers in bodies]
        found: list[object] = []
        async with triton_grpc_aio.InferenceServerClient(addresses.grpc) as client:
            for rows in (1, 60):
                tensor = triton_grpc_aio.InferInput("coefficients", [rows, 6], "FP32")
                tensor.set_data_from_numpy(half.random(rows, 6))
                try:
                    await client.infer("made", [tensor])
                    found.append(None)
                except InferenceServerException as error:
                    found.append(error.status())
        return [reply.status_code for reply in replies], found

    async def run() -> tuple[list[int], list[object]]:
        ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
        serving_it = asyncio.create_task(serve(open_models([folder], settings), settings, ready.set_result))
        try:
            return await ask(await ready)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await serving_it

    assert len(gzip.compress(large)) < 1000
    assert asyncio.run(run()) == ([200, 503, 503], [None, "StatusCode.RESOURCE_EXHAUSTED"])


def test_more_requests_than_allowed_get_503_and_resource_exhausted(tmp_path: Path) -> None:
    import asyncio

    import tritonclient.grpc.aio as triton_grpc_aio

    folder = server_bundle(tmp_path / "bundle", work=40)
    half = Half(folder)

    async def many(server: Server) -> list[int]:
        async with httpx.AsyncClient(verify=False, base_url=server.rest, timeout=HANGING) as client:
            replies = await asyncio.gather(*(client.post(INFER, content=question(half)) for _ in range(8)))
            for reply in replies:
                assert (reply.headers.get("retry-after") == "1") == (reply.status_code == 503)
            return sorted(reply.status_code for reply in replies)

    async def many_calls(server: Server) -> list[object]:
        async with triton_grpc_aio.InferenceServerClient(server.grpc) as client:
            sent = half.random(1, 6)
            tensor = triton_grpc_aio.InferInput("coefficients", [1, 6], "FP32")
            tensor.set_data_from_numpy(sent)
            found = await asyncio.gather(*(client.infer("made", [tensor]) for _ in range(8)), return_exceptions=True)
            return [item.status() if isinstance(item, InferenceServerException) else None for item in found]

    with serving(folder, "--max-requests", 2) as server:
        codes = asyncio.run(many(server))
        assert set(codes) == {200, 503}
        statuses = asyncio.run(many_calls(server))
        assert set(statuses) == {None, f"StatusCode.{grpc.StatusCode.RESOURCE_EXHAUSTED.name}"}
        text = httpx.get(server.rest + "/metrics", verify=False).text
        refused = codes.count(503) + sum(status is not None for status in statuses)
        assert f'splitveil_refusals_total{{reason="busy"}} {refused}.0' in text


def test_gzip_of_several_members_or_with_a_tail_is_refused(server: Server, half: Half) -> None:
    body = gzip.compress(question(half))
    for bad in (body + body, body + b"tail"):
        reply = httpx.post(server.rest + INFER, verify=False, content=bad, headers={"Content-Encoding": "gzip"})
        assert reply.status_code == 400


def connected(host: str, port: int) -> socket.socket:
    """A connection to a port that may just be opened again."""
    end = time.monotonic() + HANGING
    while True:
        try:
            return socket.create_connection((host, port), timeout=HANGING)
        except ConnectionError:
            assert time.monotonic() < end
            time.sleep(0.001)


def test_a_path_that_is_no_text_ends_no_port(server: Server, half: Half) -> None:
    """gRPC must go on, or be back at once; what is logged of each such call stays under the log's bounds."""
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", b"/\xfe"),
              (b"te", b"trailers"), (b"content-type", b"application/grpc"))  # fmt: skip
    block = b"".join(header(*field) for field in fields)
    call = [Part(SETTINGS, 0, 0, b""), Part(HEADERS, END_HEADERS, 1, block)]
    host, port = server.grpc.split(":")
    before = len(server.log)
    for broken_off in (False, True):
        for _ in range(20):
            with closing(connected(host, int(port))) as connection, contextlib.suppress(OSError):  # ended with the port
                connection.sendall(PREFACE + written(call + [Part(RESET, 0, 1, bytes(4))] * broken_off))
                connection.shutdown(socket.SHUT_WR)
                everything(connection)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        tensor = triton_grpc.InferInput("coefficients", [1, 6], "FP32")
        tensor.set_data_from_numpy(half.random(1, 6))
        end = time.monotonic() + HANGING
        while True:
            try:
                found = client.infer("made", [tensor], client_timeout=HANGING).as_numpy("logits")
                break
            except InferenceServerException as error:
                # For which clients ask again.
                if error.status() != "StatusCode.UNAVAILABLE" or time.monotonic() > end:
                    raise
    assert np.allclose(found, half.logits(half.random(1, 6)), 1e-4, 1e-4)
    assert server.events("ready")  # every line is one object
    assert len(server.log) - before < 64_000


def test_what_is_no_json_and_no_number_is_refused(server: Server, half: Half) -> None:
    frame = json.dumps({"name": "frame", "datatype": "UINT8", "shape": [1, 2], "data": [1, 2]})
    reply = httpx.post(server.rest + INFER, content=question(half)[:-1] + b', "x": NaN}', timeout=HANGING)
    assert (reply.status_code, "no JSON" in reply.text) == (400, True)
    for data in ("[1, true]", "[false, 2]", "[[true, 2]]"):
        body = f'{{"inputs": [{frame.replace("[1, 2]}", data + "}")}]}}'
        reply = httpx.post(server.rest + INFER, content=body.encode(), timeout=HANGING)
        assert (reply.status_code, "no UINT8" in reply.text) == (400, True)


def test_nothing_is_written_behind_a_refusal(server: Server, half: Half) -> None:
    """Such as the word that a body may come, whose head was good and whose chunks are none."""
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n" % INFER.encode()
    before = len(server.events("lost exception"))
    with closing(connect(server)) as connection:
        connection.sendall(head + b"no chunk\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 400 ")
    assert answers(server, half)
    assert len(server.events("lost exception")) == before

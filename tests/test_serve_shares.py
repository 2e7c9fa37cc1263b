"""Who takes what from whom: pools, addresses, the port for probes, large requests, calls of gRPC, file descriptors."""

import asyncio
import contextlib
import gzip
import json
import random
import resource
import socket
import subprocess
import sys
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
from tritonclient.grpc import service_pb2

from made_server import HANGING, Half, Server, server_bundle, serving
from splitveil.errors import ServeError
from splitveil.serve import Settings, application, open_models
from splitveil.serve.grpc_calls import MOST_FIELDS, check_fields
from splitveil.serve.refusal import RefusedError
from splitveil.serve.shares import Addresses, Held, Pool, network_of

KIB, MIB = 2**10, 2**20
INFER = "/v2/models/made/infer"
METHOD = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return server_bundle(tmp_path_factory.mktemp("served") / "bundle", positions=(16, 16))  # long requests are right


@pytest.fixture(scope="module")
def half(folder: Path) -> Half:
    return Half(folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, "--timeout", 1, "--health-port", 0, "--max-connections", 40) as running:
        yield running


def question(half: Half, rows: int = 1) -> dict[str, object]:
    sent = half.random(rows, 1)
    return {"inputs": [{"name": "coefficients", "datatype": "FP32", "shape": list(sent.shape),
                        "data": sent.ravel().tolist()}]}  # fmt: skip


def binary(rows: int) -> tuple[bytes, dict[str, str]]:
    values = np.zeros((rows, 6, 16, 16), np.float32).tobytes()
    tensor = {"name": "coefficients", "datatype": "FP32", "shape": [rows, 6, 16, 16],
              "parameters": {"binary_data_size": len(values)}}  # fmt: skip
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + values, {"Inference-Header-Content-Length": str(len(head))}


def connect(address: str, own: str = "127.0.0.1") -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=HANGING, source_address=(own, 0))


def answered(server: Server, half: Half, own: str = "127.0.0.1") -> bool:
    """Whether an honest client of some address gets what is right."""
    with httpx.Client(transport=httpx.HTTPTransport(local_address=own), timeout=HANGING) as client:
        reply = client.post(server.rest + INFER, json=question(half))
    expected = half.logits(half.random(1, 1))
    return reply.status_code == 200 and np.allclose(reply.json()["outputs"][0]["data"], expected, 1e-3, 1e-3)


def first_line(connection: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(65_536).partition(b"\r\n")[0]
    return b""


def test_a_pool_never_holds_too_much_and_always_has_room_for_a_newcomer() -> None:
    noise = random.Random(0)
    pool, held = Pool(1000, 0.75), dict.fromkeys("abcdef", 0)
    for _ in range(5000):
        name, amount = noise.choice("abcdef"), noise.randrange(1, 50)
        if noise.random() < 0.7:
            taken = pool.take((name,), amount)
            assert not (taken and held[name]) or pool.fits(("new",))  # who has some leaves some
            held[name] += amount if taken else 0
        elif held[name]:
            amount = min(amount, held[name])
            pool.give((name,), amount)
            held[name] -= amount
        assert pool.used == sum(held.values()) <= 1000
    assert Pool(1, 0.5).take(("a",))
    assert Pool(1000, 0.75).fits(("a",), 750)
    assert not Pool(1000, 0.75).fits(("a",), 751)
    assert Pool(1000, 1.0).fits(("a",), 1000)
    assert Pool(1000, 0.75).fits((), 1000)  # a trusted proxy
    both = Pool(1000, 0.5)
    assert both.take(("address", "token"), 400)
    assert not both.fits(("other", "token"), 200)  # the token's share, from wherever it comes
    assert both.fits(("other", "another"), 200)


def test_held_bytes_count_beyond_the_free_ones_and_are_given_back() -> None:
    pool = Pool(100, 1.0)
    with Held(pool, ("a",), 10, lambda: RefusedError("busy", "full")) as held:
        held.add(10)
        assert pool.used == 0
        held.add(50)
        assert pool.used == 50
        with pytest.raises(RefusedError, match="full"):
            held.add(51)
        held.set(20)
        assert pool.used == 10
    assert pool.used == 0


def test_addresses_are_networks_of_one_client_and_only_trusted_proxies_are_believed() -> None:
    assert network_of("192.0.2.7") == "192.0.2.7"
    assert network_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert network_of("2001:db8:1:2:3::4") == network_of("2001:db8:1:2::") == "2001:db8:1:2::/64"
    assert network_of("fe80::1%eth0") == "fe80::/64"
    alone = Addresses(())
    assert alone.caller("192.0.2.7", b"198.51.100.1") == ("192.0.2.7",)
    behind = Addresses(("10.0.0.0/8", "::1"))
    assert behind.caller("192.0.2.7", b"198.51.100.1") == ("192.0.2.7",)
    assert behind.caller("10.1.2.3", b"203.0.113.9, 198.51.100.1, 10.9.9.9") == ("198.51.100.1",)
    assert behind.caller("::1", b"2001:db8::5") == ("2001:db8::/64",)
    assert behind.caller("10.1.2.3") == ()
    for nonsense in (b"", b"unknown", b"198.51.100.1, nonsense", b"\xff"):
        assert behind.caller("10.1.2.3", nonsense) == ()
    with pytest.raises(ServeError, match="no address or network"):
        Settings(trusted_proxies=("10.0.0.0/33",))
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ServeError, match="share"):
            Settings(share=share)


def test_bodies_that_stop_half_way_refuse_nobody(folder: Path, half: Half) -> None:
    """By what they declare they would fill the memory many times over."""
    with serving(folder, "--timeout", HANGING, "--max-buffered", 4) as server, ExitStack() as stack:
        for number in range(32):
            connection = stack.enter_context(closing(connect(server.rest)))
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n"
            connection.sendall(head.encode() + bytes(30_000 if number % 2 else 1))
        assert answered(server, half)
        sent, headers = binary(64)  # nearly as much as one of them declares: what those leave would be less
        assert httpx.post(server.rest + INFER, content=sent, headers=headers).status_code == 200
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            tensor = triton_grpc.InferInput("coefficients", [64, 6, 16, 16], "FP32")
            tensor.set_data_from_numpy(np.zeros((64, 6, 16, 16), np.float32))
            client.infer("made", [tensor])


def test_memory_that_one_address_has_filled_has_room_for_small_bodies_and_for_another_address(
    folder: Path, half: Half
) -> None:
    options = ["--timeout", HANGING, "--max-buffered", 4, "--max-connections", 40]
    with serving(folder, *options) as server, ExitStack() as stack:
        sent, headers = binary(32)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sent)}\r\n\r\n".encode()
        full = []
        for _ in range(24):
            connection = stack.enter_context(closing(connect(server.rest)))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(head + sent[:-1])
            full.append(connection)

        def post(own: str) -> int:
            with httpx.Client(transport=httpx.HTTPTransport(local_address=own), timeout=HANGING) as client:
                return client.post(server.rest + INFER, content=sent, headers=headers).status_code

        # What was sent arrives at its own pace; the address is refused once it has its share.
        end = time.monotonic() + HANGING
        while post("127.0.0.1") != 503:
            assert time.monotonic() < end
        assert post("127.0.0.2") == 200
        assert answered(server, half)
        assert answered(server, half, "127.0.0.2")
        assert httpx.get(server.rest + "/v2/health/ready").json() == {"ready": True}


def test_one_address_leaves_connections_to_others_and_probes_have_a_port_of_their_own(
    server: Server, half: Half
) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(closing(connect(server.rest))) for _ in range(40)]
        said = [first_line(connection) for connection in held[30:]]
        assert said == [b"HTTP/1.1 503 Service Unavailable"] * 10
        assert answered(server, half, "127.0.0.2")
        health = server.said["health"]
        with httpx.Client(base_url=health) as client:
            for path, content in (("/v2/health/live", {"live": True}), ("/v2/health/ready", {"ready": True})):
                reply = client.get(path)
                assert (reply.status_code, reply.json()) == (200, content)
            assert 'splitveil_open_connections{protocol="rest"} 30.0' in client.get("/metrics").text
            for path in ("/v2", "/v2/models/made", INFER):
                assert client.get(path).status_code == client.post(path).status_code == 404


def test_the_port_for_probes_needs_no_token_and_no_certificate(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("correct-horse-battery-staple\nanother-token-of-some-length\n")
    with serving(folder, "--token-file", tmp_path / "tokens", "--health-port", 0) as server:
        assert httpx.get(server.rest + "/metrics").status_code == 401
        assert httpx.get(server.said["health"] + "/metrics").status_code == 200


def test_ready_says_what_an_inference_would_be_told(folder: Path) -> None:
    settings = Settings(max_requests=4)
    app = application(open_models([folder], settings), settings)
    service = app.state.service

    async def ask(own: str) -> tuple[int, int, int]:
        transport = httpx.ASGITransport(app, client=(own, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://made") as client:
            infer = await client.post(INFER, json=question(Half(folder)))
            ready = await client.get("/v2/health/ready")
            model = await client.get("/v2/models/made/ready")
            return infer.status_code, ready.status_code, model.status_code

    for taken, statuses in ((2, (200, 200)), (3, (503, 200)), (0, (200, 200))):
        while service.in_flight.used < taken:
            assert service.in_flight.take(("192.0.2.1",))
        while service.in_flight.used > taken:
            service.in_flight.give(("192.0.2.1",))
        for own, status in zip(("192.0.2.1", "192.0.2.2"), statuses, strict=True):
            assert asyncio.run(ask(own)) == (status,) * 3


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"0," * 9999 + b"0", 413),
        (b"0" * 700_000, 413),
        (b"[]," * 9999 + b"[]", 413),
        (b"0," * 8000 + b"0", 400),
    ],
    ids=["many numbers", "one long number", "many lists", "as many as may be, of a wrong shape"],
)
def test_json_that_takes_long_to_read_is_refused_unread(server: Server, text: bytes, status: int) -> None:
    body = (b'{"inputs": [{"name": "coefficients", "datatype": "FP32", "shape": [1, 1, 16, 16], "data": ['
            + text + b"]}]}")  # fmt: skip
    reply = httpx.post(server.rest + INFER, content=body, timeout=HANGING)
    assert reply.status_code == status
    assert ("binary tensors" in reply.json()["error"]) == (status == 413)


def test_numbers_beyond_those_of_json_come_in_binary_or_by_a_setting(folder: Path, half: Half, server: Server) -> None:
    sent = half.random(40, 1)
    assert sent.size > 8192
    assert httpx.post(server.rest + INFER, json=question(half, 40), timeout=HANGING).status_code == 413
    with serving(folder, "--max-json-numbers", 20_000) as larger:
        reply = httpx.post(larger.rest + INFER, json=question(half, 40), timeout=HANGING)
    np.testing.assert_allclose(
        np.reshape(reply.json()["outputs"][0]["data"], (40, 4)), half.logits(sent), rtol=1e-3, atol=1e-3
    )
    sent_bytes, headers = binary(40)
    assert httpx.post(server.rest + INFER, content=sent_bytes, headers=headers).status_code == 200


def test_a_body_longer_than_any_that_is_right_is_refused_before_it_comes(server: Server) -> None:
    with closing(connect(server.rest)) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {4 * MIB}\r\n\r\n".encode())
        assert first_line(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_large_compressed_bodies_are_answered_and_bombs_cost_little(server: Server, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    noise = np.random.default_rng(0).normal(size=(32, 6, 16, 16)).astype(np.float32).tobytes()
    plain, headers = binary(32)
    plain = plain[: -len(noise)] + noise
    headers["Content-Encoding"] = encoding
    sent = pack(plain)
    assert len(sent) > 128 * KIB
    assert httpx.post(server.rest + INFER, content=sent, headers=headers).status_code == 200
    bomb = pack(bytes(800 * KIB))  # no longer than a request may be, and a thousand times what is sent
    assert httpx.post(server.rest + INFER, content=bomb, headers=headers).status_code == 413
    for bad in (sent[:-1], sent + b"x", sent[: len(sent) // 2], sent + sent):
        assert httpx.post(server.rest + INFER, content=bad, headers=headers).status_code == 400


def test_a_call_of_which_nothing_comes_ends_in_time(server: Server) -> None:
    async def stall() -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            call = channel.stream_unary(METHOD)()
            return await asyncio.wait_for(call.code(), HANGING)

    assert asyncio.run(stall()) == grpc.StatusCode.DEADLINE_EXCEEDED


def test_calls_of_one_address_leave_room_for_another(folder: Path, half: Half) -> None:
    async def stall(server: Server) -> list[grpc.StatusCode | None]:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            calls = [channel.stream_unary(METHOD)() for _ in range(8)]
            done, open_ones = await asyncio.wait(
                [asyncio.ensure_future(call.code()) for call in calls], return_when=asyncio.FIRST_COMPLETED
            )
            codes = {each.result() for each in done}
            assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            text = httpx.get(server.said["health"] + "/metrics").text
            assert 'splitveil_open_connections{protocol="grpc"} 6.0' in text
            assert len(open_ones) >= 6
            for call in calls:
                call.cancel()
            return [code.result() for code in done]

    with serving(folder, "--timeout", HANGING, "--max-connections", 8, "--health-port", 0) as server:
        assert asyncio.run(stall(server))
        assert answered(server, half)


def test_messages_that_are_none_or_fall_apart_are_refused(server: Server, half: Half) -> None:
    bomb = b"\x2a\0" * (2 * MIB)  # empty inputs: half a gigabyte, decoded

    async def ask(content: bytes) -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            return await channel.unary_unary(METHOD)(content).code()

    before = server.peak()
    assert asyncio.run(ask(bomb)) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.peak() - before < 64 * MIB
    for content in (b"\xff", b"\x0a\xff" + bytes(100), b"\x0a\xff\xff\xff\x0f" + bytes(200 * KIB), b"\x0a\x05made"):
        assert asyncio.run(ask(content)) == grpc.StatusCode.INVALID_ARGUMENT
    assert answered(server, half)
    assert not server.events("fault")


def test_fields_are_counted_as_they_are_decoded() -> None:
    message = service_pb2.ModelInferRequest
    good = message(model_name="made", id="x" * 200)
    one = good.inputs.add(name="frame", datatype="UINT8", shape=[1, 2])
    one.contents.uint_contents.extend(range(1000))
    one.parameters["a"].int64_param = 1
    good.raw_input_contents.append(bytes(3000))
    left = check_fields(memoryview(good.SerializeToString()), message.DESCRIPTOR)
    assert MOST_FIELDS - 20 < left < MOST_FIELDS
    parts = {
        "inputs": b"\x2a\0", "in another spelling": b"\xaa\x80\x80\x80\x00\0", "unknown": b"\xfa\x01\0",
        "parameters": b"\x22\0", "raw": b"\x3a\0", "numbers": b"\x58\1", "fixed": b"\x5d\0\0\0\0",
    }  # fmt: skip
    for name, part in parts.items():
        assert check_fields(memoryview(part * MOST_FIELDS), message.DESCRIPTOR) == 0, name
        assert check_fields(memoryview(part * (MOST_FIELDS + 1)), message.DESCRIPTOR) < 0, name
    for tag in (b"\x2a", b"\xaa\x80\x80\x80\x70"):  # the second has bits beyond the 32 that count
        nested = tag + b"\x80\xc0\x00" + b"\x22\0" * 4096  # parameters in an input
        assert check_fields(memoryview(nested), message.DESCRIPTOR) < 0
    contents = b"\x10" * 2_000_000  # numbers of an input's contents, each a byte
    for tag in (b"\x12", b"\x2a", b"\x2a"):
        contents = tag + _number(len(contents)) + contents
    assert check_fields(memoryview(contents), message.DESCRIPTOR) < 0
    assert check_fields(memoryview(b"\x2b" + parts["inputs"] * 5), message.DESCRIPTOR) < 0  # a group hides nothing


def _number(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def test_connections_beyond_the_file_descriptors_are_refused_counted_and_logged(folder: Path, half: Half) -> None:
    """The limit is the system's: of files, beside those that the process needs anyhow."""
    limit = 128
    command = [sys.executable, "-m", "splitveil", "serve", str(folder), "--http-port", "0", "--grpc-port", "0",
               "--json", "--health-port", "0", "--timeout", str(HANGING)]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    ) as process:  # fmt: skip
        try:
            server = Server(process)
            with ExitStack() as stack:
                held = [stack.enter_context(closing(connect(server.rest))) for _ in range(limit)]
                assert first_line(held[-1]) == b"HTTP/1.1 503 Service Unavailable"
                text = httpx.get(server.said["health"] + "/metrics").text
                counted = float(text.partition("\nsplitveil_descriptors_exhausted_total ")[2].split()[0])
                assert counted >= 10
            end = time.monotonic() + HANGING
            while len(list(Path(f"/proc/{process.pid}/fd").iterdir())) > limit - 40:
                assert time.monotonic() < end
            assert answered(server, half)
            assert server.stop() == 0
            assert server.events("file descriptors are exhausted")
        finally:
            process.kill()


def test_metrics_asked_for_without_end_are_not_written_each_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings()
    app = application(open_models([folder], settings), settings)
    metrics, written = app.state.service.metrics, []
    real = metrics.text
    monkeypatch.setattr(metrics, "text", lambda: written.append(real()) or written[-1])

    async def ask() -> list[bytes]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://made") as client:
            return [(await client.get("/metrics")).content for _ in range(100)]

    found = asyncio.run(ask())
    assert len(written) < 50
    assert found[0] == written[0]
    assert set(found) == set(written)

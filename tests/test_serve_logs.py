"""Logs that strangers cannot fill, that never block, and that hold no content; who asked for what."""

import contextlib
import json
import logging
import os
import socket
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2

from made_server import HANGING, Half, server_bundle, serving
from splitveil.serve import logs, throttle
from splitveil.serve.logs import LONGEST_TEXT, Lines, own
from splitveil.serve.throttle import Throttle

SERVICE = "/inference.GRPCInferenceService/"
INFER = "/v2/models/made/infer"
SECRET = "1.2345678"


class Log:
    """A logger whose lines go into a file, or into another open descriptor."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        self.lines = Lines(os.open(path, os.O_CREAT | os.O_WRONLY) if descriptor is None else descriptor)
        self.logger = logging.Logger("splitveil.made")
        self.logger.addHandler(self.lines)

    def all(self) -> list[dict[str, object]]:
        """What was written until the end."""
        self.lines.close()
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


def record(site: int, **more: object) -> logging.LogRecord:
    made = logging.LogRecord(f"logger{site % 100}", logging.ERROR, "file", site, "event", (), None)
    vars(made).update(more)
    return made


def test_an_hour_of_every_flood_at_once_stays_below_a_megabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(throttle.time, "monotonic", lambda: now)
    made, written, asked = Throttle(), 0, 0
    floods = [[record(site) for site in range(50)], [record(0, caller=(f"address {n}",)) for n in range(50)]]
    for step in range(3600):
        now = float(step)
        for flood in floods:
            for one in flood:
                asked += 1
                if made.open(one):
                    made.spend(one, 1000)
                    written += 1
    assert 1000 * written + 60 * 1000 <= 1_000_000  # with a line each minute that says what was suppressed
    assert written > 500
    assert made.suppressed.total() == asked - written
    assert len(made.suppressed) <= throttle.LABELS + 1


def test_no_flood_hides_another_kind_nor_the_operators_lines_nor_control(log: Log) -> None:
    for _ in range(2000):
        log.logger.error("a flood %s", "x" * 100)
    log.logger.error("another kind")
    log.logger.info("load", extra={"fields": {"outcome": "done"}, "caller": ("127.0.0.1", "", "done")})
    for number in range(300):
        log.logger.info("own", extra=own(number=number, text="x" * 900))
    found = log.all()
    events = [item["event"] for item in found]
    assert 20 < sum(str(event).startswith("a flood") for event in events) < 200
    assert (events.count("another kind"), events.count("load"), events.count("own")) == (1, 1, 300)
    (said,) = [item["lines"] for item in found if item["event"] == "lines suppressed"]
    assert said == {"splitveil.made a flood %s": log.lines.throttle.suppressed["splitveil.made", "a flood %s"]}


def test_a_reader_that_does_not_read_stops_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "PATIENCE", 0.1)
    read, write = os.pipe()
    log = Log(tmp_path / "none", write)
    for _ in range(6000):  # more than the pipe and the memory for lines take
        log.logger.info("own", extra=own(text="x" * 900))
    lost = log.lines.throttle.suppressed["splitveil.made", "own"]
    assert lost > 0
    log.lines.flush()  # which does not wait for ever
    with os.fdopen(read) as file:
        assert [len(json.loads(file.readline())["text"]) for _ in range(6000 - lost)] == [900] * (6000 - lost)
        log.lines.close()
    os.close(write)


def test_lines_are_short_whole_and_plain(log: Log) -> None:
    log.logger.error("a\n\x1b[31m%s\u2028", "y" * 10_000)
    log.logger.error("%d", "no number")
    try:
        _deep(500)
    except RecursionError:
        log.logger.exception("deep", extra={"fields": {"given": "z" * 10_000}})
    first, deep, said = log.all()
    assert str(first["event"]).startswith("a\n\x1b[31my")
    assert len(str(first["event"])) == LONGEST_TEXT
    assert len(str(deep["given"])) == LONGEST_TEXT
    assert len(str(deep["traceback"])) <= logs.LONGEST_TRACEBACK
    assert said["lines"] == {"splitveil.made %d": 1}


def _deep(left: int) -> None:
    if not left:
        raise RecursionError
    _deeper(left)


def _deeper(left: int) -> None:
    _deep(left - 1)


def question(half: Half) -> bytes:
    data = [float(SECRET)] * 6
    assert half.messages.components == 6
    return json.dumps(
        {"id": "mine", "inputs": [{"name": "coefficients", "datatype": "FP32", "shape": [1, 6], "data": data}]}
    ).encode()


def codes(calls: list[grpc.UnaryUnaryMultiCallable], content: bytes) -> set[grpc.StatusCode]:
    """Of a hundred of each call."""
    found = set()
    for _ in range(100):
        asked = [call.future(content) for call in calls]
        found |= {call.exception(HANGING).code() for call in asked}
    return found


def test_what_strangers_send_is_counted_and_hardly_logged(tmp_path: Path) -> None:
    """Each of these wrote a line, mostly a traceback, for every call."""
    folder = server_bundle(tmp_path / "bundle")
    body = question(Half(folder))
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (INFER.encode(), len(body), body)
    with serving(folder) as server:
        with grpc.insecure_channel(server.grpc) as channel:
            known = [channel.unary_unary(SERVICE + name) for name in ("ModelInfer", "ServerLive", "ModelReady")]
            assert codes(known, b"\xff\xff\xff") == {grpc.StatusCode.INVALID_ARGUMENT}
            names = ("TraceSetting", "LogSettings", "SystemSharedMemoryStatus", "nonsense\n")
            others = [channel.unary_unary(SERVICE + name) for name in names]
            assert codes(others, b"") == {grpc.StatusCode.UNIMPLEMENTED}
        quiet = len(server.log)
        for _ in range(30):
            with socket.create_connection(tuple(server.host.split(":")), timeout=HANGING) as connection:
                connection.sendall(5 * request)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    while connection.recv(65_536):
                        pass
        with httpx.Client(base_url=server.rest, timeout=HANGING) as client:
            for number in range(200):
                client.post(f"/v2/repository/models/{'made' if number % 10 == 0 else number}/load")
            for _ in range(200):
                client.post("/v2/repository/models/made/unload")
            text = client.get("/metrics").text
        server.stop()
        (end,) = server.events("stopped")
    assert quiet < 1000  # loaded, ready
    assert 'splitveil_decode_errors_total{protocol="grpc"} 300.0' in text
    assert len(server.log) < 150_000
    assert end["logger"] == "splitveil.serve"
    assert "splitveil_log_lines_suppressed_total" in text


@pytest.mark.parametrize("trusted", [True, False])
def test_the_access_log_names_the_client_behind_a_trusted_proxy_and_leaves_out_probes(
    tmp_path: Path, trusted: bool
) -> None:
    folder = server_bundle(tmp_path / "bundle")
    proxy = ["--trusted-proxy", "127.0.0.0/8"] if trusted else []
    with serving(folder, "--access-log", "--health-port", 0, *proxy) as server:
        seen = "192.0.2.7, 127.0.0.9"
        httpx.get(server.rest + "/v2", headers={"X-Forwarded-For": seen})
        httpx.get(server.said["health"] + "/v2/health/live")
        with grpc.insecure_channel(server.grpc) as channel:
            metadata = (("x-forwarded-for", seen), ("x-request-id", "nothing"))
            with pytest.raises(grpc.RpcError):  # no request at all
                channel.stream_unary(SERVICE + "ServerLive")(iter(()), metadata=metadata)
            channel.unary_unary(SERVICE + "ServerLive")(b"", metadata=metadata)
        server.stop()
        lines = server.events("request")
    facts = [(line["call"], line["status"], line["reason"], line["request_id"]) for line in lines]
    assert facts == [
        ("GET /v2", 200, "", ""), ("ServerLive", "INVALID_ARGUMENT", "invalid", "nothing"),
        ("ServerLive", "OK", "", "nothing"),
    ]  # fmt: skip
    assert {line["address"] for line in lines} == {"192.0.2.7" if trusted else "127.0.0.1"}


def test_the_access_log_has_a_line_for_each_request_and_no_content(tmp_path: Path) -> None:
    folder = server_bundle(tmp_path / "bundle")
    half = Half(folder)
    token = "a" * 20
    (tmp_path / "tokens").write_text(token)
    digest = "42492da06234ad0ac76f5d5debdb6d1ae027cffbe746a1c13b89bb8bc0139137"[:8]
    known = {"Authorization": f"Bearer {token}"}
    with serving(folder, "--access-log", "--token-file", tmp_path / "tokens") as server:
        with httpx.Client(base_url=server.rest, timeout=HANGING) as client:
            client.post(INFER, content=question(half), headers={**known, "X-Request-Id": "one:1"})
            client.post(INFER, content=question(half), headers={"X-Request-Id": 'x"} forged'})
            client.post("/v2/models/made/versions/7/infer", content=question(half), headers=known)
            client.get("/v2/health/live")
            client.get("/v2/" + "n" * 300)
        with triton_grpc.InferenceServerClient(server.grpc) as rpc:
            tensor = triton_grpc.InferInput("coefficients", [1, 6], "FP32")
            tensor.set_data_from_numpy(np.full((1, 6), float(SECRET), np.float32))
            rpc.infer("made", [tensor], headers={"authorization": f"Bearer {token}", "x-request-id": "two"})
            assert rpc.is_server_live()
        server.stop()
        lines = server.events("request")
    facts = [
        (line["call"][:30], line["model"], line["status"], line["reason"], line["token"], line["request_id"])
        for line in lines
    ]
    assert facts == [
        ("POST /v2/models/made/infer", "made", 200, "", digest, "one:1"),
        ("POST /v2/models/made/infer", "made", 401, "unauthenticated", "", ""),
        ("POST /v2/models/made/versions/", "made", 404, "missing", digest, ""),
        ("GET /v2/health/live", "", 200, "", "", ""),
        ("GET /v2/" + 22 * "n", "", 404, "", "", ""),
        ("ModelInfer", "made", "OK", "", digest, "two"),
        ("ServerLive", "", "OK", "", "", ""),
    ]
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert lines[0]["received"] == len(question(half))
    assert lines[0]["sent"] > 50
    assert lines[5]["received"] > 24
    assert lines[5]["sent"] > 16
    assert all(line["seconds"] > 0 and len(line["call"]) <= 100 for line in lines)
    assert SECRET not in server.log
    assert token not in server.log


def test_each_control_call_leaves_a_line_that_says_who_and_with_which_outcome(tmp_path: Path) -> None:
    folder = server_bundle(tmp_path / "bundle")
    (tmp_path / "tokens").write_text("b" * 20)
    known = {"Authorization": f"Bearer {'b' * 20}"}
    with serving(folder, "--token-file", tmp_path / "tokens") as server:
        with httpx.Client(base_url=server.rest, timeout=HANGING) as client:
            client.post("/v2/repository/models/made/unload")
            client.post("/v2/repository/models/made/unload", headers=known)
            client.post("/v2/repository/models/other%0a/load", headers=known)
            client.get("/v2/repository/models/made/load", headers=known)  # no control call, but another method
        with triton_grpc.InferenceServerClient(server.grpc) as rpc:
            rpc.load_model("made", headers={"authorization": known["Authorization"]})
        text = httpx.get(server.rest + "/metrics", headers=known).text
        server.stop()
        lines = [json.loads(line) for line in server.log.splitlines() if "splitveil.audit" in line]
    assert [(line["event"], line["protocol"], line["model"], line["outcome"]) for line in lines] == [
        ("unload", "rest", "made", "unauthenticated"),
        ("unload", "rest", "made", "done"),
        ("load", "rest", "other\n", "missing"),
        ("load", "grpc", "made", "done"),
    ]
    assert [bool(line["token"]) for line in lines] == [False, True, True, True]
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert 'splitveil_control_calls_total{action="unload",outcome="done"} 1.0' in text


def test_the_health_protocol_of_grpc(tmp_path: Path) -> None:
    """As Kubernetes asks: its messages are a text in field 1, and a number in field 1."""
    folder = server_bundle(tmp_path / "bundle")
    (tmp_path / "tokens").write_text("c" * 20)
    with (
        serving(folder, "--token-file", tmp_path / "tokens") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        known = (("authorization", f"Bearer {'c' * 20}"),)
        assert check(b"") == b"\x08\x01"
        assert check(b"\x0a\x04made", metadata=known) == b"\x08\x01"
        for message, metadata, code in (
            (b"\x0a\x05other", known, grpc.StatusCode.NOT_FOUND),
            (b"\x0a\x04made", (), grpc.StatusCode.UNAUTHENTICATED),
            (b"\xff", (), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                check(message, metadata=metadata)
            assert caught.value.code() == code
        unload = channel.unary_unary(
            SERVICE + "RepositoryModelUnload",
            request_serializer=service_pb2.RepositoryModelUnloadRequest.SerializeToString,
        )
        unload(service_pb2.RepositoryModelUnloadRequest(model_name="made"), metadata=known)
        assert check(b"") == b"\x08\x02"

"""The client: answers as torch gives them, no frame to a wrong server, and an answer or a sentence for the rest."""

import asyncio
import contextlib
import email.utils
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import splitveil as sv
from made_bundles import made_model
from made_servers import Answering, answer
from splitveil.bundle import from_frames
from splitveil.client import Access, Answer, AsyncEdgeClient, EdgeClient, EdgeEncoder, Patience
from splitveil.client.patience import Clock
from splitveil.client.protocol import longest_answer, read_logits
from splitveil.errors import DataError, RemoteError, ShapeError

URL = "https://server.example"
TOLERANCE = 1e-4  # of a logit, absolute, beside torch on the same decoded coefficients


@dataclass
class Time:
    """A clock that stands still but where somebody sleeps."""

    moment: float = 1000.0
    slept: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.moment += seconds

    def clock(self) -> Clock:
        return Clock(now=lambda: self.moment, sleep=self.sleep, chance=lambda: 1.0)


@pytest.fixture
def server(exported: Path) -> Answering:
    return Answering(exported / "server")


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return list(sv.load_data("digit-pairs").test.images(slice(0, 5)).numpy())


@pytest.fixture
def connect(exported: Path, server: Answering) -> Any:
    """Makes clients of the server without a network, and closes them."""
    made: list[sv.EdgeClient] = []

    def connect(url: str = URL, handler: Callable[[httpx.Request], Any] = server, **settings: Any) -> sv.EdgeClient:
        made.append(sv.EdgeClient(exported / "edge", url, transport=httpx.MockTransport(handler), **settings))
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.mark.parametrize(("m", "coding"), [(8, "float32"), (3, "float32"), (None, None), (2, "int8"), (5, "int4")])
def test_the_answer_is_that_of_torch(connect: Any, pictures: list[np.ndarray], m: Any, coding: Any) -> None:
    client = connect(m=m, coding=coding)
    found = client.answers(pictures)
    encoder = client.encoder
    messages = encoder.manifest.messages
    decoded = torch.from_numpy(from_frames([one.frame for one in found], messages, encoder.manifest.short_identity))
    split = sv.SplitModel(made_model(), at=4)
    with torch.no_grad():
        z = split.client(torch.from_numpy(np.stack(pictures)))
        factors = sv.factorise(split.server_layer, feature_shape=z.shape[1:], operator="patch")
        veil = sv.TopComponents(factors, m=8)
        wanted = split.answer(veil, decoded).numpy()
    np.testing.assert_allclose(np.stack([one.logits for one in found]), wanted, atol=TOLERANCE, rtol=0)
    for one, row in zip(found, wanted, strict=True):
        assert one.index == row.argmax()
        assert one.label == encoder.manifest.classes[one.index]
        np.testing.assert_allclose(one.probabilities, torch.from_numpy(row).double().softmax(0).numpy(), atol=1e-4)
        assert len(one.frame) == messages.frame_bytes(encoder.m, encoder.coding)


def test_an_answer_shows_nothing_but_its_label(connect: Any, pictures: list[np.ndarray]) -> None:
    found = connect().answer(pictures[0])
    assert repr(found) == f"Answer(label={found.label!r}, index={found.index})"
    with pytest.raises(AttributeError):
        found.label = "other"
    with pytest.raises(ValueError, match="read-only"):
        found.logits[0] = 1


def test_large_logits_have_probabilities_too() -> None:
    found = Answer("a", 0, np.array([3e38, -3e38, 3e38], np.float32), b"", None)  # type: ignore[arg-type]
    assert found.probabilities.tolist() == [0.5, 0, 0.5]


def test_many_photos_go_in_requests_of_a_bounded_size(
    connect: Any, server: Answering, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [*pictures] * 14
    single = [connect().answer(picture).index for picture in pictures]
    server.requests.clear()
    found = connect().answers(many)
    assert [one.index for one in found] == single * 14
    assert [one.sent.rows for one in found] == [32] * 64 + [6] * 6
    assert len(server.inferences) == 3
    monkeypatch.setattr("splitveil.client.remote.LARGEST_BODY", 80)  # three frames of 24 bytes
    assert connect().batch == 3
    monkeypatch.setattr("splitveil.client.remote.LARGEST_BODY", 10)
    assert connect().batch == 1
    assert connect().answers([]) == []
    asked = len(server.requests)
    with pytest.raises(ShapeError):
        connect().answers([*many, many[0][:, :-1]])
    assert len(server.requests) == asked  # a bad photo is found before the others leave


def test_the_request_is_what_the_protocol_says(connect: Any, server: Answering, pictures: list[np.ndarray]) -> None:
    client = connect(url=f"{URL}/behind/", access=Access(token="secret-1"))
    found = client.answers(pictures[:2])
    asked, request = server.requests
    assert str(asked.url) == f"{URL}/behind/v2/models/pairs"
    assert str(request.url) == f"{URL}/behind/v2/models/pairs/infer"
    length = int(request.headers["Inference-Header-Content-Length"])
    assert json.loads(request.content[:length]) == {
        "inputs": [{"name": "frame", "datatype": "UINT8", "shape": [2, 24], "parameters": {"binary_data_size": 48}}],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    }
    assert request.content[length:] == found[0].frame + found[1].frame
    for one in (asked, request):
        assert one.headers["authorization"] == "Bearer secret-1"
        assert one.headers["user-agent"] == "splitveil"
        assert one.headers["accept-encoding"] == "identity"


def test_a_server_of_another_bundle_gets_no_frame(connect: Any, server: Answering, pictures: list[np.ndarray]) -> None:
    own = server.identity
    # The short identity that frames carry is not enough: the whole one must be the same.
    for other in (own[:8] + "0" * 56, own.upper(), None, 7, [own], "\x1b[2J"):
        server.identity = other
        with pytest.raises(RemoteError, match="holds another bundle of pairs") as caught:
            connect().answer(pictures[0])
        assert "\x1b" not in str(caught.value)
    assert not server.inferences
    server.identity = own
    client = connect()
    client.answer(pictures[0])
    client.answer(pictures[0])
    assert [request.method for request in server.requests[-3:]] == ["GET", "POST", "POST"]


def refused(status: int = 400) -> httpx.Response:
    return httpx.Response(status, json={"error": "not this one"})


@pytest.mark.parametrize("status", [400, 404])
def test_a_bundle_that_was_replaced_meanwhile_is_named(
    connect: Any, server: Answering, pictures: list[np.ndarray], status: int
) -> None:
    client, own = connect(), server.identity
    client.answer(pictures[0])
    server.next, server.identity = [refused(status)], "0" * 64
    for _ in range(2):
        with pytest.raises(RemoteError, match="holds another bundle"):
            client.answer(pictures[0])
    assert len(server.inferences) == 2
    server.identity = own
    assert client.answer(pictures[0]).index >= 0
    server.next = [refused(status)]
    with pytest.raises(RemoteError, match=rf"refuses \({status}: not this one\)"):
        client.answer(pictures[0])


def test_an_older_version_is_found_beside_the_newest(
    connect: Any, server: Answering, pictures: list[np.ndarray]
) -> None:
    client, own = connect(), server.identity
    before = client.answer(pictures[0])
    server.next, server.identity, server.versions = [refused()], "0" * 64, {"7": "1" * 64, "../..": own, "5": own}
    after = client.answer(pictures[0])  # the newest was replaced, and answers where no version is named
    assert after.frame == before.frame
    assert after.index == before.index
    assert [request.url.path.rpartition("pairs")[2] for request in server.requests[2:]] == [
        "/infer", "", "/versions/7", "/versions/5", "/versions/5/infer",
    ]  # fmt: skip
    client.answer(pictures[1])
    assert server.requests[-1].url.path == "/v2/models/pairs/versions/5/infer"


FAILURES = [
    httpx.ConnectError("x"), httpx.ConnectTimeout("x"), httpx.ReadError("x"), httpx.WriteError("x"),
    httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x"), httpx.Response(502), httpx.Response(503),
    httpx.Response(504),
]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_what_may_pass_is_tried_again(
    connect: Any, server: Answering, pictures: list[np.ndarray], failure: httpx.Response | Exception
) -> None:
    time = Time()
    server.next = [failure, failure]
    found = connect(clock=time.clock()).answer(pictures[0])
    assert found.sent.attempts == 3
    assert time.slept == [0.1, 0.2]
    assert len({bytes(request.content) for request in server.inferences}) == 1


def test_retries_are_bounded_and_named(connect: Any, server: Answering, pictures: list[np.ndarray]) -> None:
    time = Time()
    patience = Patience(retries=8, deadline=60, longest_wait=2)
    server.next = [httpx.ConnectError("secret")] * 20
    with pytest.raises(
        RemoteError, match=r"^the server at https://server\.example cannot be reached \(tried 9 times\)"
    ):
        connect(clock=time.clock(), patience=patience).answer(pictures[0])
    assert time.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2]
    server.next = [httpx.Response(503)]
    with pytest.raises(RemoteError, match=r"no room .*\(tried once\)"):
        connect(patience=Patience(retries=0)).answer(pictures[0])


def test_by_default_the_deadline_decides(connect: Any, server: Answering, pictures: list[np.ndarray]) -> None:
    time = Time()
    server.next = [httpx.ConnectError("x")] * 200
    with pytest.raises(RemoteError, match=r"allow more time than 30 s$"):
        connect(clock=time.clock()).answer(pictures[0])
    assert time.slept[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5]
    assert 29.8 < sum(time.slept) < 30  # the last attempt is shortly before the end …
    assert len(time.slept) < 25  # … and there are few
    server.next = [httpx.ConnectError("x")] * 12
    assert connect(clock=Time().clock()).answer(pictures[0]).sent.attempts == 13


@pytest.mark.parametrize(
    "limits",
    [{"timeout": "5"}, {"timeout": float("nan")}, {"deadline": True}, {"retries": -1}, {"retries": 1.5},
     {"retries": True}, {"first_wait": -1}, {"first_wait": float("nan")}, {"longest_wait": "1"}, {"first_wait": 0},
     {"longest_wait": 0}],
)  # fmt: skip
def test_patience_that_is_none(limits: dict[str, Any]) -> None:
    with pytest.raises(RemoteError):
        Patience(**limits)
    assert Patience(retries=np.int64(2), first_wait=0, timeout=np.float32(1)).retries == 2  # type: ignore[arg-type]


def test_the_wait_is_drawn_by_chance(connect: Any, server: Answering, pictures: list[np.ndarray]) -> None:
    time = Time()
    server.next = [httpx.Response(503)] * 2
    connect(clock=Clock(lambda: time.moment, time.sleep, lambda: 0.0)).answer(pictures[0])
    assert time.slept == [0.05, 0.1]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 501])
def test_a_refusal_is_final(connect: Any, server: Answering, pictures: list[np.ndarray], status: int) -> None:
    time = Time()
    said = {"error": "input 'frame': no \x1b[31mgood\n" + "x" * 5000}
    server.next = [httpx.Response(status, json=said, headers={"Retry-After": "1"})]
    with pytest.raises(RemoteError) as caught:
        connect(clock=time.clock()).answer(pictures[0])
    assert str(caught.value).startswith(
        f"{'the server at ' + URL} refuses ({status}: input 'frame': no  [31mgood x".replace("  ", " ")
    )
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()
    assert time.slept == []


def test_a_refusal_without_words_is_named_too(connect: Any, server: Answering, pictures: list[np.ndarray]) -> None:
    for body in (b"", b"<html>", b"[1]", b'{"error": 5}', b"{" * 60_000):
        server.next = [httpx.Response(401, content=body)]
        with pytest.raises(RemoteError, match=r"refuses \(401\); give the right token$"):
            connect(access=Access(token="another")).answer(pictures[0])


def test_a_redirect_is_not_followed(connect: Any, server: Answering, pictures: list[np.ndarray]) -> None:
    for status in (301, 302, 307, 308):
        server.next = [httpx.Response(status, headers={"Location": "https://elsewhere.example/"})]
        with pytest.raises(RemoteError, match="points to another address, which is not followed"):
            connect(access=Access(token="t")).answer(pictures[0])
    assert {request.url.host for request in server.requests} == {"server.example"}


def date(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("value", "waits"),
    [("7", (7, 7)), (8.0, (4, 8.5)), (-50.0, (0.1, 0.1)), ("soon", (0.1, 0.1)), ("-3", (0.1, 0.1)),
     ("1e3", (0.1, 0.1)), ("٣", (0.1, 0.1)), ("Mon, 99 Foo 2026", (0.1, 0.1))],
)  # fmt: skip
def test_retry_after_is_heeded(
    connect: Any, server: Answering, pictures: list[np.ndarray], value: str | float, waits: tuple[float, float]
) -> None:
    time, text = Time(), value if isinstance(value, str) else date(value)
    headers = httpx.Headers([(b"Retry-After", text.encode())])
    server.next = [httpx.Response(503, headers=headers)]
    connect(clock=time.clock()).answer(pictures[0])
    (slept,) = time.slept
    assert waits[0] <= slept <= waits[1]


def test_who_asks_for_more_time_than_there_is_ends_the_request(
    connect: Any, server: Answering, pictures: list[np.ndarray]
) -> None:
    for value, sentence in (("60", "in 60 s"), ("999999999", "in 999999999 s"), ("9" * 400, "more time")):
        time = Time()
        server.next = [httpx.Response(503, headers={"Retry-After": value}) for _ in range(3)]
        with pytest.raises(RemoteError, match=f"no room .*{sentence}"):
            connect(clock=time.clock(), patience=Patience(retries=2)).answer(pictures[0])
        assert sum(time.slept) < 30
        assert len(time.slept) == (0 if "in " in sentence else 2)


def test_the_deadline_ends_the_retries(connect: Any, server: Answering, pictures: list[np.ndarray]) -> None:
    time = Time()

    def slow(request: httpx.Request) -> httpx.Response:
        time.moment += 4
        return server(request)

    server.next = [httpx.ReadTimeout("x")] * 100
    with pytest.raises(RemoteError, match=r"tried 3 times"):
        connect(
            handler=slow, clock=time.clock(), patience=Patience(timeout=5, deadline=10, retries=99, first_wait=0.01)
        ).answer(pictures[0])


@pytest.mark.parametrize("place", ["GET", "POST"])
def test_a_server_that_never_answers_is_given_up(
    connect: Any, server: Answering, pictures: list[np.ndarray], place: str
) -> None:
    cancelled = []

    async def silent(request: httpx.Request) -> httpx.Response:
        if request.method != place:
            return server(request)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(request)
        raise AssertionError

    patience = Patience(timeout=0.05, retries=1, first_wait=0)
    with pytest.raises(RemoteError, match=r"did not answer in time \(tried 2 times\)"):
        connect(handler=silent, patience=patience).answer(pictures[0])
    assert len(cancelled) == 2


def spoilt(**changed: Any) -> httpx.Response:
    return answer(np.zeros((1, 10), np.float32), **changed)


DAMAGED = {
    "nan": answer(np.full((1, 10), np.nan, np.float32)),
    "infinite": answer(np.full((1, 10), np.inf, np.float32)),
    "rows": answer(np.zeros((2, 10), np.float32)),
    "classes": answer(np.zeros((1, 9), np.float32)),
    "name": spoilt(name="other"),
    "datatype": spoilt(datatype="FP64"),
    "shape": spoilt(shape=[10]),
    "shape-text": spoilt(shape="1, 10"),
    "no-size": spoilt(parameters={}),
    "size": spoilt(parameters={"binary_data_size": 44}),
    "size-text": spoilt(parameters="x"),
    "too-long": spoilt(extra=b"xxxx"),
    "too-short": httpx.Response(200, headers=spoilt().headers, content=spoilt().content[:-1]),
    "no-length": httpx.Response(200, content=spoilt().content),
    "length": httpx.Response(200, headers={"Inference-Header-Content-Length": "99999"}, content=spoilt().content),
    "negative": httpx.Response(200, headers={"Inference-Header-Content-Length": "-4"}, content=spoilt().content),
    "digits": httpx.Response(200, headers={"Inference-Header-Content-Length": "9" * 5000}, content=b"{}"),
    "json": httpx.Response(200, headers={"Inference-Header-Content-Length": "1"}, content=b"{"),
    "deep": httpx.Response(200, headers={"Inference-Header-Content-Length": "60000"}, content=b"[" * 60000),
    "list": httpx.Response(200, headers={"Inference-Header-Content-Length": "2"}, content=b"[]"),
    "no-outputs": httpx.Response(200, headers={"Inference-Header-Content-Length": "2"}, content=b"{}"),
    "empty": httpx.Response(200),
    "html": httpx.Response(200, html="<p>Welcome"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_answer_is_named(connect: Any, server: Answering, pictures: list[np.ndarray], damage: str) -> None:
    server.next = [DAMAGED[damage]]
    time = Time()
    with pytest.raises(RemoteError, match=r"^the server('s answer| answered) .*; ask its operator"):
        connect(clock=time.clock()).answer(pictures[0])
    assert time.slept == []


@given(st.binary(max_size=200), st.text(max_size=12) | st.integers(0, 220).map(str))
def test_any_bytes_are_logits_or_a_remote_error(body: bytes, length: str) -> None:
    with contextlib.suppress(RemoteError):
        assert read_logits(body, {"Inference-Header-Content-Length": length}, 2, 3).shape == (2, 3)


def test_no_more_is_read_than_an_answer_can_have(connect: Any, server: Answering, pictures: list[np.ndarray]) -> None:
    pieces = []

    async def endless() -> Any:
        while True:
            pieces.append(1)
            yield bytes(10_000)

    for status in (200, 400):
        server.next = [httpx.Response(status, content=endless())]
        with pytest.raises(RemoteError, match=f"more than the {longest_answer(1, 10)} bytes"):
            connect().answer(pictures[0])
    assert len(pieces) < 30


def test_packed_answers_are_refused_unread(connect: Any, server: Answering, pictures: list[np.ndarray]) -> None:
    async def never() -> Any:
        raise AssertionError
        yield b""

    server.next = [httpx.Response(200, headers={"Content-Encoding": "gzip"}, content=never())]
    with pytest.raises(RemoteError, match="packed bytes"):
        connect().answer(pictures[0])


def test_what_the_server_says_of_itself_may_be_nothing(connect: Any, pictures: list[np.ndarray]) -> None:
    for response in (httpx.Response(200, content=b"hello"), httpx.Response(200, json=[1])):
        with pytest.raises(RemoteError, match="no JSON"):
            connect(handler=lambda _, response=response: response).answer(pictures[0])
    with pytest.raises(RemoteError, match=r"refuses \(404\); see that the address is right"):
        connect(handler=lambda _: httpx.Response(404)).answer(pictures[0])


def test_frames_can_be_made_elsewhere(connect: Any, exported: Path, pictures: list[np.ndarray]) -> None:
    client = connect()
    frames = EdgeEncoder(exported / "edge").frames(pictures)
    assert [one.index for one in client.ask(frames)] == [one.index for one in client.answers(pictures)]
    assert client.ask([]) == []


def test_many_at_once_meet_the_server_once(exported: Path, server: Answering, pictures: list[np.ndarray]) -> None:
    inside = most = 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if request.method == "POST" and len(server.inferences) < 5:
            server.requests.append(request)
            while len(server.inferences) < 5:  # no answer before five requests are there together
                await asyncio.sleep(0)
        inside -= 1
        return server(request)

    async def main() -> list[Answer]:
        async with sv.AsyncEdgeClient(exported / "edge", URL, transport=httpx.MockTransport(handler)) as client:
            return await asyncio.gather(*map(client.answer, pictures))

    found = asyncio.run(asyncio.wait_for(main(), 60))
    assert most == 5
    assert [request.method for request in server.requests].count("GET") == 1
    with sv.EdgeClient(exported / "edge", URL, transport=httpx.MockTransport(server)) as client:
        assert [one.index for one in found] == [one.index for one in client.answers(pictures)]


def test_the_client_works_where_a_loop_runs_already(connect: Any, pictures: list[np.ndarray]) -> None:
    async def notebook() -> Answer:
        return connect().answer(pictures[0])

    assert asyncio.run(notebook()).index >= 0


def test_an_application_in_process_can_be_the_server(
    exported: Path, server: Answering, pictures: list[np.ndarray]
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive()).get("body", b"")
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
        response = server(httpx.Request(scope["method"], f"http://x{scope['path']}", headers=headers, content=body))
        await send({"type": "http.response.start", "status": 200, "headers": response.headers.raw})
        await send({"type": "http.response.body", "body": response.content})

    with sv.EdgeClient(exported / "edge", URL, transport=httpx.ASGITransport(application)) as client:
        assert client.answer(pictures[0]).index >= 0


def test_a_closed_client_says_so(connect: Any, pictures: list[np.ndarray]) -> None:
    client = connect()
    client.close()
    client.close()
    with pytest.raises(RemoteError, match="was closed"):
        client.answer(pictures[0])


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("server.example", "no address"), ("ftp://server.example", "no address"), ("https://", "no address"),
        ("", "no address"), ("https://user:hidden@server.example", "no user"), ("https://s.example/?a=1", "no user"),
        ("https://s.example/#a", "no user"), ("https://[::1", "cannot be read"), ("https://s:port", "cannot be read"),
    ],
)  # fmt: skip
def test_addresses_that_are_none(connect: Any, url: str, sentence: str) -> None:
    with pytest.raises(RemoteError, match=sentence) as caught:
        connect(url)
    assert "hidden" not in str(caught.value)


def test_the_token_never_crosses_a_network_in_the_open(connect: Any) -> None:
    token = "very-secret"
    with pytest.raises(RemoteError, match="for anybody to read") as caught:
        connect("http://server.example", access=Access(token=token))
    assert token not in str(caught.value)
    for host in ("127.0.0.1:8000", "[::1]:8000", "localhost"):
        connect(f"http://{host}", access=Access(token=token))
    for host in ("127.0.0.1.example", "localhost.example", "10.0.0.1", "[::2]", "2130706433.example"):
        with pytest.raises(RemoteError, match="for anybody to read"):
            connect(f"http://{host}", access=Access(token=token))
    connect("http://server.example", access=Access(token=token, token_over_http=True))
    connect("https://server.example", access=Access(token=token))
    connect("http://server.example")
    assert token not in repr(Access(token=token))


@pytest.mark.parametrize("token", ["", " ", "two words", "line\nbreak", "zwölf", "tab\t"])
def test_tokens_that_no_header_carries(token: str) -> None:
    with pytest.raises(RemoteError, match="token") as caught:
        Access(token=token)
    assert not token.strip() or token not in str(caught.value)


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"deadline": -1}, {"retries": -1}, {"timeout": float("nan")},
                                    {"deadline": float("inf")}])  # fmt: skip
def test_limits_that_are_none(limits: dict[str, float]) -> None:
    with pytest.raises(RemoteError, match="seconds above 0"):
        Patience(**limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "https://localhost:0"])
def test_a_port_that_does_not_exist_is_an_error_of_the_address(exported: Path, url: str) -> None:
    with pytest.raises(RemoteError, match="has no port that exists"):
        EdgeClient(exported / "edge", url)


def test_a_closed_asynchronous_client_says_so(exported: Path) -> None:
    async def ask() -> None:
        client = AsyncEdgeClient(exported / "edge", "http://127.0.0.1:9")
        await client.close()
        await client.answer(np.zeros(client.encoder.manifest.picture.shape, np.uint8))

    with pytest.raises(RemoteError, match="this client was closed"):
        asyncio.run(ask())


def test_what_is_no_plain_file_is_no_photo(exported: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="it is a folder or the like"):
            EdgeEncoder(exported / "edge").frames([path])

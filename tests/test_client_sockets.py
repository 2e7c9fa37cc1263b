"""The client over real sockets: exact byte counts, connections used again, TLS, and servers that stall or die."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trustme

import splitveil as sv
from made_servers import Answering, listening
from splitveil.client import Access, Patience
from splitveil.errors import RemoteError

QUICK = Patience(timeout=0.3, deadline=1, retries=1, first_wait=0.01)


@pytest.fixture
def server(exported: Path) -> Answering:
    return Answering(exported / "server")


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return list(sv.load_data("digit-pairs").test.images(slice(0, 4)).numpy())


@pytest.mark.parametrize("settings", [{}, {"access": Access(token="abc")}, {"m": 1, "coding": "int4"}])
def test_the_bytes_of_a_request_are_those_on_the_socket(
    exported: Path, server: Answering, pictures: list[np.ndarray], settings: dict[str, Any]
) -> None:
    with listening(server) as (url, sockets), sv.EdgeClient(exported / "edge", f"{url}/ä b", **settings) as client:
        client.answer(pictures[0])
        (came,) = sockets.connections
        before = len(came)
        for count in (1, 4):
            found = client.answers(pictures[:count])
            sent = bytes(came[before:])
            before = len(came)
            assert sent.startswith(b"POST /%C3%A4%20b/v2/models/pairs/infer HTTP/1.1\r\n")
            assert {one.sent.request_bytes for one in found} == {len(sent)}
            assert sent.endswith(b"".join(one.frame for one in found))


def test_a_connection_is_used_again(exported: Path, server: Answering, pictures: list[np.ndarray]) -> None:
    with listening(server) as (url, sockets), sv.EdgeClient(exported / "edge", url) as client:
        for _ in range(5):
            client.answers(pictures)
        assert len(sockets.connections) == 1
        threads = [threading.Thread(target=client.answers, args=(pictures,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert 1 <= len(sockets.connections) <= 4
    assert len(server.inferences) == 9


def test_a_connection_that_the_server_closed_is_made_anew(
    exported: Path, server: Answering, pictures: list[np.ndarray]
) -> None:
    def closing(request: httpx.Request) -> httpx.Response:
        response = server(request)
        if request.method == "POST" and len(server.inferences) == 1:
            response.headers["Connection"] = "close"
        return response

    with listening(closing) as (url, sockets), sv.EdgeClient(exported / "edge", url) as client:
        first, second = client.answer(pictures[0]), client.answer(pictures[0])
        assert first.index == second.index
        assert len(sockets.connections) == 2


def test_a_server_that_comes_back_is_found_again(exported: Path, server: Answering, pictures: list[np.ndarray]) -> None:
    died = []

    def dying(request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and not died:
            died.append(request)
            raise ConnectionResetError  # the connection breaks off without an answer
        return server(request)

    with listening(dying) as (url, _), sv.EdgeClient(exported / "edge", url) as client:
        assert client.answer(pictures[0]).sent.attempts == 2
    assert len(died) == 1


def test_nobody_listens(exported: Path, pictures: list[np.ndarray]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but never listening: refused at once
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            sv.EdgeClient(exported / "edge", url, patience=QUICK) as client,
            pytest.raises(RemoteError, match=r"cannot be reached \(tried 2 times\); see that it runs"),
        ):
            client.answer(pictures[0])


@contextmanager
def talking(talk: Callable[[socket.socket, threading.Event], object]) -> Iterator[str]:
    """A server that does to each connection what ``talk`` says until the event is set."""
    stop, threads = threading.Event(), []

    def accept() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(20)
            try:
                talk(connection, stop)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (accepting, *threads):
                thread.join(30)


def drip(content: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Sends what begins with ``content``, a byte at a time, without end: no single read ever takes long."""

    def talk(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(content)
        while not stop.wait(0.02):
            connection.sendall(b"x")

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        lambda _, stop: stop.wait(30), drip(b"HTTP/1.1 200 OK\r\nx-long: "),
        drip(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n"), drip(b"HTTP/1.1 503 X\r\nretry-"),
    ],
    ids=["silent", "headers", "body", "status"],
)  # fmt: skip
def test_a_server_that_dribbles_is_given_up(exported: Path, pictures: list[np.ndarray], talk: Any) -> None:
    with (
        talking(talk) as url,
        sv.EdgeClient(exported / "edge", url, patience=QUICK) as client,
        pytest.raises(RemoteError, match=r"did not answer in time \(tried 2 times\)"),
    ):
        client.answer(pictures[0])


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
    ],
    ids=["closed", "half", "headers"],
)  # fmt: skip
def test_a_connection_that_breaks_off_is_named(exported: Path, pictures: list[np.ndarray], answer: bytes) -> None:
    def talk(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with (
        talking(talk) as url,
        sv.EdgeClient(exported / "edge", url, patience=Patience(retries=1, first_wait=0.01)) as client,
        pytest.raises(RemoteError, match=r"broke the connection off, as servers of https do \(tried 2 times\)"),
    ):
        client.answer(pictures[0])


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (b"\0\0\x12\x04\0\0\0\0\0" + bytes(18), "give its REST port if this is that of gRPC"),
        (b"\x15\x03\x03\0\x02\x02\x16", "write https:// if it expects TLS"),
        (b"nonsense\r\n\r\n", "does not speak HTTP; give the address of a splitveil server"),
        (b"HTTP/1.1 400 Bad\r\ncontent-length: 6\r\n\r\n<html>", "if it expects TLS, write https://"),
        (b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n", "give the token that it asks for"),
    ],
    ids=["grpc", "tls", "no-http", "proxy", "token"],
)  # fmt: skip
def test_what_else_may_listen_there_is_named_at_once(
    exported: Path, pictures: list[np.ndarray], answer: bytes, hint: str
) -> None:
    came = []

    def talk(connection: socket.socket, _: threading.Event) -> None:
        came.append(connection.recv(65536))
        connection.sendall(answer)

    with (
        talking(talk) as url,
        sv.EdgeClient(exported / "edge", url, patience=Patience(deadline=3)) as client,
        pytest.raises(RemoteError, match=hint),
    ):
        client.answer(pictures[0])
    assert len(came) == 1  # asking again would not help


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, and client.pem with client.key."""
    folder = tmp_path_factory.mktemp("certificates")
    certificate = authority.issue_cert("device@edge.example")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "client.pem")
    certificate.private_key_pem.write_to_path(folder / "client.key")
    (folder / "broken.pem").write_text("no certificate")
    return folder


def context(authority: trustme.CA, name: str = "127.0.0.1", ask: bool = False) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(made)
    if ask:
        authority.configure_trust(made)
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def test_certificates_are_checked_on_both_sides(
    exported: Path, server: Answering, pictures: list[np.ndarray], authority: trustme.CA, files: Path
) -> None:
    edge, own = exported / "edge", {"client_cert": files / "client.pem", "client_key": files / "client.key"}
    asking = context(authority, ask=True)
    with listening(server, asking) as (url, _):
        with sv.EdgeClient(edge, url, access=Access(token="t", ca=files / "ca.pem", **own)) as client:
            assert client.answer(pictures[0]).sent.attempts == 1
        came = len(server.requests)
        # With TLS 1.3 a client hears of its missing certificate only if the connection's end does not overtake that.
        asking.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            sv.EdgeClient(edge, url, access=Access(ca=files / "ca.pem")) as stranger,
            pytest.raises(RemoteError, match=r"do not trust each other \(.+\); give"),
        ):
            stranger.answer(pictures[0])
        assert len(server.requests) == came


def test_a_server_that_is_not_trusted_gets_nothing(
    exported: Path, server: Answering, pictures: list[np.ndarray], authority: trustme.CA, files: Path
) -> None:
    edge = exported / "edge"
    trusting = Access(ca=files / "ca.pem")
    for access, name, sentence in (
        (Access(), "127.0.0.1", "do not trust each other"), (trusting, "other.example", "certificate of another name"),
    ):  # fmt: skip
        with (
            listening(server, context(authority, name)) as (url, _),
            sv.EdgeClient(edge, url, access=access) as client,
            pytest.raises(RemoteError, match=sentence),
        ):
            client.answer(pictures[0])
    assert not server.requests


def test_http_and_https_mistaken_for_each_other_are_named(
    exported: Path, server: Answering, pictures: list[np.ndarray], authority: trustme.CA
) -> None:
    def ask(url: str) -> None:
        with sv.EdgeClient(exported / "edge", url, patience=Patience(retries=0)) as client:
            client.answer(pictures[0])

    def plain(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    with talking(plain) as url, pytest.raises(RemoteError, match="does not speak TLS; write http://"):
        ask(url.replace("http:", "https:"))
    with (
        listening(server, context(authority)) as (url, _),
        pytest.raises(RemoteError, match="broke the connection off, as servers of https do"),
    ):
        ask(url.replace("https:", "http:"))
    assert not server.requests


def test_certificates_that_cannot_be_used(exported: Path, files: Path) -> None:
    def client(**access: Any) -> None:
        sv.EdgeClient(exported / "edge", "https://localhost", access=Access(**access))

    for name in ("broken.pem", "missing.pem"):
        with pytest.raises(RemoteError, match=f"{name} holds no certificates"):
            client(ca=files / name)
        with pytest.raises(RemoteError, match=r"client\.pem and its key cannot be used"):
            client(client_cert=files / "client.pem", client_key=files / name)
    with pytest.raises(RemoteError, match="go together"):
        client(client_cert=files / "client.pem")


def test_proxies_of_the_environment_see_nothing(
    exported: Path, server: Answering, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with listening(server) as (url, _), sv.EdgeClient(exported / "edge", url) as client:
        assert client.answer(pictures[0]).sent.attempts == 1


def test_a_client_leaves_no_thread_and_no_socket(exported: Path, server: Answering, pictures: list[np.ndarray]) -> None:
    with listening(server) as (url, _):
        with sv.EdgeClient(exported / "edge", url) as client:
            client.answer(pictures[0])
            assert any(thread.name == "splitveil-client" for thread in threading.enumerate())
        assert not any(thread.name == "splitveil-client" for thread in threading.enumerate())

"""How many bytes a query takes on the socket, counted between client and server."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
from rivals.load import tensors
from rivals.servers import Server

from splitveil.bundle import read_edge, to_frames
from splitveil.client import EdgeClient

QUERIES = 50

Counts = dict[str, Any]


class Counter:
    """A proxy in front of one address; counts what passes."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._behind = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.sent = self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(self._behind)
            threading.Thread(target=self._pass_on, args=(client, server, "sent"), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, "received"), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counter: str) -> None:
        try:
            while data := source.recv(65536):
                setattr(self, counter, getattr(self, counter) + len(data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # one side is gone
            return

    def close(self) -> None:
        self._listening.close()


def socket_bytes(server: Server, edge: Path, rows: np.ndarray, raw: int) -> list[Counts]:
    """Bytes per query by several clients; ``raw`` numbers are what would cross without an obfuscator."""
    bundle = read_edge(edge).manifest
    frame = to_frames(rows, bundle.messages, bundle.short_identity, m=bundle.policy.m, coding="int8")[0]
    photo = np.random.default_rng(0).integers(0, 256, bundle.picture.shape, np.uint8)
    coefficients = rows[:1]
    found = []
    for name, address, client, payload in (
        ("frame, HTTP by EdgeClient", server.http, lambda to: edge_client(to, edge, photo), len(frame)),
        ("frame, HTTP by tritonclient", server.http, lambda to: http(to, server, frame), len(frame)),
        ("frame, gRPC by tritonclient", server.grpc, lambda to: grpc(to, server, frame), len(frame)),
        ("coefficients as FP32, HTTP", server.http, lambda to: http(to, server, coefficients), coefficients.nbytes),
        ("coefficients as FP32, gRPC", server.grpc, lambda to: grpc(to, server, coefficients), coefficients.nbytes),
        ("coefficients as JSON, HTTP", server.http, lambda to: http(to, server, coefficients, False), None),
    ):
        found.append({"what": name, "payload_bytes": payload, **count(address, client)})
        print(found[-1], flush=True)
    return found + bodies(np.random.default_rng(0).random((1, raw), np.float32))


def count(address: str, client: Callable[[str], Any]) -> Counts:
    """Bytes of the first query, with all that it takes to connect, and of each further one."""
    counter = Counter(address)
    with client(counter.address) as ask:
        ask()
        first = (counter.sent, counter.received)
        for _ in range(QUERIES):
            ask()
        later = [(now - then) / QUERIES for now, then in zip((counter.sent, counter.received), first, strict=True)]
    counter.close()
    return {
        "first_sent_bytes": first[0], "first_received_bytes": first[1], "sent_bytes": later[0],
        "received_bytes": later[1], "total_bytes": sum(later),
    }  # fmt: skip


def bodies(feature: np.ndarray) -> list[Counts]:
    """Bodies of requests that would carry the raw feature; no server here takes it, so they are not sent."""
    found = []
    for name, binary in (("raw feature as FP32, body by tritonclient", True), ("raw feature as JSON, body", False)):
        (inputs,) = tensors(by_http, feature, binary_data=binary)
        body, _ = by_http.InferenceServerClient.generate_request_body(inputs)
        found.append({"what": name, "payload_bytes": feature.nbytes if binary else None, "sent_bytes": len(body)})
        print(found[-1], flush=True)
    return found


@contextmanager
def edge_client(address: str, edge: Path, photo: np.ndarray) -> Iterator[Callable[[], Any]]:
    with EdgeClient(edge, f"http://{address}") as client:
        yield lambda: client.answer(photo)


@contextmanager
def http(address: str, server: Server, value: Any, binary: bool = True) -> Iterator[Callable[[], Any]]:
    inputs = [tensor(by_http, value, binary_data=binary)]
    outputs = [by_http.InferRequestedOutput("logits", binary_data=binary)]
    with by_http.InferenceServerClient(address) as client:
        yield lambda: client.infer(server.model, inputs, outputs=outputs)


@contextmanager
def grpc(address: str, server: Server, value: Any) -> Iterator[Callable[[], Any]]:
    inputs = [tensor(by_grpc, value)]
    with by_grpc.InferenceServerClient(address) as client:
        yield lambda: client.infer(server.model, inputs)


def tensor(by: Any, value: bytes | np.ndarray, **settings: Any) -> Any:
    """A frame, or coefficients (1, m')."""
    if not isinstance(value, bytes):
        return tensors(by, value, **settings)[0][0]
    found = by.InferInput("frame", [1, len(value)], "UINT8")
    found.set_data_from_numpy(np.frombuffer(value, np.uint8)[None], **settings)
    return found

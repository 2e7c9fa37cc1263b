"""Servers for tests of the client: the protocol answered from a server bundle, in process or behind real sockets."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from splitveil.bundle import Graph, from_frames, read_server

Override = Callable[[httpx.Request], httpx.Response]


class Answering:
    """Answers as a server with this bundle does; use as the handler of `httpx.MockTransport`.

    Attributes:
        requests: all that came.
        next: what to do with the next requests to infer, instead of answering: a response, or an error to raise.
        identity: that is claimed.
        versions: what each version claims.
    """

    def __init__(self, folder: Path) -> None:
        bundle = read_server(folder)
        self.manifest = bundle.manifest
        messages = self.manifest.messages
        self.graph = Graph(
            bundle.files["server.onnx"], (messages.components, *messages.positions), (self.manifest.n_classes,)
        )
        self.requests: list[httpx.Request] = []
        self.next: list[httpx.Response | Exception | None] = []  # None: answer as always
        self.identity: Any = self.manifest.identity
        self.versions: dict[str, str] = {}

    @property
    def inferences(self) -> list[httpx.Request]:
        return [request for request in self.requests if request.method == "POST"]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        _, _, rest = request.url.path.partition(f"/v2/models/{self.manifest.name}")
        if request.method == "GET":
            version = rest.removeprefix("/versions/")
            identity = self.versions[version] if version else self.identity
            return httpx.Response(
                200, json={"name": self.manifest.name, "versions": [*self.versions], "identity": identity}
            )
        assert rest.endswith("/infer")
        if self.next and (override := self.next.pop(0)) is not None:
            if isinstance(override, Exception):
                raise override
            return override
        return answer(self.logits(request))

    def logits(self, request: httpx.Request) -> np.ndarray:
        length = int(request.headers["Inference-Header-Content-Length"])
        header, data = json.loads(request.content[:length]), request.content[length:]
        (tensor,), (output,) = header["inputs"], header["outputs"]
        rows, size = tensor["shape"]
        assert (tensor["name"], tensor["datatype"], output["name"]) == ("frame", "UINT8", "logits")
        assert tensor["parameters"]["binary_data_size"] == len(data) == rows * size
        assert output["parameters"]["binary_data"] is True
        frames = [data[start : start + size] for start in range(0, len(data), size)]
        return self.graph.run(from_frames(frames, self.manifest.messages, self.manifest.short_identity))


def answer(logits: np.ndarray, extra: bytes = b"", **changed: Any) -> httpx.Response:
    """The answer with these logits; ``changed`` spoils fields of the output."""
    values = logits.astype("<f4").tobytes()
    output = {
        "name": "logits", "datatype": "FP32", "shape": list(logits.shape),
        "parameters": {"binary_data_size": len(values)}, **changed,
    }  # fmt: skip
    header = json.dumps({"model_name": "pairs", "outputs": [output]}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    return httpx.Response(200, headers=length, content=header + values + extra)


class Sockets(socketserver.ThreadingTCPServer):
    """A real HTTP/1.1 server that keeps every byte that came.

    Attributes:
        connections: the bytes of each accepted connection, in order.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, handler: Override, context: Any = None) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.handler, self.context = handler, context
        self.connections: list[bytearray] = []

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        connection.settimeout(20)  # a test that fails must not hang
        return (self.context.wrap_socket(connection, server_side=True) if self.context else connection), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may go away at any time."""


class _Connection(socketserver.BaseRequestHandler):
    server: Sockets

    def handle(self) -> None:
        came = bytearray()
        self.server.connections.append(came)
        done = 0
        while (request := self._request(came, done)) is not None:
            done = len(came)
            response = self.server.handler(request)
            lines = [f"HTTP/1.1 {response.status_code} X"]
            lines += [f"{name}: {value}" for name, value in response.headers.items()]
            if "content-length" not in response.headers:
                lines.append(f"content-length: {len(response.content)}")
            self.request.sendall("\r\n".join([*lines, "", ""]).encode() + response.content)

    def _request(self, came: bytearray, start: int) -> httpx.Request | None:
        while (end := came.find(b"\r\n\r\n", start)) < 0:
            if not self._more(came):
                return None
        first, *rest = bytes(came[start:end]).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in rest)
        method, target, _ = first.split(" ")
        length = int({name.lower(): value for name, value in headers.items()}.get("content-length", 0))
        while len(came) < end + 4 + length:
            if not self._more(came):
                return None
        return httpx.Request(method, f"http://x{target}", headers=headers, content=bytes(came[end + 4 :]))

    def _more(self, came: bytearray) -> bool:
        data: bytes = self.request.recv(65536)
        came += data
        return bool(data)


@contextmanager
def listening(handler: Override, context: Any = None) -> Iterator[tuple[str, Sockets]]:
    """A `Sockets` server in a thread, and its address."""
    with Sockets(handler, context) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}", server
        finally:
            server.shutdown()
            thread.join()

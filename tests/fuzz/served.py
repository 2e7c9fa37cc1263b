"""A real server in a process of its own, and what must hold of it whatever comes."""

import json
import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np

from made_server import Half, server_bundle, serving

from .bundles import MAX_BATCH
from .oracle import Facts
from .target import Target

COMPONENTS = 6
INFER = "/v2/models/made/infer"
PATIENCE = 20.0  # seconds; the server itself ends what is slow after 2
MOST_GROWTH = 256 * 2**20  # bytes that the server may take beyond what it took at first


class Served(Target):
    """A target that is a server on sockets, which nothing may end, fill or confuse."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = server_bundle(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "bundle")
            self._half = Half(folder)
            options = ("--timeout", 2, "--max-body", 1, "--max-batch", MAX_BATCH, "--no-control")
            self.server = stack.enter_context(serving(folder, *options))
            messages = self._half.messages
            self.facts = Facts(
                self._half.manifest.short_identity, messages.components, messages.positions, messages.codings,
                messages.scales, messages.certified,
            )  # fmt: skip
            self._stack = stack.pop_all()
        self._seen = 0  # lines of the log
        self.settle()
        self._begin = self.server.peak()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(self, address: str) -> socket.socket:
        """A connection to one of the server's ports."""
        host, _, port = address.rpartition(":")
        end = time.monotonic() + PATIENCE
        while True:
            try:
                connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
                break
            except ConnectionError:  # gRPC's port may just be opened again
                if time.monotonic() > end:
                    raise
                time.sleep(0.001)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def check_logits(self, found: Any, rows: list[list[float]]) -> None:
        """That they are those of these coefficients."""
        expected = self._half.logits(np.array(rows, np.float32))
        assert np.allclose(np.array(found).reshape(expected.shape), expected, 1e-3, 1e-3), "wrong logits"

    def settle(self) -> None:
        """The server runs, has logged no fault, has not grown, and answers an honest client rightly."""
        assert self.server.process.poll() is None, "the server has ended"
        lines = self.server.log.splitlines()
        new, self._seen = [json.loads(line) for line in lines[self._seen :]], len(lines)
        # gRPC says of a stranger's broken call that it is an error. Some of its versions end the port at a path that is
        # not UTF-8, which `GrpcPort` opens again.
        wrong = [
            line for line in new
            if line["level"] == "error" and not line["logger"].startswith("grpc.")
            and "UnicodeDecodeError" not in line.get("traceback", "")
        ]  # fmt: skip
        assert not wrong, wrong[0]
        if hasattr(self, "_begin"):
            grown = self.server.peak() - self._begin
            assert grown < MOST_GROWTH, f"the server has grown by {grown} bytes"
        rows = self._half.random(1, COMPONENTS).tolist()
        tensor = {"name": "coefficients", "datatype": "FP32", "shape": [1, COMPONENTS], "data": rows}
        reply = httpx.post(self.server.rest + INFER, json={"inputs": [tensor]}, timeout=PATIENCE)
        assert reply.status_code == 200, f"an honest client is refused: {reply.status_code} {reply.text[:200]}"
        self.check_logits(reply.json()["outputs"][0]["data"], rows)

"""The real command on real sockets, and server bundles made in milliseconds."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from splitveil.bundle import Graph, Messages, ServerManifest, file_facts, identity_of, read_server, write_bundle

Array = NDArray[np.float32]
HANGING = 60.0  # seconds after which a test gives up
WIDE = 1024


def server_bundle(
    folder: Path, *, name: str = "made", components: int = 6, positions: tuple[int, ...] = (), classes: int = 4,
    seed: int = 0, certified: bool = False, work: int = 0, megabytes: int = 0, mixes: bool = True,
    private_key: Path | None = None,
) -> Path:  # fmt: skip
    """A bundle whose logits are a random matrix times the coefficients; ``work`` multiplications make it slow.

    With ``megabytes`` the matrix is the product of two that are so large together.

    Such rows do not depend on each other; without ``mixes`` the manifest does not say so, as those of old bundles.
    """
    inside = components * int(np.prod(positions, dtype=int))
    random = np.random.default_rng(seed)
    weights = {"shape": np.array([-1, inside], np.int64)}
    nodes = [helper.make_node("Reshape", ["coefficients", "shape"], ["z0"])]
    if work:
        weights |= {"widen": np.eye(inside, WIDE, dtype=np.float32), "same": np.eye(WIDE, dtype=np.float32)}
        nodes += [helper.make_node("MatMul", ["z0", "widen"], ["w0"])]
        nodes += [helper.make_node("MatMul", [f"w{step}", "same"], [f"w{step + 1}"]) for step in range(work)]
    end, width = (f"w{work}", WIDE) if work else ("z0", inside)
    if megabytes:
        wide = megabytes * 2**18 // (width + classes)
        weights["large"] = np.full((width, wide), 1 / wide, np.float32)
        nodes += [helper.make_node("MatMul", [end, "large"], ["large0"])]
        end, width = "large0", wide
    last = random.normal(size=(width, classes)).astype(np.float32)
    nodes += [helper.make_node("MatMul", [end, "last"], ["logits"])]
    graph = helper.make_graph(
        nodes, "made",
        [helper.make_tensor_value_info("coefficients", TensorProto.FLOAT, ["batch", components, *positions])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(value, key) for key, value in {**weights, "last": last}.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    files = {"server.onnx": model.SerializeToString()}
    codings = ("int8",) if certified else ("float32", "int8", "int4")
    scales = tuple(float(2.0 ** -(index % 4 + 1)) for index in range(components))
    messages = Messages(
        components=components, positions=positions, codings=codings, certified=certified,
        scales={coding: scales for coding in codings if coding != "float32"},
    )  # fmt: skip
    facts = file_facts(files)
    checked = {"rows_independent": True} if mixes and "rows_independent" in ServerManifest.model_fields else {}
    manifest = ServerManifest(
        kind="server", schema_version=1, splitveil="test", name=name, messages=messages, files=facts, n_classes=classes,
        identity=identity_of(messages, facts["server.onnx"].sha256), **checked,
    )  # fmt: skip
    write_bundle(folder, manifest, files, private_key)
    return folder


class Half:
    """The same bundle in this process: what the server must answer."""

    def __init__(self, folder: Path) -> None:
        bundle = read_server(folder)
        self.manifest = bundle.manifest
        self.messages = bundle.manifest.messages
        self.mixes = bool(getattr(bundle.manifest, "rows_independent", False))
        inside = (self.messages.components, *self.messages.positions)
        self._graph = Graph(bundle.files["server.onnx"], inside, (self.manifest.n_classes,))

    def logits(self, coefficients: Array) -> Array:
        """Of coefficients (B, m, *positions), m at most all."""
        padded = np.zeros((len(coefficients), self.messages.components, *self.messages.positions), np.float32)
        padded[:, : coefficients.shape[1]] = coefficients
        return self._graph.run(padded)

    def random(self, rows: int, m: int, seed: int = 0) -> Array:
        """Coefficients (rows, m, *positions)."""
        shape = (rows, m, *self.messages.positions)
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Server:
    """A running `splitveil serve`.

    Attributes:
        said: addresses and models, as the command says them.
        rest, grpc: addresses.
        host: of REST, without the scheme.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._log: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        watchdog = threading.Timer(HANGING, process.kill)
        watchdog.start()
        assert process.stdout is not None
        line = process.stdout.readline()
        watchdog.cancel()
        assert line, f"the server did not start: {self.log}"
        self.said: dict[str, Any] = json.loads(line)
        self.rest: str = self.said["rest"]
        self.grpc: str = self.said["grpc"]
        self.host = self.rest.split("//")[1]

    @property
    def log(self) -> str:
        return "".join(self._log)

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log's objects of one event; every line must be one object."""
        objects = [json.loads(line) for line in self.log.splitlines()]
        return [item for item in objects if item["event"] == event]

    def peak(self) -> int:
        """The most bytes of memory that were ever resident."""
        return self._memory("VmHWM")

    def resident(self) -> int:
        """The bytes of memory that are resident."""
        return self._memory("VmRSS")

    def _memory(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) * 1024

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(HANGING)
        self.read_on()
        return code

    def read_on(self) -> None:
        """Wait for the last line of the log."""
        self._reading.join(HANGING)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log.append(line)


@contextmanager
def serving(*arguments: object) -> Iterator[Server]:
    """The command, on free ports, until the block ends."""
    command = [sys.executable, "-m", "splitveil", "serve", *map(str, arguments)]
    command += ["--http-port", "0", "--grpc-port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        server = None
        try:
            server = Server(process)
            yield server
        finally:
            process.kill()
            process.wait(HANGING)
            if server:
                server.read_on()

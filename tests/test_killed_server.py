"""A server that is killed and started again under load: no wrong answer, no hang, an end to every request."""

import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from made_server import HANGING, Server
from splitveil.bundle import Graph, from_frames, read_server
from splitveil.client import EdgeClient, Patience
from splitveil.errors import RemoteError

CLIENTS = 8
KILLS = 3
PATIENCE = {"patient": Patience(deadline=HANGING),
            "hasty": Patience(timeout=5.0, deadline=5.0, retries=0)}  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def start(bundle: Path, ports: tuple[int, int]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "splitveil", "serve", str(bundle), "--json"]
    command += ["--http-port", str(ports[0]), "--grpc-port", str(ports[1])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Load:
    """Clients that ask on and on, each for pictures of its own.

    Attributes:
        right: answers that were right, by client.
        failures: named errors, by client.
        wrong: what should not have happened.
    """

    def __init__(self, exported: Path, url: str, patience: Patience) -> None:
        self.right: Counter[int] = Counter()
        self.failures: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._exported, self._url, self._patience = exported, url, patience
        server = read_server(exported / "server")
        self._graph = Graph(server.files["server.onnx"], (8,), (10,))
        self._manifest = server.manifest
        self._threads = [threading.Thread(target=self._ask, args=(index,)) for index in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def wait_for_all(self) -> None:
        """Until every client has been answered once more."""
        before = dict(self.right)
        with self._changed:
            done = self._changed.wait_for(
                lambda: all(self.right[index] > before.get(index, 0) for index in range(CLIENTS)), HANGING
            )
        assert done, f"not every client was answered: {self.right}, {self.wrong}"

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * HANGING)
            assert not thread.is_alive(), "a request hangs"

    def _ask(self, index: int) -> None:
        picture = np.random.default_rng(index).integers(0, 256, (1, 16, 32), np.uint8)
        with EdgeClient(self._exported / "edge", self._url, patience=self._patience) as client:
            frames = client.encoder.frames([picture])
            wanted = self._graph.run(from_frames(frames, self._manifest.messages, self._manifest.short_identity))
            while not self._stop.is_set():
                try:
                    (answer,) = client.answers([picture])
                except RemoteError:
                    self.failures[index] += 1
                    self._stop.wait(0.05)
                except Exception as error:
                    self.wrong.append(repr(error))
                    return
                else:
                    if not np.allclose(answer.logits, wanted[0], rtol=0, atol=1e-5):
                        self.wrong.append(f"client {index} got another answer")
                    with self._changed:
                        self.right[index] += 1
                        self._changed.notify_all()


@pytest.mark.slow
@pytest.mark.parametrize("patience", PATIENCE)
def test_a_server_killed_and_restarted_under_clients_gives_no_wrong_answer(exported: Path, patience: str) -> None:
    ports = (free_port(), free_port())
    processes = [start(exported / "server", ports)]
    Server(processes[0])  # waits until it says where it is
    load = Load(exported, f"http://127.0.0.1:{ports[0]}", PATIENCE[patience])
    try:
        for _ in range(KILLS):
            load.wait_for_all()
            processes[-1].kill()  # in the midst of requests
            processes[-1].wait(HANGING)
            processes.append(start(exported / "server", ports))
            Server(processes[-1])
        load.wait_for_all()
    finally:
        load.stop()
        for process in processes:
            process.kill()
            process.communicate()
    assert not load.wrong
    assert min(load.right[index] for index in range(CLIENTS)) > KILLS
    if patience == "patient":
        assert not load.failures  # who has the patience sees no failure at all
    else:
        assert sum(load.failures.values()) >= KILLS  # it was really down, and said so

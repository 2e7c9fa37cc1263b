"""The server on a Ray cluster of two nodes, of which one is lost under load."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from made_paths import TOLERANCE, Truth, check_agree, check_client, rows_of
from made_servers import Answering
from splitveil.client import Access, EdgeClient, EdgeEncoder, Patience
from splitveil.codec import CODINGS, Coding
from splitveil.deploy.ray import ray_service
from splitveil.errors import BundleError, RemoteError, ServeError

# Ray leaves sockets and the handles of its own processes to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on .Field.:DeprecationWarning"),  # by Ray itself
]

TOKEN = "a-token-for-the-tests-of-ray"
# Nothing is written to the home folder or sent home, machines with much else to do are waited for, and both replicas
# are asked alike, where Ray would prefer the one beside the gateway.
CALM = {
    "RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
}  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@dataclass
class Served:
    """A service on two nodes, with one replica on each."""

    url: str
    truth: Truth
    cluster: Any
    second: Any

    def replicas(self) -> dict[str, int]:
        """Processes of the replicas that live, by their node."""
        from ray._private import state

        return {
            actor["Address"]["NodeID"]: actor["Pid"]
            for actor in state.actors().values()
            if actor["State"] == "ALIVE" and actor["ActorClassName"].startswith("ServeReplica")
        }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("ray")
    truth = Truth(folder)
    (folder / "tokens").write_text(TOKEN + "\n")
    environment = pytest.MonkeyPatch()
    for name, value in CALM.items():
        environment.setenv(name, value)
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # One CPU each, so that every node gets one of the two replicas.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        with ray_service([truth.server], http_port=free_port(), token_file=folder / "tokens") as url:
            yield Served(url, truth, cluster, second)
    finally:
        ray.shutdown()
        cluster.shutdown()
        environment.undo()


@pytest.mark.slow
@pytest.mark.parametrize("coding", CODINGS)
def test_our_client_gets_what_its_frames_say(served: Served, coding: Coding) -> None:
    check_client(served.truth, served.url, coding, access=Access(token=TOKEN))


@pytest.mark.slow
def test_standard_clients_with_the_token_are_answered(served: Served) -> None:
    rows = rows_of(served.truth.frames("int8"))
    tensor = tritonclient.http.InferInput("frame", list(rows.shape), "UINT8")
    tensor.set_data_from_numpy(rows)
    with tritonclient.http.InferenceServerClient(served.url.removeprefix("http://")) as client:
        with pytest.raises(InferenceServerException, match="asks for a token"):
            client.infer("pairs", [tensor])
        token = {"Authorization": f"Bearer {TOKEN}"}
        check_agree(client.infer("pairs", [tensor], headers=token).as_numpy("logits"), served.truth.cut("int8"))
        # It would reach one replica of two.
        with pytest.raises(InferenceServerException, match="not loaded or unloaded by clients"):
            client.unload_model("pairs", headers=token)


@pytest.mark.slow
def test_a_cluster_that_serves_is_left_alone(served: Served) -> None:
    twice = pytest.raises(ServeError, match="runs on this cluster already")
    with twice, ray_service([served.truth.server], http_port=free_port()):
        pass
    other = pytest.raises(ServeError, match="connected to a Ray cluster already")
    with other, ray_service([served.truth.server], address="127.0.0.1:1"):
        pass
    check_client(served.truth, served.url, "int8", access=Access(token=TOKEN))


class Load:
    """Clients that ask without a pause, each one image after the other, until told to stop.

    Attributes:
        answered: how many answers have come, all compared with the truth.
        repeated: how many of them took more than one attempt.
        failed: what was said of requests that ended without an answer.
        wrong: what else went wrong.
    """

    def __init__(self, served: Served, clients: int) -> None:
        self.served = served
        frames = EdgeEncoder(served.truth.edge, coding="int8").frames(served.truth.images)
        self.wanted = served.truth.read(frames)
        self.allowed = TOLERANCE * float(np.abs(self.wanted).max())
        self.answered, self.repeated = 0, 0
        self.failed: list[str] = []
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"

    def until(self, more: int) -> None:
        """Wait for so many further answers."""
        with self._news:
            goal = self.answered + more
            assert self._news.wait_for(lambda: self.answered >= goal or self.wrong, 120), self.failed

    def _work(self, number: int) -> None:
        turn = number
        edge, access = self.served.truth.edge, Access(token=TOKEN)
        patience = Patience(retries=8, deadline=60)
        with EdgeClient(edge, self.served.url, coding="int8", access=access, patience=patience) as client:
            while not self._stop.is_set():
                image = turn % len(self.wanted)
                turn += 1
                try:
                    answer = client.answer(self.served.truth.images[image])
                except RemoteError as error:
                    with self._news:
                        self.failed.append(str(error))
                    continue
                except Exception as error:
                    self._report(f"{type(error).__name__}: {error}")
                    return
                if np.abs(answer.logits - self.wanted[image]).max() > self.allowed:
                    self._report(f"image {image} was answered wrongly")
                    return
                with self._news:
                    self.answered += 1
                    self.repeated += answer.sent.attempts > 1
                    self._news.notify_all()

    def _report(self, sentence: str) -> None:
        with self._news:
            self.wrong.append(sentence)
            self._news.notify_all()


@pytest.mark.slow
def test_losing_a_replica_and_then_its_node_gives_no_wrong_answer(served: Served) -> None:
    replicas = served.replicas()
    lost = served.second.node_id
    assert len(replicas) == 2  # one on each node
    with Load(served, 6) as load:
        load.until(40)
        os.kill(replicas[lost], signal.SIGSTOP)  # what it is asked meanwhile waits, so that its death loses requests
        load.until(20)
        os.kill(replicas[lost], signal.SIGKILL)
        load.until(80)
        served.cluster.remove_node(served.second, allow_graceful=False)
        load.until(80)
    assert load.wrong == []
    assert load.failed == []  # the other replica has answered what was lost
    assert load.repeated
    assert set(served.replicas()) == {node for node in replicas if node != lost}


def test_a_gateway_that_lost_its_server_is_asked_again(exported: Path) -> None:
    server = Answering(exported / "server")
    server.next = [httpx.Response(500, text="Internal Server Error")]
    with EdgeClient(exported / "edge", "https://server.example", transport=httpx.MockTransport(server)) as client:
        assert client.answer(np.zeros(client.encoder.manifest.picture.shape, np.float32)).sent.attempts == 2


def test_what_cannot_be_served_is_refused_before_ray_starts(exported: Path, tmp_path: Path) -> None:
    server = exported / "server"
    with pytest.raises(BundleError, match="name the server bundle"), ray_service([exported / "edge"]):
        pass
    with pytest.raises(ServeError, match="replicas is 0"), ray_service([server], replicas=0):
        pass
    with pytest.raises(ServeError, match="tokens"), ray_service([server], token_file=tmp_path / "none"):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = pytest.raises(ServeError, match=f"nothing can listen on 127.0.0.1:{port}")
        with busy, ray_service([server], http_port=port):
            pass


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(exported: Path) -> None:
    port = free_port()
    command = [
        sys.executable, "-m", "splitveil", "deploy", "ray", "--bundle", str(exported / "server"), "--replicas", "1",
        "--http-port", str(port),
    ]  # fmt: skip
    with subprocess.Popen(
        command, env={**os.environ, **CALM}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        give_up = threading.Timer(120, process.kill)
        give_up.start()
        try:
            line = process.stdout.readline()
            assert line == f"serving at http://127.0.0.1:{port} with 1 replicas; stop with Ctrl-C\n"
            assert httpx.get(f"http://127.0.0.1:{port}/v2/models/pairs/ready", timeout=30).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            give_up.cancel()
            process.kill()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/v2", timeout=5)

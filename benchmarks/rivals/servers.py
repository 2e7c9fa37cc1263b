"""Each server with the same server half: its environment, its command, and its end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as by_grpc
import tritonclient.http as by_http

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / "runs" / "environments"
START_SECONDS = 120
MODEL = "utkface"


class NotMeasuredError(Exception):
    """A server cannot be installed or started; the text says why."""


@dataclass(frozen=True)
class Server:
    """One that answers.

    Attributes:
        name: for the tables.
        http, grpc: host and port.
        session: of all its processes.
        model: its name there.
    """

    name: str
    http: str
    grpc: str
    session: int
    model: str = MODEL


def environment(name: str) -> Path:
    """A virtual environment with exactly what ``NAME.txt`` lists; made once, and again when the list changes."""
    folder, wanted = ENVIRONMENTS / name, (HERE / f"{name}.txt").read_text()
    mark = folder / "installed.txt"
    if not mark.is_file() or mark.read_text() != wanted:
        print(f"installing {name} into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        pip = [folder / "bin/pip", "install", "--quiet", "--no-deps", "--requirement", HERE / f"{name}.txt"]
        for command in ([sys.executable, "-m", "venv", folder], pip):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:]
                raise NotMeasuredError(f"cannot be installed: {''.join(last)}")
        mark.write_text(wanted)
    return folder


@contextmanager
def splitveil(bundle: Path, folder: Path, name: str = "splitveil", *options: str) -> Iterator[Server]:
    http, grpc = free_ports(2)
    command = [sys.executable, "-m", "splitveil", "serve", bundle, "--http-port", http, "--grpc-port", grpc, *options]
    with running(name, command, folder, http, grpc) as server:
        yield server


@contextmanager
def kserve(bundle: Path, folder: Path) -> Iterator[Server]:
    http, grpc = free_ports(2)
    python = environment("kserve") / "bin/python"
    command = [python, HERE / "kserve_server.py", MODEL, bundle / "server.onnx", http, grpc]
    with running("kserve", command, folder, http, grpc) as server:
        yield server


@contextmanager
def mlserver(bundle: Path, folder: Path) -> Iterator[Server]:
    """In one process: with workers in others, which is the default, each request goes through pipes."""
    http, grpc, metrics = free_ports(3)
    home = environment("mlserver")
    settings = {
        "host": "127.0.0.1", "http_port": int(http), "grpc_port": int(grpc), "metrics_port": int(metrics),
        "parallel_workers": 0, "debug": False,
    }  # fmt: skip
    model = {
        "name": MODEL, "implementation": "mlserver_model.Half",
        "parameters": {"uri": str(bundle.resolve() / "server.onnx")},
    }  # fmt: skip
    place = folder / "mlserver"
    place.mkdir()
    (place / "settings.json").write_text(json.dumps(settings))
    (place / "model-settings.json").write_text(json.dumps(model))
    variables = {"PYTHONPATH": str(HERE), "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    with running("mlserver", [home / "bin/mlserver", "start", place], folder, http, grpc, variables) as server:
        yield server


@contextmanager
def triton(bundle: Path, folder: Path) -> Iterator[Server]:
    """As `splitveil deploy triton` sets it up; its Python backend imports splitveil from this checkout."""
    http, grpc = free_ports(2)
    home = environment("triton")
    site = next((home / "lib").glob("python3.*")) / "site-packages"
    files, repository, backend = site / "pytriton/tritonserver", folder / "models", folder / "backends/python"
    # The backend sets PYTHONPATH itself.
    (site / "splitveil.pth").write_text(str(HERE.parents[1] / "src"))
    deploy = [sys.executable, "-m", "splitveil", "deploy", "triton", repository, "--bundle", bundle]
    done = subprocess.run(list(map(str, deploy)), capture_output=True, text=True)
    if done.returncode:
        raise NotMeasuredError(f"'splitveil deploy triton' failed: {done.stderr.strip()}")
    backend.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = files / f"python_backend_stubs/{version}/triton_python_backend_stub"
    for file in (*(files / "backends/python").glob("*.*"), stub):
        shutil.copy(file, backend)
    command = [
        files / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={backend.parent}",
        "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", f"--http-port={http}", f"--grpc-port={grpc}",
        "--allow-metrics=false",
    ]  # fmt: skip
    variables = {
        "LD_LIBRARY_PATH": os.pathsep.join([sysconfig.get_config_var("LIBDIR"), str(site / "nvidia_pytriton.libs")]),
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    with running("Triton", command, folder, http, grpc, variables) as server:
        yield server


@contextmanager
def running(
    name: str, command: Sequence[object], folder: Path, http: str, grpc: str, variables: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A process and its children, from when its model is ready until the block ends."""
    log = folder / f"{name}.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, **(variables or {})},
        )  # fmt: skip
    server = Server(name, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", process.pid)
    try:
        wait_until_ready(server, process, log)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            with by_http.InferenceServerClient(server.http) as http, by_grpc.InferenceServerClient(server.grpc) as grpc:
                if http.is_model_ready(server.model) and grpc.is_model_ready(server.model):
                    return
        except Exception:  # each client has errors of its own for "nobody there yet"
            pass
        time.sleep(0.2)
    raise NotMeasuredError(f"does not start: {log.read_text()[-500:]}")


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports

"""The real Triton Inference Server, from the wheel nvidia-pytriton (of which only the files are used)."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import httpx
import pytest


@dataclass
class Triton:
    """A server that answers.

    Attributes:
        http, grpc: its addresses, host and port.
        log: what it has written so far.
    """

    http: str
    grpc: str
    log: list[str] = field(default_factory=list)


@contextmanager
def triton(repository: Path, folder: Path) -> Iterator[Triton]:
    """Triton with the models of a repository, each loaded by its name.

    Args:
        repository: to serve.
        folder: for what the server needs beside it.
    """
    site = _site()
    free = [_free_port(), _free_port()]
    server = Triton(*(f"127.0.0.1:{port}" for port in free))
    libraries = [sysconfig.get_config_var("LIBDIR"), str(site / "nvidia_pytriton.libs")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),  # holds the libpython of this interpreter
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    process = subprocess.Popen(
        [
            site / "pytriton/tritonserver/bin/tritonserver", f"--model-repository={repository}",
            f"--backend-directory={_backends(site, folder)}", "--model-control-mode=explicit", "--allow-metrics=false",
            "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", f"--http-port={free[0]}", f"--grpc-port={free[1]}",
        ],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            server.log.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        deadline = time.monotonic() + 120
        while not _answers(server):  # it says that it has started a little before it has
            assert process.poll() is None, "".join(server.log)
            assert time.monotonic() < deadline, "Triton did not start in time"
            time.sleep(0.05)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            reader.join(60)
            assert process.stdout
            process.stdout.close()


def _answers(server: Triton) -> bool:
    try:
        return httpx.get(f"http://{server.http}/v2/health/live", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def _site() -> Path:
    """The folder that the wheel was unpacked into."""
    try:
        return Path(str(distribution("nvidia-pytriton").locate_file("")))
    except PackageNotFoundError:
        if os.environ.get("CI"):
            raise
        pytest.skip("the wheel nvidia-pytriton, which holds the Triton binary, is not installed")


def _backends(site: Path, folder: Path) -> Path:
    """The Python backend with the stub for this version of Python, which the wheel keeps apart."""
    home = site / "pytriton/tritonserver"
    stub = home / f"python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (*(home / "backends/python").glob("*.*"), stub):
        shutil.copy(file, backend)
    return backend.parent


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])

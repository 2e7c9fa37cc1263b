"""Requests to one server by tritonclient, timed and compared with what the answers must be."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import tritonclient.grpc as by_grpc
import tritonclient.grpc.aio as by_grpc_aio
import tritonclient.http as by_http
from gevent.hub import Hub
from rivals.servers import Server
from tritonclient.utils import InferenceServerException

Hub.NOT_ERROR = (*Hub.NOT_ERROR, InferenceServerException, OSError)  # it is reported once, where it arrives
WARM_SECONDS = 0.2
TOLERANCE = 1e-5
PATIENCE = 10.0

Answered = tuple[float, float, int, Any]  # begin, end, row, answer


@dataclass(frozen=True)
class Mode:
    """How requests are sent: ``http`` or ``grpc``, tensors as JSON or as bytes, so many at once."""

    protocol: str
    binary: bool
    at_once: int


MODES = {
    "one at a time, HTTP JSON": Mode("http", False, 1),
    "one at a time, HTTP binary": Mode("http", True, 1),
    "one at a time, gRPC": Mode("grpc", True, 1),
    "8 connections, HTTP JSON": Mode("http", False, 8),
    "8 connections, HTTP binary": Mode("http", True, 8),
    "16 calls, gRPC": Mode("grpc", True, 16),
}


def measure(server: Server, mode: Mode, rows: np.ndarray, expected: np.ndarray, seconds: float) -> dict[str, float]:
    """Requests of one row each for so many seconds; every answer is compared once the time is over."""
    by = {"http": http, "grpc": grpc if mode.at_once == 1 else grpc_at_once}[mode.protocol]
    cpu, start = session_seconds(server.session), time.perf_counter()
    try:
        answered = by(server, mode, rows, start + WARM_SECONDS + seconds)
    except (InferenceServerException, OSError) as error:  # the former cannot cross to another process
        raise RuntimeError(str(error)) from None
    cpu = session_seconds(server.session) - cpu
    worst = max(float(np.abs(answer.as_numpy("logits") - expected[row]).max()) for _, _, row, answer in answered)
    if not worst <= TOLERANCE:
        raise ValueError(f"answers differ by {worst} from those of ONNX Runtime")
    timed = [one for one in answered if one[0] >= start + WARM_SECONDS]
    taken = [1e3 * (end - begin) for begin, end, _, _ in timed]
    return {
        "requests_per_second": len(timed) / (max(end for _, end, _, _ in timed) - timed[0][0]),
        "p50_ms": float(np.percentile(taken, 50)), "p99_ms": float(np.percentile(taken, 99)),
        "server_cpu_ms": 1e3 * cpu / len(answered), "worst_difference": worst,
    }  # fmt: skip


def http(server: Server, mode: Mode, rows: np.ndarray, end: float) -> list[Answered]:
    """One connection per request at once, all in one thread."""
    client = by_http.InferenceServerClient(
        server.http, concurrency=mode.at_once, connection_timeout=PATIENCE, network_timeout=PATIENCE
    )
    inputs = tensors(by_http, rows, binary_data=mode.binary)
    outputs = [by_http.InferRequestedOutput("logits", binary_data=mode.binary)]
    # tritonclient says no type by itself, and KServe wants to hear that JSON is JSON.
    headers = None if mode.binary else {"Content-Type": "application/json"}
    found: list[Answered] = []

    def ask(row: int) -> None:
        while (begin := time.perf_counter()) < end:
            answer = client.infer(server.model, inputs[row], outputs=outputs, headers=headers)
            found.append((begin, time.perf_counter(), row, answer))
            row = (row + 1) % len(rows)

    asking = [gevent.spawn(ask, first % len(rows)) for first in range(mode.at_once)]
    gevent.joinall(asking, raise_error=True)
    client.close()
    return sorted(found, key=lambda one: one[0])


def grpc(server: Server, mode: Mode, rows: np.ndarray, end: float) -> list[Answered]:  # noqa: ARG001
    inputs = tensors(by_grpc, rows)
    found: list[Answered] = []
    with by_grpc.InferenceServerClient(server.grpc) as client:
        while (begin := time.perf_counter()) < end:
            row = len(found) % len(rows)
            answer = client.infer(server.model, inputs[row], client_timeout=PATIENCE)
            found.append((begin, time.perf_counter(), row, answer))
    return found


def grpc_at_once(server: Server, mode: Mode, rows: np.ndarray, end: float) -> list[Answered]:
    """All on one connection."""
    inputs = tensors(by_grpc_aio, rows)
    found: list[Answered] = []

    async def ask(client: by_grpc_aio.InferenceServerClient, row: int) -> None:
        while (begin := time.perf_counter()) < end:
            answer = await client.infer(server.model, inputs[row], client_timeout=PATIENCE)
            found.append((begin, time.perf_counter(), row, answer))
            row = (row + 1) % len(rows)

    async def ask_all() -> None:
        async with by_grpc_aio.InferenceServerClient(server.grpc) as client:
            await asyncio.gather(*(ask(client, first % len(rows)) for first in range(mode.at_once)))

    asyncio.run(ask_all())
    return sorted(found, key=lambda one: one[0])


def tensors(by: Any, rows: np.ndarray, **settings: Any) -> list[list[Any]]:
    """The inputs of one request for each row."""
    found = []
    for row in rows:
        tensor = by.InferInput("coefficients", [1, len(row)], "FP32")
        tensor.set_data_from_numpy(row[None], **settings)
        found.append([tensor])
    return found


def session_seconds(session: int) -> float:
    """Processor seconds of all processes of a session."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / 100

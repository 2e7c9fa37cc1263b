"""Requests per second and latency of our server beside KServe, MLServer and Triton, and what a query weighs.

    python benchmarks/serving.py --out benchmarks/results/serving.json

One ONNX server half (Table 1 at UTKFace's size, cut 4, 16 components, PyTorch's first weights, which do not change the
time) behind four servers, which all run at once and take turns, mode by mode, in an order that rotates from round to
round; what counts are medians, and ratios within a round. The client is tritonclient in a process of its own, one row
per request; every answer is compared with ONNX Runtime in process. Each rival has an environment of its own, made in
runs/environments from rivals/*.txt; one that cannot be installed or started, or that cannot do a mode, is listed with
the reason. ``server_cpu_ms`` is processor time of all processes of a server per request: it does not depend on how fast
the client is, which shares the machine.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from landing import finish, keep
from rivals import servers
from rivals.load import MODES, TOLERANCE, measure
from rivals.servers import MODEL, NotMeasuredError, Server
from rivals.sockets import socket_bytes

from splitveil.bundle import Graph
from splitveil.data import Dataset
from splitveil.export import export
from splitveil.models import Table1Net
from splitveil.runs import versions

SHAPE, CLASSES, CUT, COMPONENTS = (3, 50, 50), 2, 4, 16
FEATURE = 64 * 6 * 6
OURS, TRITON, PYTHON = "splitveil", "Triton", ("kserve", "mlserver")
STARTS: dict[str, Callable[..., Any]] = {
    OURS: servers.splitveil, "kserve": servers.kserve, "mlserver": servers.mlserver, TRITON: servers.triton,
}  # fmt: skip
HTTP_LOADED = ("8 connections, HTTP JSON", "8 connections, HTTP binary")
BATCHING = {
    "as it comes": (),
    "never together": ("--max-batch", "1"),
    "wait 1 ms": ("--max-delay-ms", "1"),
    "wait 2 ms": ("--max-delay-ms", "2"),
    "wait 5 ms": ("--max-delay-ms", "5"),
}
BATCHING_MODES = ("one at a time, gRPC", "8 connections, HTTP binary", "16 calls, gRPC")
ROWS = 32
WARM_SECONDS, HANGING_SECONDS = 0.3, 60

Numbers = dict[str, float]
Found = dict[str, dict[str, list[Numbers]]]  # by mode, by server, one per round
Reasons = dict[str, str]


def bundles(folder: Path) -> Path:
    """A folder with ``edge`` and ``server``."""
    random = np.random.default_rng(0)
    data = Dataset.from_arrays(random.integers(0, 256, (200, *SHAPE), np.uint8), np.arange(200) % CLASSES)
    torch.manual_seed(0)
    model = Table1Net(SHAPE, CLASSES).eval()
    export(model, data, folder, cut=CUT, method="top", m=COMPONENTS, operator="dense", name=MODEL)
    return folder


class Client:
    """Requests from a process of their own, with the answers that they must get."""

    def __init__(self, pool: Pool, bundle: Path) -> None:
        self._pool = pool
        self.rows = np.random.default_rng(1).normal(size=(ROWS, COMPONENTS)).astype(np.float32)
        graph = Graph((bundle / "server.onnx").read_bytes(), (COMPONENTS,), (CLASSES,))
        self._expected = graph.run(self.rows)

    def measure(self, server: Server, mode: str, seconds: float) -> Numbers:
        asked = self._pool.apply_async(measure, (server, MODES[mode], self.rows, self._expected, seconds))
        numbers: Numbers = asked.get(seconds + HANGING_SECONDS)
        return numbers

    def socket_bytes(self, server: Server, edge: Path) -> list[dict[str, Any]]:
        counts: list[dict[str, Any]] = self._pool.apply(socket_bytes, (server, edge, self.rows, FEATURE))
        return counts


def start(stack: ExitStack, bundle: Path, folder: Path) -> tuple[list[Server], Reasons]:
    """Those that run, and why the others do not."""
    found, reasons = [], {}
    for name, starting in STARTS.items():
        try:
            found.append(stack.enter_context(starting(bundle, folder)))
            print(f"{name} runs", flush=True)
        except NotMeasuredError as error:
            if name == OURS:
                raise
            reasons[name] = str(error)
            print(f"{name} is not measured: {error}", flush=True)
    return found, reasons


def take_turns(
    client: Client,
    running: Sequence[Server],
    modes: Sequence[str],
    rounds: int,
    seconds: float,
    kept: Callable[[Found, Reasons], None] = lambda _found, _reasons: None,
) -> tuple[Found, Reasons]:
    """Round 0 warms up and finds out who can do what; who once fails in a mode is not listed there, but in reasons."""
    found: Found = {mode: {server.name: [] for server in running} for mode in modes}
    reasons: Reasons = {}
    for turn in range(rounds + 1):
        shift = turn % len(running)
        for mode in modes:
            able = [server for server in [*running[shift:], *running[:shift]] if server.name in found[mode]]
            for server in able:
                try:
                    numbers = client.measure(server, mode, seconds if turn else WARM_SECONDS)
                except (RuntimeError, ValueError) as error:  # refused, or answered wrongly
                    del found[mode][server.name]
                    reasons[f"{server.name}, {mode}"] = " ".join(str(error).split())[:300]
                    print(f"{server.name} cannot do {mode}: {error}", flush=True)
                    continue
                if turn:
                    found[mode][server.name].append(numbers)
                print(f"round {turn} of {rounds}, {mode}, {server.name}: {shown(numbers)}", flush=True)
        kept(found, reasons)
    return found, reasons


def shown(numbers: Numbers) -> str:
    rate, p50, p99 = (numbers[key] for key in ("requests_per_second", "p50_ms", "p99_ms"))
    return f"{rate:.0f}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms"


def medians(found: Found) -> dict[str, dict[str, Numbers]]:
    return {
        mode: {name: {key: statistics.median(one[key] for one in each) for key in each[0]} for name, each in by.items()}
        for mode, by in found.items()
    }


def ratios(found: Found) -> dict[str, dict[str, Any]]:
    """Ours against the best Python server and against Triton, mode by mode, and with each one's better HTTP mode."""
    rates = {
        mode: {name: [one["requests_per_second"] for one in each] for name, each in by.items()}
        for mode, by in found.items()
    }
    names = {name for mode in HTTP_LOADED for name in rates[mode]}
    rates["8 connections, HTTP, each one's better"] = {
        name: max((rates[mode][name] for mode in HTTP_LOADED if name in rates[mode]), key=statistics.median)
        for name in sorted(names)
    }
    return {mode: mode_ratios(by) for mode, by in rates.items() if OURS in by}


def mode_ratios(rates: dict[str, list[float]]) -> dict[str, Any]:
    able = [name for name in PYTHON if name in rates]
    best = max(able, key=lambda name: statistics.median(rates[name]), default=None)
    result: dict[str, Any] = {"best_python": best}
    for key, rival in (("to_best_python", best), ("to_triton", TRITON)):
        if rival in rates:
            each = [ours / theirs for ours, theirs in zip(rates[OURS], rates[rival], strict=True)]
            result[key] = {"median": statistics.median(each), "least": min(each), "most": max(each)}
    return result


def batching(client: Client, bundle: Path, folder: Path, rounds: int, seconds: float) -> Found:
    """Our server under several settings of its batching."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(servers.splitveil(bundle, folder, name, *options))
            for name, options in BATCHING.items()
        ]  # fmt: skip
        return take_turns(client, running, BATCHING_MODES, rounds, seconds)[0]


def facts() -> dict[str, Any]:
    """Versions of all that was measured."""
    pins = {
        name: dict(line.split("==") for line in (servers.HERE / f"{name}.txt").read_text().splitlines() if "==" in line)
        for name in ("kserve", "mlserver", "triton")
    }
    ours = ("onnxruntime", "starlette", "uvicorn", "uvloop", "grpcio", "tritonclient")
    return {
        "splitveil": {**versions(), **{name: version(name) for name in ours}},
        **{name: {key: pins[name][key] for key in keys} for name, keys in (
            ("kserve", ("kserve", "onnxruntime", "uvicorn", "grpcio")),
            ("mlserver", ("mlserver", "onnxruntime", "uvicorn", "grpcio")),
            ("triton", ("nvidia-pytriton", "onnxruntime", "numpy")),
        )},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.2, help="of each measurement")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary, context.Pool(1) as pool:
        folder = Path(temporary)
        made = bundles(folder / "bundles")
        client = Client(pool, made / "server")
        load = [os.getloadavg()[0]]
        with ExitStack() as stack:
            running, missing = start(stack, made / "server", folder)
            found, unable = take_turns(
                client, running, list(MODES), options.rounds, options.seconds,
                lambda found, unable: keep(options.out, {"rounds": found, "not_able": unable}),
            )  # fmt: skip
            counts = client.socket_bytes(running[0], made / "edge")
        keep(options.out, {"rounds": found, "not_measured": missing, "not_able": unable, "bytes": counts})
        together = batching(client, made / "server", folder, options.rounds, options.seconds)
    load.append(os.getloadavg()[0])
    settings = {
        "rounds": options.rounds, "seconds": options.seconds, "rows_per_request": 1, "tolerance": TOLERANCE,
        "cut": CUT, "components": COMPONENTS, "input": SHAPE,
    }  # fmt: skip
    result = {
        "settings": settings, "ratios": ratios(found), "medians": medians(found), "rounds": found,
        "not_measured": missing, "not_able": unable, "bytes": counts, "batching": medians(together),
        "versions": facts(), "machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": load,
    }  # fmt: skip
    finish(options.out, result)
    summary = ("medians", "ratios", "not_measured", "not_able", "bytes", "batching")
    print(json.dumps({key: result[key] for key in summary}, indent=1))


if __name__ == "__main__":
    main()

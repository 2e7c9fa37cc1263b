"""How long an honest client waits, and whether it is refused, while others attack: each beside an idle baseline.

    python benchmarks/attacks.py --out benchmarks/results/attacks.json

One server with its defaults (the bundle of serving.py) and three processes: the server, an honest client that asks one
query after the other over REST and gRPC, now and then over a new connection, and an attacker. Attacks and honest
clients come from different addresses of the loopback, or with ``--same-address`` from one. In each round the idle
server is measured before each attack; what counts is the 99th percentile under attack to that of the idle moments
beside it. All three share the cores, so that attackers are held to the rates that are named here: it is the server
that is measured, not a machine that has no time left. Each row is written as it lands.
"""

import argparse
import asyncio
import gzip
import json
import multiprocessing
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as by_grpc
from serving import COMPONENTS, MODEL, bundles

from splitveil.files import write_json

HONEST, ATTACKER = "127.0.0.1", "127.0.0.3"  # gRPC clients cannot choose theirs, and have the first
PAUSE_SECONDS = 0.004  # of the honest client between queries
NEW_CONNECTION_EACH = 25  # queries
HANGING_SECONDS = 60
BEGIN_SECONDS = 1.0  # until an attack is under way
INFER = f"/v2/models/{MODEL}/infer"
MIB = 2**20


def question(rows: int = 1, components: int = COMPONENTS) -> bytes:
    data = np.random.default_rng(0).normal(size=(rows, components)).ravel().tolist()
    tensor = {"name": "coefficients", "datatype": "FP32", "shape": [rows, components], "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def request(body: bytes, *fields: str, length: int | None = None) -> bytes:
    lines = "".join(field + "\r\n" for field in fields)
    size = len(body) if length is None else length
    return f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {size}\r\n\r\n".encode() + body


# The honest client.


def honest(port: int, grpc_port: int, address: str, seconds: float) -> dict[str, Any]:
    """Milliseconds of each query by protocol, and how many were refused, by what was said."""
    taken: dict[str, list[float]] = {"rest": [], "grpc": []}
    refused: dict[str, int] = {}
    asyncio.run(_ask(port, address, seconds / 2, taken["rest"], refused))
    with by_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
        tensor = by_grpc.InferInput("coefficients", [1, COMPONENTS], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, COMPONENTS), np.float32))
        end = time.perf_counter() + seconds / 2
        while (begin := time.perf_counter()) < end:
            try:
                client.infer(MODEL, [tensor], client_timeout=HANGING_SECONDS)
                taken["grpc"].append(1e3 * (time.perf_counter() - begin))
            except Exception as error:
                refused[str(error)[:60]] = refused.get(str(error)[:60], 0) + 1
            time.sleep(PAUSE_SECONDS)
    return {"taken": taken, "refused": refused}


async def _ask(port: int, address: str, seconds: float, taken: list[float], refused: dict[str, int]) -> None:
    sent = request(question())
    writer = None
    end, count = time.perf_counter() + seconds, 0
    while (begin := time.perf_counter()) < end:
        try:
            if writer is None or count % NEW_CONNECTION_EACH == 0:
                if writer:
                    writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            writer.write(sent)
            async with asyncio.timeout(HANGING_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
            status = head[9:12].decode()
        except (OSError, EOFError, TimeoutError) as error:
            status, writer = type(error).__name__, None
        if status == "200":
            taken.append(1e3 * (time.perf_counter() - begin))
        else:
            refused[status] = refused.get(status, 0) + 1
            writer = None
        count += 1
        await asyncio.sleep(PAUSE_SECONDS)


# Attackers: each goes on until it is stopped.

Attack = Callable[[int, int], Awaitable[None]]


ATTACKING: list[str] = []  # the address of this process, if it attacks


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(ATTACKING[0], 0))


async def forever(count: int, pause: float, once: Callable[[], Awaitable[None]]) -> None:
    """So many at once, each of them again and again, with a pause in seconds between."""

    async def one(first: float) -> None:
        await asyncio.sleep(first)
        while True:
            with suppress(OSError, EOFError):
                await once()
            await asyncio.sleep(pause)

    await asyncio.gather(*(one(index * max(pause, BEGIN_SECONDS) / count) for index in range(count)))


async def exchange(port: int, sent: bytes, *, half_close: bool = False) -> None:
    reader, writer = await connect(port)
    try:
        writer.write(sent)
        with suppress(OSError):
            await writer.drain()
        if half_close:
            writer.write_eof()
            await reader.read()
        else:
            await reader.read(65_536)
    finally:
        writer.close()


async def drip(port: int, start: bytes, seconds: float) -> None:
    """A start, then a byte each so many seconds, until the server has enough."""
    reader, writer = await connect(port)
    try:
        writer.write(start)
        while not reader.at_eof():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await reader.read(65_536)
                    return
            writer.write(b" ")
    finally:
        writer.close()


async def declared(port: int, _: int) -> None:
    """16 requests that declare 16 MiB and bring a byte now and then."""
    await forever(16, 1.0, lambda: drip(port, request(b"{", length=16 * MIB), 0.1))


async def arriving(port: int, _: int) -> None:
    """100 requests that bring 500 kB, all but the last bytes, and then stop."""
    await forever(100, 1.0, lambda: drip(port, request(b" " * 500_000, length=510_000), 1.0))


async def bombs(port: int, _: int) -> None:
    """Zeros by gzip, 96 kB a second."""
    bomb = gzip.compress(bytes(16 * MIB), 9)
    sent = request(bomb, "Content-Encoding: gzip")
    await forever(4, 4 * len(bomb) / 96_000, lambda: exchange(port, sent))


async def numbers(port: int, _: int) -> None:
    """16 MiB of numbers in JSON, four times a second."""
    sent = request(b'{"inputs": [{"data": [' + b"0," * (8 * MIB) + b"0]}]}")
    await forever(4, 1.0, lambda: exchange(port, sent))


async def allowed_numbers(port: int, _: int) -> None:
    """The most JSON that is read, without a pause, over eight connections."""
    body = b'{"inputs": [{"data": [' + b",".join([b"-0.123456789012345678"] * 8192) + b"]}]}"
    await forever(8, 0.01, lambda: exchange(port, request(body)))


async def slow(port: int, _: int) -> None:
    """1000 connections that send a header's byte each second."""
    start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nX: ".encode()
    await forever(1000, 2.0, lambda: drip(port, start, 1.0))


async def half_closes(port: int, _: int) -> None:
    """Five queries at once and the end of the client's side, 100 times a second."""
    await forever(4, 0.04, lambda: exchange(port, 5 * request(question()), half_close=True))


async def pipelining(port: int, _: int) -> None:
    """171 kB of small requests at once, twice a second."""
    health = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    await forever(2, 1.0, lambda: exchange(port, health * (171_000 // len(health)), half_close=True))


async def slow_readers(port: int, _: int) -> None:
    """100 connections that ask for all metrics, 80 times a second together, and read nothing."""

    async def once() -> None:
        _, writer = await connect(port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        try:
            for _ in range(10):
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                await asyncio.sleep(1.25)
        finally:
            writer.close()

    await forever(100, 1.0, once)


async def flood(port: int, _: int) -> None:
    """3000 connections from one address, kept as long as they are let."""

    async def once() -> None:
        reader, writer = await connect(port)
        try:
            await reader.read(65_536)
        finally:
            writer.close()

    await forever(3000, 3.0, once)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"  # and empty settings


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def call(stream: int) -> bytes:
    """The headers of an inference, by indices of HPACK's static table and literals."""
    path = b"/inference.GRPCInferenceService/ModelInfer"
    block = b"\x83\x86\x04" + bytes((len(path),)) + path + b"\x01\x01x" + b"\x0f\x10\x10application/grpc"
    return frame(1, 4, stream, block + b"\0\x02te\x08trailers")


def message(stream: int, content: bytes) -> bytes:
    return frame(0, 1, stream, b"\0" + struct.pack(">I", len(content)) + content)


async def undecodable(_: int, port: int) -> None:
    """Calls whose message is none, 400 a second."""

    async def once() -> None:
        reader, writer = await connect(port)
        try:
            writer.write(PREFACE)
            for stream in range(1, 200, 2):
                writer.write(call(stream) + message(stream, b"\xff" * 20))
                await asyncio.sleep(0.01)
                reader._buffer.clear()  # type: ignore[attr-defined]
        finally:
            writer.close()

    await forever(4, 0.01, once)


async def rapid_reset(_: int, port: int) -> None:
    """Calls that are cancelled at once, 2000 a second."""

    async def once() -> None:
        reader, writer = await connect(port)
        try:
            writer.write(PREFACE)
            for stream in range(1, 4000, 20):
                for each in range(stream, stream + 20, 2):
                    writer.write(call(each) + frame(3, 0, each, b"\0\0\0\x08"))
                await asyncio.sleep(0.01)
                reader._buffer.clear()  # type: ignore[attr-defined]
                if reader.at_eof():
                    return
        finally:
            writer.close()

    await forever(2, 0.01, once)


async def stalled(_: int, port: int) -> None:
    """2000 calls of which no message comes."""

    async def once() -> None:
        reader, writer = await connect(port)
        try:
            writer.write(PREFACE + b"".join(map(call, range(1, 200, 2))))
            await asyncio.sleep(5)
            reader._buffer.clear()  # type: ignore[attr-defined]
        finally:
            writer.close()

    await forever(20, 1.0, once)


async def many_parts(_: int, port: int) -> None:
    """Messages of 4 MiB with two million empty inputs, two a second."""
    content = b"\x2a\0" * (2 * MIB)
    pieces = [(b"\0" + struct.pack(">I", len(content)) + content)[at : at + 16_384] for at in range(0, 4 * MIB, 16_384)]

    async def once() -> None:
        reader, writer = await connect(port)
        try:
            writer.write(PREFACE + call(1))
            for piece in pieces:
                writer.write(frame(0, piece is pieces[-1], 1, piece))
                await writer.drain()
                await asyncio.sleep(0.001)  # so that the server's window has opened
            await asyncio.sleep(0.1)
            reader._buffer.clear()  # type: ignore[attr-defined]
        finally:
            writer.close()

    await forever(1, 0.5, once)


ATTACKS: dict[str, Attack] = {
    "16 MiB declared and dripped": declared, "500 kB brought and stopped": arriving, "gzip bombs": bombs,
    "16 MiB of JSON numbers": numbers, "most JSON allowed": allowed_numbers, "1000 slow connections": slow,
    "half-closes": half_closes, "pipelining": pipelining, "slow readers": slow_readers, "connection flood": flood,
    "undecodable gRPC": undecodable, "rapid reset": rapid_reset, "stalled gRPC": stalled,
    "many parts in gRPC": many_parts,
}  # fmt: skip


def attack(name: str, port: int, grpc_port: int, address: str, begun: Event, stop: Event) -> None:
    """In a process of its own, until it is stopped."""
    ATTACKING.append(address)

    async def run() -> None:
        attacking = asyncio.create_task(ATTACKS[name](port, grpc_port))
        await asyncio.sleep(BEGIN_SECONDS)
        begun.set()
        while not stop.is_set():
            await asyncio.sleep(0.05)
            if attacking.done():
                raise RuntimeError("the attack has ended") from attacking.exception()

    asyncio.run(run())


# The measurement.


def percentiles(taken: list[float]) -> dict[str, float]:
    return {"queries": len(taken), "p50_ms": float(np.median(taken)), "p99_ms": float(np.percentile(taken, 99))}


def measure(pool: Pool, ports: tuple[int, int], address: str, seconds: float) -> dict[str, Any]:
    found = pool.apply_async(honest, (*ports, address, seconds)).get(10 * HANGING_SECONDS)
    return {**{key: percentiles(value) for key, value in found["taken"].items() if value}, "refused": found["refused"]}


def rounds(options: argparse.Namespace, pool: Pool, ports: tuple[int, int], place: Path) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    attacker = HONEST if options.same_address else ATTACKER
    rows: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for name in options.attacks or ATTACKS:
            idle = measure(pool, ports, HONEST, options.seconds)
            begun, stop = context.Event(), context.Event()
            attacking = context.Process(target=attack, args=(name, *ports, attacker, begun, stop))
            attacking.start()
            begun.wait(HANGING_SECONDS)
            under = measure(pool, ports, HONEST, options.seconds)
            alive = attacking.is_alive()
            stop.set()
            attacking.join(HANGING_SECONDS)
            if not alive:
                raise RuntimeError(f"the attack '{name}' ended early")
            ratio = {key: under[key]["p99_ms"] / idle[key]["p99_ms"] for key in ("rest", "grpc") if key in under}
            rows.append({"round": number, "attack": name, "idle": idle, "under": under, "ratio": ratio})
            print(f"{name}: {ratio}, idle {idle}, under {under}", flush=True)
            write_json(place, result(options, rows))
    return rows


def result(options: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary = {}
    for name in dict.fromkeys(row["attack"] for row in rows):
        each = [row for row in rows if row["attack"] == name]
        summary[name] = {
            "refused": sum(sum(row["under"]["refused"].values()) for row in each),
            **{
                key: {"median": statistics.median(found), "least": min(found)}
                for key in ("rest", "grpc") if (found := [row["ratio"][key] for row in each if key in row["ratio"]])
            },
        }  # fmt: skip
    settings = {"rounds": options.rounds, "seconds": options.seconds, "same_address": options.same_address}
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return {"settings": settings, "ratio_of_p99_to_idle": summary, "rows": rows, "machine": machine,
            "load": os.getloadavg()[0]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement, half of it for each protocol")
    parser.add_argument("--same-address", action="store_true", help="the honest client has the attacker's address")
    parser.add_argument("--attacks", nargs="*", choices=list(ATTACKS), help="all, if none is named")
    parser.add_argument("--bundle", type=Path, help="a server bundle; made anew if none is named")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bundle = options.bundle or bundles(Path(temporary) / "bundles") / "server"
        command = [sys.executable, "-m", "splitveil", "serve", bundle, "--http-port", "0", "--grpc-port", "0", "--json"]
        with (
            (Path(temporary) / "log").open("wb") as log,
            subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=log, text=True) as server,
            multiprocessing.get_context("spawn").Pool(1) as pool,
        ):
            try:
                assert server.stdout is not None
                places = json.loads(server.stdout.readline())
                ports = tuple(int(places[key].rpartition(":")[2]) for key in ("rest", "grpc"))
                rounds(options, pool, (ports[0], ports[1]), options.out)
            finally:
                server.terminate()
                server.wait(HANGING_SECONDS)
    print(json.dumps(json.loads(options.out.read_text())["ratio_of_p99_to_idle"], indent=1))


if __name__ == "__main__":
    main()

"""``splitveil serve``: the inference server for server bundles; runs without torch."""

import asyncio
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, TypeVar

import typer

T = TypeVar("T")
_MEBIBYTE = 2**20


def serve(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="Server bundles, or folders of NAME/VERSION bundles."),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option("--http-port", help="Of REST; 0: any free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option("--grpc-port", help="Of gRPC; 0: any free one.")] = 8001,
    health_port: Annotated[
        int | None, typer.Option("--health-port", help="Of live, ready and metrics alone, in plain HTTP; 0: any free.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="Bearer tokens, one per line.")] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate with its chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="The certificate's key, PEM.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option("--client-ca", help="Ask clients for certificates of this authority, PEM.")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option("--require-signature", metavar="PUBLIC_KEY", help="Ed25519 key of all bundles, PEM.")
    ] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", help="Rows of a request, and computed together.")] = 64,
    max_delay_ms: Annotated[
        float, typer.Option("--max-delay-ms", help="How long a request waits for others to be computed with.")
    ] = 0.0,
    max_requests: Annotated[int, typer.Option("--max-requests", help="Answered at once; more get 503.")] = 384,
    max_connections: Annotated[int, typer.Option("--max-connections", help="Open at once, of each protocol.")] = 2048,
    max_body: Annotated[float, typer.Option("--max-body", help="MiB of a request, also decompressed.")] = 16.0,
    max_buffered: Annotated[float, typer.Option("--max-buffered", help="MiB of all requests together.")] = 256.0,
    max_json_numbers: Annotated[
        int, typer.Option("--max-json-numbers", help="In a request's JSON; binary tensors have no such limit.")
    ] = 8192,
    share: Annotated[
        float, typer.Option("--share", help="Of what others leave, for one address or token; 1: everything.")
    ] = 0.75,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option("--trusted-proxy", help="Address or network whose X-Forwarded-For is believed.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that a client has to send a request.")] = 10.0,
    drain: Annotated[float, typer.Option("--drain", help="Seconds for requests under way after SIGTERM.")] = 20.0,
    threads: Annotated[int, typer.Option("--threads", help="Of ONNX Runtime per model; 0: one per core.")] = 1,
    reload: Annotated[
        float, typer.Option("--reload", metavar="SECONDS", help="Look for changed bundles so often; 0: never.")
    ] = 0.0,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log each request; the log then grows as fast as clients ask.")
    ] = False,
    no_control: Annotated[bool, typer.Option("--no-control", help="Clients may not load or unload models.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say the addresses as one JSON object.")] = False,
) -> None:
    """Serve bundles by the Open Inference Protocol v2, REST and gRPC, until SIGTERM; SIGHUP reads the files again.

    Once both protocols answer, one line on stdout says where. Logs are JSON lines on stderr. See docs/serving.md.
    """
    _end_at_signals()
    # gRPC's core writes lines of its own to stderr about every stranger's bad bytes.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import uvloop

    # Seconds for which a thread that parses a large body keeps the others waiting. With Python's own 5 ms the 99th
    # percentile of other clients was up to ten times that of an idle server (benchmarks/attacks.py); now it is twice.
    sys.setswitchinterval(0.0005)

    from splitveil.serve import Addresses, Settings, open_models
    from splitveil.serve import serve as serve_models
    from splitveil.serve.logs import logging_to_stderr

    if not (math.isfinite(max_body) and 1 <= max_body * _MEBIBYTE < 2**31):
        raise typer.BadParameter("--max-body is a number of MiB above 0 and below 2048")
    if not (math.isfinite(max_buffered) and max_buffered * _MEBIBYTE >= 1):
        raise typer.BadParameter("--max-buffered is a number of MiB above 0")
    settings = Settings(
        host=host, http_port=http_port, grpc_port=grpc_port, health_port=health_port, token_file=token_file,
        tls_cert=tls_cert, tls_key=tls_key, client_ca=client_ca, public_key=public_key, max_batch=max_batch,
        max_delay_ms=max_delay_ms, max_requests=max_requests, max_connections=max_connections,
        max_body=int(max_body * _MEBIBYTE), max_buffered=int(max_buffered * _MEBIBYTE),
        max_json_numbers=max_json_numbers, share=share, trusted_proxies=tuple(trusted_proxy or ()),
        timeout=timeout, drain=drain, threads=threads, reload=reload, control=not no_control,
        access_log=access_log,
    )  # fmt: skip

    def say(addresses: Addresses) -> None:
        names = [f"{model.name}/{model.version}" for model in models.loaded]
        if as_json:
            typer.echo(json.dumps({**asdict(addresses), "models": names}))
        else:
            typer.echo(f"serving {', '.join(names)} at {addresses.rest} (REST) and {addresses.grpc} (gRPC)")

    with logging_to_stderr() as log, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        models = _heeding_signals(lambda: open_models(bundles, settings))
        models.metrics.count_suppressed(lambda: dict(log.throttle.suppressed))
        runner.run(serve_models(models, settings, say))


def _end_at_signals() -> None:
    """Before there is anything to drain, and after it was drained, a signal ends the process at once.

    By handlers, as the system ignores these signals for process 1 of a container where there is none.
    """

    def end(*_: Any) -> None:
        logging.shutdown()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def _heeding_signals(work: Callable[[], T]) -> T:
    """What some work returns, done in a thread: handlers run in this one alone, and not during long calls into C."""
    found: Future[T] = Future()

    def do() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    Thread(target=do, daemon=True).start()
    return found.result()

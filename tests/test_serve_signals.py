"""What signals do: before there is anything to drain, as process 1, and SIGHUP."""

import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme

from made_server import HANGING, server_bundle, serving

# A bundle that is never read to its end: the command, up to the first byte of a manifest.
STUCK = """
import os, signal, sys, time
import splitveil.serve
def stuck(*_):
    os.write(1, b"loading\\n")
    time.sleep(3600)
splitveil.serve.open_models = stuck
sys.argv = ["splitveil", "serve", "nowhere"]
from splitveil.cli import main
main()
"""
PROCESS_1 = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")


def may_be_process_1() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*PROCESS_1, "true"], capture_output=True).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_models_are_loaded_ends_the_process(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        assert process.wait(HANGING) == 0


@pytest.mark.skipif(not may_be_process_1(), reason="no namespace of processes can be made here")
def test_process_1_ends_too_whose_signals_the_system_ignores_where_there_is_no_handler() -> None:
    with subprocess.Popen([*PROCESS_1, sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        assert process.wait(HANGING) == 0


def until(happened: Callable[[], Any]) -> Any:
    end = time.monotonic() + HANGING
    while time.monotonic() < end:
        if found := happened():
            return found
        time.sleep(0.01)
    pytest.fail("it did not happen")


def serial(address: str) -> int:
    """Of the certificate that is shown at an address."""
    from cryptography.x509 import load_pem_x509_certificate

    host, port = address.rsplit(":", 1)
    return load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode()).serial_number


def write_certificate(authority: trustme.CA, folder: Path) -> None:
    made = authority.issue_cert("localhost", "127.0.0.1")
    made.private_key_pem.write_to_path(folder / "tls.key")
    made.cert_chain_pems[0].write_to_path(folder / "tls.pem")


def test_sighup_reads_tokens_certificates_and_bundles_again(tmp_path: Path) -> None:
    """And stops nothing: what is wrong leaves what was there."""
    folder = server_bundle(tmp_path / "bundle")
    authority, tokens = trustme.CA(), tmp_path / "tokens"
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    write_certificate(authority, tmp_path)
    tokens.write_text("a" * 20)
    arguments = ("--tls-cert", tmp_path / "tls.pem", "--tls-key", tmp_path / "tls.key", "--token-file", tokens)
    with serving(folder, *arguments) as server:

        def status(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
            return httpx.get(f"{server.rest}/v2/models/made", headers=headers, verify=context).status_code

        def live() -> bytes:
            credentials = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes())
            with grpc.secure_channel(server.grpc, credentials) as channel:
                return channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=HANGING)

        before = {serial(server.host), serial(server.grpc)}
        assert len(before) == 1
        assert [status("a" * 20), status("b" * 20), live()] == [200, 401, b"\x08\x01"]

        write_certificate(authority, tmp_path)
        tokens.write_text("b" * 20)
        server_bundle(folder, seed=1)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.events("reloaded"))
        after = {serial(server.host), serial(server.grpc)}
        assert len(after) == 1
        assert not after & before
        assert [status("a" * 20), status("b" * 20), live()] == [401, 200, b"\x08\x01"]
        assert [line["by"] for line in server.events("loaded")] == ["start", "hangup"]

        tokens.write_text("short")
        (tmp_path / "tls.key").write_text("nothing")
        server.process.send_signal(signal.SIGHUP)
        (refused,) = until(lambda: server.events("reload refused"))
        assert "short" not in refused["reason"]
        assert [status("b" * 20), live()] == [200, b"\x08\x01"]
        assert server.stop() == 0


def test_a_hangup_that_was_ignored_at_the_start_stays_so(tmp_path: Path) -> None:
    """As under nohup."""
    folder = server_bundle(tmp_path / "bundle")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with serving(folder) as server:
            server.process.send_signal(signal.SIGHUP)
            assert httpx.get(f"{server.rest}/v2/health/live").status_code == 200
            assert server.stop() == 0
            assert not server.events("reloaded")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hangup_of_the_terminal_stops_the_server(tmp_path: Path) -> None:
    folder = server_bundle(tmp_path / "bundle")
    ours, theirs = os.openpty()
    try:
        command = [sys.executable, "-m", "splitveil", "serve", str(folder), "--http-port", "0", "--grpc-port", "0"]
        with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"serving ")
            process.send_signal(signal.SIGHUP)
            assert process.wait(HANGING) == 0
            assert process.stderr is not None
            assert b'"event": "draining"' in process.stderr.read()
    finally:
        os.close(ours)
        os.close(theirs)

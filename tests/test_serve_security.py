"""Who is let in: tokens, TLS, client certificates; and that no log holds what was sent."""

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import trustme
from tritonclient.utils import InferenceServerException

from made_server import Half, Server, server_bundle, serving
from splitveil.errors import ServeError
from splitveil.serve import Settings, open_models, serve
from splitveil.serve.refusal import RefusedError
from splitveil.serve.tokens import Tokens

TOKEN = "correct-horse-battery-staple"
OTHER = "another-token-of-some-length"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return server_bundle(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# of the fleet\n{OTHER}\n\n{TOKEN}\n")
    return path


@pytest.fixture(scope="module")
def guarded(folder: Path, tokens: Path) -> Iterator[Server]:
    with serving(folder, "--token-file", tokens) as running:
        yield running


def tensor(module: Any, values: Any) -> Any:
    made = module.InferInput("coefficients", list(values.shape), "FP32")
    made.set_data_from_numpy(values)
    return made


def test_health_is_free_and_all_else_needs_the_token(guarded: Server) -> None:
    with httpx.Client(base_url=guarded.rest) as client:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        made = "/v2/models/made"
        read = ("/v2", made, f"{made}/config", f"{made}/ready", f"{made}/stats", "/v2/models/stats", "/metrics")
        write = (f"{made}/infer", "/v2/models/other/infer", "/v2/repository/index")
        change = ("/v2/repository/models/made/load", "/v2/repository/models/made/unload")
        asked = [("GET", path) for path in read] + [("POST", path) for path in (*write, *change)]
        for method, path in asked:
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN},
                           {"Authorization": f"Basic {TOKEN}"}, {"Authorization": f"Bearer {TOKEN[:-1]}"},
                           {"Authorization": b"Bearer \xff\xfe"}):  # fmt: skip
                answer = client.request(method, path, headers=header)
                assert answer.status_code == 401, (path, header)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "made" not in answer.text
        for token in (TOKEN, OTHER):
            assert client.get("/v2/models/made", headers={"Authorization": f"Bearer {token}"}).status_code == 200
            assert client.get("/metrics", headers={"Authorization": f"bearer {token}"}).status_code == 200


def test_the_token_works_with_the_standard_clients(guarded: Server, folder: Path) -> None:
    half = Half(folder)
    sent = half.random(2, 6)
    headers = {"authorization": f"Bearer {TOKEN}"}
    with (
        triton_http.InferenceServerClient(guarded.host) as http,
        triton_grpc.InferenceServerClient(guarded.grpc) as rpc,
    ):
        for client, module in ((http, triton_http), (rpc, triton_grpc)):
            found = client.infer("made", [tensor(module, sent)], headers=dict(headers))  # it adds its own
            np.testing.assert_allclose(found.as_numpy("logits"), half.logits(sent), rtol=1e-5, atol=1e-5)
            with pytest.raises(InferenceServerException, match="asks for a token"):
                client.infer("made", [tensor(module, sent)])
        assert rpc.is_server_live()
        assert rpc.is_server_ready()
        for call in (rpc.get_server_metadata, rpc.get_model_repository_index, rpc.get_inference_statistics,
                     lambda: rpc.get_model_metadata("made"), lambda: rpc.get_model_config("made"),
                     lambda: rpc.load_model("made"), lambda: rpc.unload_model("made"),
                     lambda: rpc.is_model_ready("made")):  # fmt: skip
            with pytest.raises(InferenceServerException, match="asks for a token") as caught:
                call()
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        assert rpc.get_model_config("made", headers=headers).config.name == "made"


def test_all_tokens_are_compared_however_early_one_fits(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, two: compared.append(len(one)) or real(one, two))
    known = Tokens(tokens)
    known.check(f"Bearer {OTHER}".encode())
    with pytest.raises(RefusedError):
        known.check(b"Bearer x")
    assert compared == [32] * 4


def test_a_token_file_is_not_cut_within_a_token(tmp_path: Path) -> None:
    line = b"t" * 50 + b"\n"
    content = line * (2**20 // len(line) + 1)
    assert len(content[: 2**20].splitlines()[-1]) >= 16  # what a cut would leave is long enough for a token
    (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(ServeError, match="more than 1048576 bytes"):
        Tokens(tmp_path / "tokens")


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"short\n", b"with blanks in the token\n", b"\xff" * 20])
def test_token_files_that_would_let_nobody_or_anybody_in(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(ServeError, match="token"):
        Tokens(tmp_path / "tokens")
    with pytest.raises(ServeError, match="cannot be read"):
        Tokens(tmp_path / "missing")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the server's certificate and key, a client's, and the authority."""
    folder = tmp_path_factory.mktemp("certificates")
    for name, issued in (("server", authority.issue_cert("localhost", "127.0.0.1")),
                         ("client", authority.issue_cert("client@example.org"))):  # fmt: skip
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for blob in issued.cert_chain_pems:
            blob.write_to_path(folder / f"{name}.pem", append=True)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    stranger = trustme.CA().issue_cert("client@example.org")
    stranger.private_key_pem.write_to_path(folder / "stranger.key")
    stranger.cert_chain_pems[0].write_to_path(folder / "stranger.pem")
    return folder


def trusting(certificate: Path, name: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificate / "ca.pem")
    if name:
        context.load_cert_chain(certificate / f"{name}.pem", certificate / f"{name}.key")
    return context


def over_tls(server: Server, certificate: Path, name: str | None = None) -> Any:
    pair = [(certificate / f"{name}.{end}").read_bytes() for end in ("key", "pem")] if name else [None, None]
    credentials = grpc.ssl_channel_credentials((certificate / "ca.pem").read_bytes(), *pair)
    return triton_grpc.InferenceServerClient(server.grpc, ssl=True, creds=credentials)


def test_tls_on_both_protocols(folder: Path, certificate: Path) -> None:
    half = Half(folder)
    sent = half.random(2, 6)
    files = ["--tls-cert", certificate / "server.pem", "--tls-key", certificate / "server.key"]
    with serving(folder, *files) as server:
        assert server.rest.startswith("https://")
        with httpx.Client(base_url=server.rest, verify=trusting(certificate)) as client:
            assert client.get("/v2/models/made").json()["identity"] == half.manifest.identity
        with over_tls(server, certificate) as rpc:
            found = rpc.infer("made", [tensor(triton_grpc, sent)]).as_numpy("logits")
            np.testing.assert_allclose(found, half.logits(sent), rtol=1e-5, atol=1e-5)
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.rest + "/v2/health/live")  # does not trust this authority
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.rest.replace("https", "http") + "/v2/health/live")
        assert server.stop() == 0


def test_client_certificates(folder: Path, certificate: Path) -> None:
    files = ["--tls-cert", certificate / "server.pem", "--tls-key", certificate / "server.key"]
    with serving(folder, *files, "--client-ca", certificate / "ca.pem") as server:
        with httpx.Client(base_url=server.rest, verify=trusting(certificate, "client")) as client:
            assert client.get("/v2/models/made").status_code == 200
        with over_tls(server, certificate, "client") as rpc:
            assert rpc.is_server_live()
        for name in (None, "stranger"):
            with (
                pytest.raises(httpx.HTTPError),
                httpx.Client(base_url=server.rest, verify=trusting(certificate, name)) as client,
            ):
                client.get("/v2/health/live")
            with over_tls(server, certificate, name) as rpc, pytest.raises(InferenceServerException):
                rpc.is_server_live()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tls_cert": Path("x")}, "both the certificate and its key"),
        ({"client_ca": Path("x")}, "need TLS"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_requests": 0}, "max_requests"),
        ({"timeout": 0.0}, "timeout"),
        ({"drain": float("nan")}, "drain"),
        ({"max_delay_ms": -1.0}, "max_delay_ms"),
        ({"reload": float("inf")}, "reload"),
        ({"threads": -1}, "threads"),
        ({"http_port": 70_000}, "http_port"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ServeError, match=words):
        replace(Settings(), **change)


def test_files_that_are_no_certificates_are_refused(folder: Path, certificate: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("nonsense")
    for change in (
        {"tls_cert": tmp_path / "bad", "tls_key": certificate / "server.key"},
        {"tls_cert": certificate / "server.pem", "tls_key": certificate / "client.key"},
        {"tls_cert": tmp_path / "missing", "tls_key": certificate / "server.key"},
        {"tls_cert": certificate / "server.pem", "tls_key": certificate / "server.key", "client_ca": tmp_path / "bad"},
    ):
        settings = Settings(http_port=0, grpc_port=0, **change)
        with pytest.raises(ServeError, match="PEM"):
            asyncio.run(serve(open_models([folder], settings), settings, lambda _: None))


def test_what_strangers_may_reach_is_said(tmp_path: Path) -> None:
    assert Settings(token_file=tmp_path).warnings == []
    assert Settings().warnings == []
    (clear,) = Settings(host="0.0.0.0", token_file=tmp_path).warnings
    assert "without TLS" in clear
    (everybody,) = Settings(host="10.0.0.1").warnings
    assert "everybody" in everybody
    assert Settings(host="::", token_file=tmp_path, tls_cert=tmp_path, tls_key=tmp_path).warnings == []


def test_no_log_holds_what_was_sent(folder: Path, tokens: Path) -> None:
    """Values that would be recognised, in good requests and in every kind of bad one."""
    value, text = 31.415926, "31.4159"
    sent = np.full((1, 6), value, np.float32)
    header = {"Authorization": f"Bearer {TOKEN}"}
    with serving(folder, "--token-file", tokens) as server:
        with httpx.Client(base_url=server.rest, headers=header) as client:
            path = "/v2/models/made/infer"
            good = {"name": "coefficients", "datatype": "FP32", "shape": [1, 6], "data": [value] * 6}
            assert client.post(path, json={"inputs": [good]}).status_code == 200
            for change in ({"data": [[value] * 5]}, {"data": [str(value)] * 6}, {"shape": [value]}, {"data": value},
                           {"data": [value] * 7}, {"datatype": "FP16"}, {"data": [value, 1e300] * 3}):  # fmt: skip
                answer = client.post(path, json={"inputs": [good | change]})
                assert answer.status_code == 400
                assert text not in answer.text
            for body in (f'{{"inputs": [{value}'.encode(), sent.tobytes(), b"{" + sent.tobytes()):
                answer = client.post(path, content=body)
                assert answer.status_code == 400
                assert text not in answer.text
        with triton_grpc.InferenceServerClient(server.grpc) as rpc:
            rpc.infer("made", [tensor(triton_grpc, sent)], headers={"authorization": f"Bearer {TOKEN}"})
            bad = triton_grpc.InferInput("coefficients", [2, 3], "FP32")
            bad.set_data_from_numpy(sent.reshape(2, 3))
            rpc.infer("made", [bad], headers={"authorization": f"Bearer {TOKEN}"})
        assert server.stop() == 0
        assert server.events("stopped")
        assert text not in server.log
        assert TOKEN not in server.log
        assert sent.tobytes()[:4].decode("latin-1") not in server.log

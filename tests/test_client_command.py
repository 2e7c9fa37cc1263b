"""``splitveil infer``: what it prints, where it may run, and the server that it is made for."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image

import splitveil as sv
from made_servers import Answering, listening
from splitveil import cli
from splitveil.bundle import read_edge, write_bundle
from splitveil.errors import RemoteError
from test_house import WITHOUT


class Result(NamedTuple):
    code: Any
    out: str
    err: str


@pytest.fixture
def splitveil(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["splitveil", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return Result(exit_.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def server(exported: Path) -> Answering:
    return Answering(exported / "server")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three photos; the name of one holds what rich would take for markup."""
    files = [tmp_path / name for name in ("a.png", "[red]b.png", "c.png")]
    x = sv.load_data("digit-pairs").test.images(slice(0, 3)).numpy()
    for file, image in zip(files, np.rint(x * 255).astype(np.uint8), strict=True):
        Image.fromarray(image[0]).save(file)
    return files


def test_a_table_for_people(splitveil: Any, exported: Path, server: Answering, photos: list[Path]) -> None:
    with listening(server) as (url, _):
        code, out, err = splitveil("infer", exported / "edge", *photos, "--url", url)
        with sv.EdgeClient(exported / "edge", url) as client:
            labels = [answer.label for answer in client.answers(photos)]
    assert (code, err) == (0, "3/3 reading\n3/3 asking\n")
    rows = [line for line in out.splitlines() if ".png" in line]
    assert len(rows) == 3
    for row, label in zip(rows, labels, strict=True):
        assert [cell.strip() for cell in row.split("│")][2] == label
    assert "[red]b.png" in rows[1]


def test_photos_of_many_megapixels_are_read_without_a_word(
    splitveil: Any, exported: Path, server: Answering, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(photos[0]) as photo:
        width, height = photo.size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", width * height - 1)  # from so many on Pillow warns
    with listening(server) as (url, _):
        code, _, err = splitveil("infer", exported / "edge", photos[0], "--url", url, "--quiet")
    assert (code, err) == (0, "")


def test_one_object_for_machines(splitveil: Any, exported: Path, server: Answering, photos: list[Path]) -> None:
    with listening(server) as (url, _):
        call = (
            "infer",
            exported / "edge",
            *photos[:2],
            "--url",
            url,
            "--m",
            5,
            "--coding",
            "int4",
            "--json",
            "--quiet",
        )
        code, out, err = splitveil(*call)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["model"], found["identity"], found["url"]) == ("pairs", server.manifest.identity, url)
    assert (found["m"], found["coding"]) == (5, "int4")
    for photo, answer in zip(photos, found["answers"], strict=False):
        assert answer["photo"] == str(photo)
        assert answer["frame_bytes"] == 16 + 3
        assert sum(answer["probabilities"]) == pytest.approx(1)
        assert answer["index"] == int(np.argmax(answer["logits"]))
        assert "wire" not in answer


def test_the_wire_is_shown_as_it_was(splitveil: Any, exported: Path, server: Answering, photos: list[Path]) -> None:
    with listening(server) as (url, sockets):
        call = ("infer", exported / "edge", photos[0], "--url", url, "--show-wire", "--quiet")
        code, out, _ = splitveil(*call, "--json")
        asked, (came,) = server.requests[0], sockets.connections
        wire = json.loads(out)["answers"][0]["wire"]
        sent = bytes(came)[bytes(came).index(b"POST ") :]
        assert code == 0
        assert wire["request_bytes"] == len(sent)
        assert sent.endswith(bytes.fromhex(wire["frame"]))
        assert "".join(field["hex"] for field in wire["fields"]) == wire["frame"]
        assert wire["frame_bytes"] == 24
        assert (wire["photos_in_request"], wire["attempts"]) == (1, 1)
        assert wire["raw_feature_bytes"] == 16 + 4 * 512
        assert wire["photo_bytes"] == photos[0].stat().st_size
        assert asked.method == "GET"
        code, out, _ = splitveil(*call)
    assert code == 0
    for field in wire["fields"][:-1]:
        assert f" {field['name']} " in out
        assert f" {field['hex']} " in out
    assert " ".join(wire["fields"][-1]["hex"][start : start + 8] for start in (0, 8)) in out
    for size in ("frame_bytes", "request_bytes", "raw_feature_bytes", "photo_bytes"):
        assert f" {wire[size]} " in out


def test_tokens_and_limits_reach_the_client(
    splitveil: Any, exported: Path, server: Answering, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret-token\n")
    with listening(server) as (url, _):
        call = ("infer", exported / "edge", photos[0], "--url", url, "--token-file", tmp_path / "token", "--quiet")
        assert splitveil(*call).code == 0
        assert {request.headers["authorization"] for request in server.requests} == {"Bearer secret-token"}
        server.next = [httpx.Response(503)]
        code, out, err = splitveil(*call, "--retries", 0)
        assert (code, out) == (2, "")
        assert "tried once" in err
        code, _, err = splitveil(*call, "--timeout", 0)
        assert (code, err) == (
            2, "splitveil: timeout and deadline are seconds above 0, and retries a count from 0; change them\n"
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--m", "9"], "1 to 8 components"), (["--url", "server"], "no address of a server"),
        (["--url", "http://s.example", "--token-file", "{token}"], "for anybody to read"),
        (["--token-file", "{folder}"], "token cannot be read"), (["--token-file", "{image}"], "it is no text"),
        (["--ca", "{token}"], "holds no certificates"), (["--client-cert", "{token}"], "go together"),
        (["--require-signature", "{token}"], "holds no public key"),
        (["--require-signature", "{folder}/none.pem"], "none.pem cannot be read (No such file or directory); name"),
        (["--url", "http://127.0.0.1:1", "--retries", "0"], "cannot be reached"), (["{folder}/none.jpg"], "no photo"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    splitveil: Any, exported: Path, photos: list[Path], tmp_path: Path, options: list[str], sentence: str
) -> None:
    token = tmp_path / "token"
    token.write_text("hidden-word")
    places = {"{token}": token, "{folder}": tmp_path, "{image}": photos[0]}
    for place, path in places.items():
        options = [option.replace(place, str(path)) for option in options]
    code, out, err = splitveil(
        "infer", exported / "edge", photos[0], "--url", "http://127.0.0.1:9", "--quiet", *options
    )
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.startswith("splitveil: ")
    assert err.count("\n") == 1
    assert "hidden-word" not in err


def test_the_wrong_bundle_or_server_is_one_sentence(
    splitveil: Any, exported: Path, server: Answering, photos: list[Path], tmp_path: Path
) -> None:
    code, _, err = splitveil("infer", exported / "server", photos[0], "--url", "http://127.0.0.1:9")
    assert code == 2
    assert "name the edge bundle" in err
    damaged = Path(shutil.copytree(exported / "edge", tmp_path / "damaged"))
    (damaged / "edge.onnx").write_bytes(b"")
    code, _, err = splitveil("infer", damaged, photos[0], "--url", "http://127.0.0.1:9")
    assert code == 2
    assert "export again" in err
    server.identity = "0" * 64
    with listening(server) as (url, _):
        code, out, err = splitveil("infer", exported / "edge", photos[0], "--url", url)
    assert (code, out) == (2, "")
    assert "holds another bundle" in err
    assert not server.inferences


def test_plain_http_to_others_is_noted(
    splitveil: Any, exported: Path, server: Answering, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = httpx.AsyncClient.__init__

    def init(self: httpx.AsyncClient, **settings: Any) -> None:
        real(self, **{**settings, "transport": httpx.MockTransport(server)})

    monkeypatch.setattr(httpx.AsyncClient, "__init__", init)
    for url, noted in (("http://server.example", True), ("https://server.example", False)):
        code, _, err = splitveil("infer", exported / "edge", photos[0], "--url", url, "--quiet")
        assert code == 0
        assert ("without TLS" in err) == noted


def test_everything_runs_without_torch(exported: Path, server: Answering, photos: list[Path]) -> None:
    program = (
        f"sys.argv = ['splitveil', 'infer', {str(exported / 'edge')!r}, {str(photos[0])!r}, '--url', URL, "
        "'--show-wire', '--json', '--quiet']\n"
        "import splitveil\n"
        "assert splitveil.EdgeClient and splitveil.AsyncEdgeClient\n"
        "from splitveil.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'scipy', 'sklearn', 'matplotlib', 'safetensors', 'onnx'} & set(sys.modules)\n"
    )
    with listening(server) as (url, _):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", WITHOUT + program.replace("URL", repr(url))],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        with sv.EdgeClient(exported / "edge", url) as client:
            here = client.answer(photos[0])
    assert (done.returncode, done.stderr) == (0, "")
    (there,) = json.loads(done.stdout)["answers"]
    assert (there["label"], there["wire"]["frame"]) == (here.label, here.frame.hex())
    np.testing.assert_array_equal(np.array(there["logits"], np.float32), here.logits)


def test_the_real_server_answers(exported: Path, photos: list[Path], tmp_path: Path) -> None:
    serve = pytest.importorskip("splitveil.serve")
    settings = serve.Settings()
    models = serve.open_models([exported / "server"], settings)
    transport = httpx.ASGITransport(serve.application(models, settings))
    reference = httpx.MockTransport(Answering(exported / "server"))
    with (
        sv.EdgeClient(exported / "edge", "http://localhost", transport=transport) as client,
        sv.EdgeClient(exported / "edge", "http://localhost", transport=reference) as other,
    ):
        for real, wanted in zip(client.answers(photos), other.answers(photos), strict=True):
            np.testing.assert_allclose(real.logits, wanted.logits, rtol=0, atol=1e-4)
            assert real.frame == wanted.frame
    bundle = read_edge(exported / "edge")
    stranger = bundle.manifest.model_copy(update={"identity": bundle.manifest.identity[:8] + "0" * 56})
    write_bundle(tmp_path / "stranger", stranger, bundle.files)
    with (
        sv.EdgeClient(tmp_path / "stranger", "http://localhost", transport=transport) as client,
        pytest.raises(RemoteError, match="holds another bundle of pairs"),
    ):
        client.answer(photos[0])

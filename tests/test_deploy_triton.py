"""Model repositories for Triton: what is written, and the real server with it."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from made_paths import TOLERANCE, Truth, check_agree, check_client, rows_of
from made_server import Half, server_bundle
from splitveil.bundle import Messages, identity_of, read_server, write_bundle
from splitveil.cli import main
from splitveil.client import EdgeClient
from splitveil.codec import CODINGS, Coding
from splitveil.deploy.triton import write_repository
from splitveil.errors import BundleError, RemoteError, ServeError
from triton_binary import Triton, triton

CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


def certified(folder: Path, server: Path) -> Path:
    """A bundle that takes int8 frames of one length alone."""
    bundle = read_server(server)
    old = bundle.manifest.messages
    messages = Messages(
        components=old.components, positions=old.positions, codings=("int8",), certified=True,
        scales={"int8": old.scales["int8"]},
    )  # fmt: skip
    identity = identity_of(messages, bundle.manifest.files["server.onnx"].sha256)
    changes = {"messages": messages, "identity": identity, "name": "certified"}
    write_bundle(folder, bundle.manifest.model_copy(update=changes), bundle.files)
    return folder


def config(repository: Path, name: str) -> Any:
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), ModelConfig())


def inputs(parsed: Any) -> list[tuple[str, str, list[int], bool]]:
    types = ModelConfig.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type
    return [
        (each.name, types.values_by_number[each.data_type].name, list(each.dims), each.optional)
        for each in parsed.input
    ]


def test_the_config_says_what_the_bundle_takes_and_gives(exported: Path, tmp_path: Path) -> None:
    manifest = read_server(exported / "server").manifest
    (placed,) = write_repository(tmp_path, [exported / "server"], instances=3)
    parsed = config(tmp_path, "pairs")
    assert (parsed.name, parsed.backend, parsed.max_batch_size) == ("pairs", "python", 64)
    assert inputs(parsed) == [("frame", "TYPE_UINT8", [-1], True), ("coefficients", "TYPE_FP32", [-1], True)]
    assert [(each.name, list(each.dims)) for each in parsed.output] == [("logits", [10])]
    assert parsed.instance_group[0].count == 3
    assert parsed.HasField("dynamic_batching") is getattr(manifest, "rows_independent", False)
    assert {key: value.string_value for key, value in parsed.parameters.items()} == {
        "identity": manifest.identity, "components": "8", "codings": "float32,int8,int4", "certified": "false",
    }  # fmt: skip
    assert (placed.name, placed.version, placed.identity) == ("pairs", 1, manifest.identity)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "pairs/1/bundle/manifest.json", "pairs/1/bundle/server.onnx", "pairs/1/model.py", "pairs/config.pbtxt",
    ]  # fmt: skip
    assert placed.folder == tmp_path / "pairs" / "1"
    assert read_server(placed.folder / "bundle").manifest == manifest


def test_onnxruntime_serves_the_bare_graph(exported: Path, tmp_path: Path) -> None:
    write_repository(tmp_path, [exported / "server"], backend="onnxruntime")
    parsed = config(tmp_path, "pairs")
    assert parsed.backend == "onnxruntime"
    assert inputs(parsed) == [("coefficients", "TYPE_FP32", [8], False)]
    assert [path.name for path in (tmp_path / "pairs" / "1").iterdir()] == ["model.onnx"]
    assert (tmp_path / "pairs" / "1" / "model.onnx").read_bytes() == (exported / "server/server.onnx").read_bytes()


@pytest.mark.parametrize("mixes", [True, False])
def test_rows_of_strangers_share_a_batch_only_where_the_manifest_allows_it(tmp_path: Path, mixes: bool) -> None:
    bundle = server_bundle(tmp_path / "bundle", mixes=mixes)
    write_repository(tmp_path / "models", [bundle])
    assert config(tmp_path / "models", "made").HasField("dynamic_batching") is Half(bundle).mixes


def test_a_certified_bundle_takes_frames_alone(exported: Path, tmp_path: Path) -> None:
    bundle = certified(tmp_path / "bundle", exported / "server")
    write_repository(tmp_path / "models", [bundle])
    assert inputs(config(tmp_path / "models", "certified")) == [("frame", "TYPE_UINT8", [-1], False)]
    with pytest.raises(ServeError, match="certified and takes frames only"):
        write_repository(tmp_path / "other", [bundle], backend="onnxruntime")
    assert not (tmp_path / "other").exists()


def test_a_bundle_becomes_the_next_version_and_others_stay(exported: Path, tmp_path: Path) -> None:
    bundle = certified(tmp_path / "bundle", exported / "server")
    models = tmp_path / "models"
    placed = [write_repository(models, [exported / "server", bundle]), write_repository(models, [exported / "server"])]
    assert [[(each.name, each.version) for each in some] for some in placed] == [
        [("pairs", 1), ("certified", 1)], [("pairs", 2)],
    ]  # fmt: skip
    assert sorted(path.name for path in models.iterdir()) == ["certified", "pairs"]
    assert sorted(path.name for path in (models / "pairs").iterdir()) == ["1", "2", "config.pbtxt"]
    with pytest.raises(ServeError, match="versions for another backend"):
        write_repository(models, [exported / "server"], backend="onnxruntime")
    assert sorted(path.name for path in (models / "pairs").iterdir()) == ["1", "2", "config.pbtxt"]


def test_nothing_is_taken_along_but_what_was_checked(exported: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported / "server", tmp_path / "server"))
    (tmp_path / "secret").write_text("not for the repository")
    (bundle / "link").symlink_to(tmp_path / "secret")
    (bundle / "notes.txt").write_text("mine")
    (placed,) = write_repository(tmp_path / "models", [bundle])
    assert sorted(path.name for path in (placed.folder / "bundle").iterdir()) == ["manifest.json", "server.onnx"]


def test_what_cannot_be_written_is_refused(exported: Path, tmp_path: Path) -> None:
    server = exported / "server"
    with pytest.raises(ServeError, match="two of the bundles are named pairs"):
        write_repository(tmp_path / "twice", [server, server])
    (tmp_path / "foreign" / "pairs").mkdir(parents=True)
    (tmp_path / "foreign" / "pairs" / "config.pbtxt").write_text('name: "pairs"')
    with pytest.raises(ServeError, match="no model that 'splitveil deploy triton' wrote"):
        write_repository(tmp_path / "foreign", [server])
    with pytest.raises(BundleError, match="name the server bundle"):
        write_repository(tmp_path / "edge", [exported / "edge"])
    with pytest.raises(BundleError, match="is not signed"):
        write_repository(tmp_path / "signed", [server], public_key=_key(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "key.pem"]


def _key(folder: Path) -> Path:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PrivateKey.generate().public_key()
    (folder / "key.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return folder / "key.pem"


def test_the_command_writes_and_tells(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["splitveil", "deploy", "triton", str(tmp_path / "models"), "--bundle", str(exported / "server")]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert (model["name"], model["version"]) == ("pairs", 1)
    assert Path(model["folder"], "model.py").is_file()
    monkeypatch.setattr("sys.argv", [*command[:-1], str(exported / "edge")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert re.fullmatch(r"splitveil: .* name the server bundle beside it\n", capsys.readouterr().err)


@dataclass
class Served:
    """Triton with three models: ``pairs`` (vectors), ``maps`` (of a convolution), and ``broken``, not loaded."""

    server: Triton
    truths: dict[str, Truth]

    def ask(self, client: str, model: str, *tensors: tuple[str, np.ndarray[Any, Any], str]) -> np.ndarray[Any, Any]:
        """Logits by one of tritonclient's clients."""
        module = CLIENTS[client]
        given = []
        for name, values, datatype in tensors:
            given.append(module.InferInput(name, list(values.shape), datatype))
            given[-1].set_data_from_numpy(values)
        with module.InferenceServerClient(getattr(self.server, client)) as connection:
            return np.asarray(connection.infer(model, given).as_numpy("logits"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("triton")
    truths = {
        "pairs": Truth(folder / "pairs"),
        "maps": Truth(folder / "maps", name="maps", cut=2, m=4),
    }
    models = folder / "models"
    write_repository(models, [truth.server for truth in truths.values()])
    broken = read_server(truths["pairs"].server)
    write_bundle(folder / "broken", broken.manifest.model_copy(update={"name": "broken"}), broken.files)
    (placed,) = write_repository(models, [folder / "broken"])
    graph = placed.folder / "bundle" / "server.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with triton(models, folder) as server:
        with tritonclient.http.InferenceServerClient(server.http) as client:
            for name in truths:
                client.load_model(name)
        yield Served(server, truths)


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("model", ["pairs", "maps"])
def test_frames_and_coefficients_are_answered_as_in_this_process(served: Served, client: str, model: str) -> None:
    truth = served.truths[model]
    for coding in CODINGS:
        check_agree(served.ask(client, model, ("frame", rows_of(truth.frames(coding)), "UINT8")), truth.cut(coding))
    check_agree(served.ask(client, model, ("coefficients", truth.coefficients, "FP32")), truth.cut("float32"))
    # Fewer components than there are stand for zeros in the others' place.
    fewer = np.zeros_like(truth.coefficients)
    fewer[:, :2] = truth.coefficients[:, :2]
    check_agree(
        served.ask(client, model, ("coefficients", np.ascontiguousarray(fewer[:, :2]), "FP32")), truth.answer(fewer)
    )


@pytest.mark.slow
@pytest.mark.parametrize("coding", CODINGS)
def test_our_client_gets_what_its_frames_say(served: Served, coding: Coding) -> None:
    for truth in served.truths.values():
        check_client(truth, f"http://{served.server.http}", coding)


@pytest.mark.slow
def test_our_client_refuses_another_bundle(served: Served, exported: Path) -> None:
    with (
        EdgeClient(exported / "edge", f"http://{served.server.http}") as client,
        pytest.raises(
            RemoteError, match=f"holds another bundle of pairs .{served.truths['pairs'].encoder.manifest.identity[:12]}"
        ),
    ):
        client.answer(served.truths["pairs"].images[0])


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_wrong_tensors_are_errors_that_name_them(served: Served, client: str) -> None:
    truth = served.truths["pairs"]
    rows, coefficients = rows_of(truth.frames("int8")), truth.coefficients
    damaged = rows.copy()
    damaged[3, -1] ^= 1
    foreign = rows_of(served.truths["maps"].frames("int8"))
    wrong: list[tuple[str, list[tuple[str, np.ndarray[Any, Any], str]]]] = [
        ("'frame': a frame's checksum", [("frame", damaged, "UINT8")]),
        ("'frame': a frame of .* cannot be answered", [("frame", foreign, "UINT8")]),
        ("'frame': a frame of 128 by 1 numbers has 144 bytes", [("frame", rows[:, :-1].copy(), "UINT8")]),
        ("'frame': a frame has at least 16 bytes", [("frame", np.zeros((2, 0), np.uint8), "UINT8")]),
        ("'frame' data-type is 'FP32'", [("frame", coefficients, "FP32")]),
        ("shape for input 'frame'", [("frame", rows[0, :20], "UINT8")]),
        ("exactly one of the tensors 'frame' and 'coefficients'",
         [("frame", rows, "UINT8"), ("coefficients", coefficients, "FP32")]),
        ("'coefficients': not every number is finite", [("coefficients", coefficients * np.inf, "FP32")]),
        ("'coefficients': a row has 1 to 128 components here, not 129",
         [("coefficients", np.zeros((2, 129), np.float32), "FP32")]),
        ("'logits' are not finite", [("coefficients", np.full_like(coefficients, 3e38), "FP32")]),
        ("'coefficients' data-type is 'FP64'", [("coefficients", coefficients.astype(np.float64), "FP64")]),
        ("'pixels'", [("pixels", coefficients, "FP32")]),
        ("batch-size must be <= 64", [("frame", np.repeat(rows, 4, 0), "UINT8")]),
    ]  # fmt: skip
    for sentence, tensors in wrong:
        with pytest.raises(InferenceServerException, match=sentence) as refused:
            served.ask(client, "pairs", *tensors)
        assert refused.value.status() == ("400" if client == "http" else "StatusCode.INVALID_ARGUMENT"), sentence
    check_agree(served.ask(client, "pairs", ("frame", rows, "UINT8")), truth.cut("int8"))


@pytest.mark.slow
def test_many_at_once_get_each_its_own_answer_or_error(served: Served) -> None:
    truth = served.truths["pairs"]
    good = {coding: (rows_of(truth.frames(coding)), truth.cut(coding)) for coding in CODINGS}
    failures: list[str] = []

    def work(number: int) -> None:
        module = CLIENTS["grpc"]
        with module.InferenceServerClient(served.server.grpc) as connection:
            for turn in range(30):
                rows, wanted = good[CODINGS[(number + turn) % 3]]
                first = (number + turn) % 20
                spoilt = turn % 5 == 0
                asked = rows[first : first + 1 + turn % 4].copy()
                asked[-1, 4] ^= spoilt
                tensor = module.InferInput("frame", list(asked.shape), "UINT8")
                tensor.set_data_from_numpy(asked)
                try:
                    found = connection.infer("pairs", [tensor]).as_numpy("logits")
                    if spoilt:
                        failures.append("a damaged frame was answered")
                    check_agree_rows(found, wanted[first : first + len(asked)])
                except InferenceServerException as error:
                    if not spoilt or "checksum" not in str(error):
                        failures.append(str(error))
                except AssertionError as error:
                    failures.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert not [line for line in served.server.log if "Traceback" in line or "fault" in line]


def check_agree_rows(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * float(np.abs(wanted).max()))


@pytest.mark.slow
def test_a_changed_bundle_is_not_served(served: Served) -> None:
    with tritonclient.http.InferenceServerClient(served.server.http) as client:
        with pytest.raises(InferenceServerException, match=r"server\.onnx is not what its bundle says it is"):
            client.load_model("broken")
        assert not client.is_model_ready("broken")
        assert client.is_model_ready("pairs")

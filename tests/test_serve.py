"""The Open Inference Protocol v2: every client and form of input gets what the graph answers in process."""

import asyncio
import gzip
import json
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

from made_server import HANGING, Array, Half, Server, server_bundle, serving
from splitveil.bundle import to_frames
from splitveil.codec import CODINGS
from splitveil.serve import Settings, application, open_models

M = 3  # components sent, of 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return server_bundle(tmp_path_factory.mktemp("served") / "bundle", positions=(2, 3))


@pytest.fixture(scope="module")
def half(folder: Path) -> Half:
    return Half(folder)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    certified = server_bundle(tmp_path_factory.mktemp("certified") / "bundle", name="certified", certified=True)
    with serving(folder, certified, "--max-batch", 300) as running:
        yield running


def frames(half: Half, coefficients: Array, coding: Any = "float32") -> Any:
    made = to_frames(coefficients, half.messages, half.manifest.short_identity, m=coefficients.shape[1], coding=coding)
    return np.stack([np.frombuffer(frame, np.uint8) for frame in made])


TENSOR = {"frame": "UINT8", "coefficients": "FP32"}


def given(module: Any, name: str, values: Any, **more: Any) -> Any:
    tensor = module.InferInput(name, list(values.shape), TENSOR[name])
    tensor.set_data_from_numpy(values, **more)
    return tensor


def through(client: str, server: Server, name: str, values: Any) -> Array:
    """Logits by one of the four clients that exist."""
    if client == "http":
        with triton_http.InferenceServerClient(server.host) as http:
            return http.infer("made", [given(triton_http, name, values)]).as_numpy("logits")
    if client == "grpc":
        with triton_grpc.InferenceServerClient(server.grpc) as rpc:
            return rpc.infer("made", [given(triton_grpc, name, values)]).as_numpy("logits")

    async def ask() -> Array:
        if client == "http.aio":
            async with triton_http_aio.InferenceServerClient(server.host) as http:
                return (await http.infer("made", [given(triton_http_aio, name, values)])).as_numpy("logits")
        async with triton_grpc_aio.InferenceServerClient(server.grpc) as rpc:
            return (await rpc.infer("made", [given(triton_grpc_aio, name, values)])).as_numpy("logits")

    return asyncio.run(ask())


CLIENTS = ("http", "grpc", "http.aio", "grpc.aio")


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", ["frame", "coefficients"])
def test_every_client_gets_what_the_graph_answers(server: Server, half: Half, client: str, name: str) -> None:
    for rows, m in ((1, 6), (5, M), (300, 1)):
        sent = half.random(rows, m, seed=rows)
        found = through(client, server, name, frames(half, sent) if name == "frame" else sent)
        np.testing.assert_allclose(found, half.logits(sent), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("coding", CODINGS)
def test_frames_of_every_coding_are_answered(server: Server, half: Half, coding: Any) -> None:
    whole = np.random.default_rng(1).integers(-7, 8, size=(4, M, 2, 3)).astype(np.float32)
    sent = whole * half.messages.scale("int8")[:M].reshape(1, M, 1, 1)  # exact in every coding
    found = through("http", server, "frame", frames(half, sent, coding))
    np.testing.assert_allclose(found, half.logits(sent), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("name", ["frame", "coefficients"])
def test_json_and_binary_in_either_direction(
    server: Server, half: Half, binary_in: bool, binary_out: bool, name: str
) -> None:
    sent = half.random(3, M)
    tensor = given(triton_http, name, frames(half, sent) if name == "frame" else sent, binary_data=binary_in)
    with triton_http.InferenceServerClient(server.host) as client:
        wanted = [triton_http.InferRequestedOutput("logits", binary_data=binary_out)]
        found = client.infer("made", [tensor], model_version="1", request_id="mine", outputs=wanted)
    np.testing.assert_allclose(found.as_numpy("logits"), half.logits(sent), rtol=1e-5, atol=1e-5)
    said = found.get_response()
    assert (said["model_name"], said["model_version"], said["id"]) == ("made", "1", "mine")
    assert ("data" in said["outputs"][0]) != binary_out


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(server: Server, half: Half, algorithm: str) -> None:
    sent = half.random(200, M)
    with triton_http.InferenceServerClient(server.host) as client:
        found = client.infer(
            "made", [given(triton_http, "coefficients", sent)], request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )  # fmt: skip
    np.testing.assert_allclose(found.as_numpy("logits"), half.logits(sent), rtol=1e-5, atol=1e-5)
    with httpx.Client(verify=False, base_url=server.rest) as plain:
        reply = plain.post("/v2/models/made/infer", json=question(sent), headers={"Accept-Encoding": algorithm})
        assert reply.headers["content-encoding"] == algorithm
        none = plain.post("/v2/models/made/infer", json=question(sent), headers={"Accept-Encoding": "br, gzip;q=0"})
        assert "content-encoding" not in none.headers
        assert reply.json() == none.json()
    with triton_grpc.InferenceServerClient(server.grpc) as rpc:
        found = rpc.infer("made", [given(triton_grpc, "coefficients", sent)], compression_algorithm=algorithm)
    np.testing.assert_allclose(found.as_numpy("logits"), half.logits(sent), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("compressed", [False, True])
def test_plain_curl(server: Server, half: Half, tmp_path: Path, compressed: bool) -> None:
    sent = half.random(2, M)
    body = json.dumps(question(sent)).encode()
    (tmp_path / "body").write_bytes(gzip.compress(body) if compressed else body)
    command = ["curl", "-sf", "--data-binary", f"@{tmp_path / 'body'}", f"{server.rest}/v2/models/made/infer"]
    command += ["-H", "Content-Encoding: gzip", "--compressed"] if compressed else []
    done = subprocess.run(command, capture_output=True, check=True, timeout=HANGING)
    (output,) = json.loads(done.stdout)["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [2, 4])
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), half.logits(sent), rtol=1e-5, atol=1e-5)


def question(values: Array, **more: Any) -> dict[str, Any]:
    tensor = {"name": "coefficients", "datatype": "FP32", "shape": list(values.shape), "data": values.tolist()}
    return {"inputs": [tensor | more]}


def test_flat_and_nested_data_and_typed_contents_are_the_same(server: Server, half: Half) -> None:
    sent = half.random(2, M)
    with httpx.Client(verify=False, base_url=server.rest) as client:
        nested = client.post("/v2/models/made/infer", json=question(sent))
        flat = client.post("/v2/models/made/versions/1/infer", json=question(sent, data=sent.ravel().tolist()))
    assert nested.status_code == flat.status_code == 200
    assert nested.json() == flat.json()
    from tritonclient.grpc import service_pb2

    with triton_grpc.InferenceServerClient(server.grpc) as rpc:
        request = service_pb2.ModelInferRequest(model_name="made")
        tensor = request.inputs.add(name="coefficients", datatype="FP32", shape=sent.shape)
        tensor.contents.fp32_contents.extend(sent.ravel().tolist())
        answer = rpc._client_stub.ModelInfer(request)
    found = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 4)
    np.testing.assert_allclose(found, half.logits(sent), rtol=1e-5, atol=1e-5)


def test_what_both_protocols_say_of_the_server(server: Server, half: Half) -> None:
    identity = half.manifest.identity
    with triton_http.InferenceServerClient(server.host) as http, triton_grpc.InferenceServerClient(server.grpc) as rpc:
        for client in (http, rpc):
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("made")
            assert client.is_model_ready("made", "1")
        said = http.get_model_metadata("made")
        assert said["identity"] == identity
        assert said["inputs"] == [
            {"name": "frame", "datatype": "UINT8", "shape": [-1, -1]},
            {"name": "coefficients", "datatype": "FP32", "shape": [-1, -1, 2, 3]},
        ]
        assert said["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}]
        assert said["versions"] == ["1"]
        assert [item["name"] for item in http.get_model_metadata("certified")["inputs"]] == ["frame"]
        typed = rpc.get_model_metadata("made", as_json=True)
        assert [item["name"] for item in typed["inputs"]] == ["frame", "coefficients"]
        config = http.get_model_config("made")
        assert config["parameters"]["identity"]["string_value"] == identity
        assert config["max_batch_size"] == 300
        assert rpc.get_model_config("made").config.parameters["identity"].string_value == identity
        assert http.get_server_metadata()["name"] == rpc.get_server_metadata().name == "splitveil"
        index = http.get_model_repository_index()
        assert [(item["name"], item["version"], item["state"]) for item in index] == [
            ("made", "1", "READY"), ("certified", "1", "READY")
        ]  # fmt: skip
        assert [item.name for item in rpc.get_model_repository_index().models] == ["made", "certified"]


def test_statistics_and_metrics_count(folder: Path, half: Half) -> None:
    sent = half.random(3, M)
    with serving(folder) as server, triton_http.InferenceServerClient(server.host) as client:
        client.infer("made", [given(triton_http, "coefficients", sent)])
        with triton_grpc.InferenceServerClient(server.grpc) as rpc:
            rpc.infer("made", [given(triton_grpc, "coefficients", sent)])
            (seen,) = rpc.get_inference_statistics("made").model_stats
            assert (seen.inference_count, seen.execution_count, seen.inference_stats.success.count) == (6, 2, 2)
        (said,) = client.get_inference_statistics()["model_stats"]
        assert said["inference_count"] == 6
        httpx.post(f"{server.rest}/v2/models/made/infer", verify=False, content=b"nonsense")
        httpx.post(f"{server.rest}/v2/models/{'x' * 50}/infer", verify=False, content=b"nonsense")
        text = httpx.get(f"{server.rest}/metrics", verify=False).text
    for line in (
        'splitveil_requests_total{model="made",protocol="rest",status="ok"} 1.0',
        'splitveil_requests_total{model="made",protocol="grpc",status="ok"} 1.0',
        'splitveil_requests_total{model="made",protocol="rest",status="invalid"} 1.0',
        'splitveil_requests_total{model="",protocol="rest",status="missing"} 1.0',
        'splitveil_refusals_total{reason="invalid"} 1.0',
        'splitveil_batch_rows_sum{model="made"} 6.0',
        "splitveil_requests_in_flight 0.0",
        'splitveil_request_seconds_count{model="made",protocol="grpc"} 1.0',
    ):
        assert line in text, line
    assert f'splitveil_model_loaded{{identity="{half.manifest.identity}",model="made",version="1"}} 1.0' in text
    assert "xxx" not in text  # what a client made up is no label


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    said = answer.json()["error"]
    for word in words:
        assert word in said, said


def damaged(half: Half) -> Any:
    found = frames(half, half.random(1, M)).copy()
    found[0, -1] ^= 1
    return found


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shape of too many axes": ({"shape": [1, M, 2, 3, 1]}, "'coefficients'"),
    "positions of another bundle": ({"shape": [1, M, 3, 2]}, "'coefficients'"),
    "no components": ({"shape": [1, 0, 2, 3], "data": []}, "'coefficients'"),
    "too many components": ({"shape": [1, 7, 2, 3], "data": [0.0] * 42}, "'coefficients'"),
    "no rows": ({"shape": [0, M, 2, 3], "data": []}, "'coefficients'"),
    "too many rows": ({"shape": [301, M, 2, 3], "data": [0.0] * 18}, "1 to 300"),
    "another number of values": ({"shape": [2, M, 2, 3]}, "'coefficients'"),
    "negative size": ({"shape": [-1, M, 2, 3]}, "'coefficients'"),
    "size that is no number": ({"shape": [1.0, M, 2, 3]}, "'coefficients'"),
    "datatype": ({"datatype": "FP64"}, "'coefficients' is FP32"),
    "unknown input": ({"name": "pixels"}, "'pixels'"),
    "texts": ({"data": ["1"] * 18}, "'coefficients'"),
    "truths": ({"data": [True] * 18}, "'coefficients'"),
    "nothing": ({"data": [None] * 18}, "'coefficients'"),
    "huge": ({"data": [1e300] * 18}, "not finite"),
    "a number beyond any float": ({"data": [10**400] * 18}, "'coefficients'"),
    "ragged": ({"data": [[[[0.0] * 3, [0.0] * 3]] * M, []]}, "'coefficients'"),
    "no data": ({"data": None}, "'coefficients'"),
    "raw bytes that did not come": ({"parameters": {"binary_data_size": 72}}, "'coefficients'"),
    "shared memory": ({"parameters": {"shared_memory_region": "x"}}, "shared memory"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_tensors_are_refused_by_name(server: Server, half: Half, what: str) -> None:
    change, word = BAD[what]
    with httpx.Client(verify=False, base_url=server.rest) as client:
        body = json.dumps(question(half.random(1, M), **change))
        refused(client.post("/v2/models/made/infer", content=body), 400, word)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_values_that_are_not_finite_are_refused(server: Server, half: Half, value: str) -> None:
    sent = half.random(1, M)
    sent[0, 1] = float(value)
    with httpx.Client(verify=False, base_url=server.rest) as client:
        body = json.dumps(question(sent))
        assert value in body
        refused(client.post("/v2/models/made/infer", content=body), 400, "no JSON")
    for client_name in ("http", "grpc"):  # as raw numbers
        with pytest.raises(InferenceServerException, match="'coefficients' holds values that are not finite"):
            through(client_name, server, "coefficients", sent)


def test_bad_frames_are_refused_with_what_is_wrong(server: Server, half: Half) -> None:
    other = to_frames(half.random(1, M), half.messages, b"abcd", m=M, coding="float32")
    for bad, words in (
        (damaged(half), "'frame': a frame's checksum"),
        (np.frombuffer(other[0], np.uint8)[None], "'frame': a frame of 61626364"),
        (np.zeros((1, 5), np.uint8), "'frame': a frame has at least 16 bytes"),
        (np.zeros((1, 4000), np.uint8), "'frame' has shape"),
        (np.zeros((1,), np.uint8), "'frame' has shape"),
    ):
        for client in ("http", "grpc"):
            with pytest.raises(InferenceServerException, match=words) as caught:
                through(client, server, "frame", bad)
            assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_a_certified_bundle_takes_frames_alone(server: Server) -> None:
    with triton_http.InferenceServerClient(server.host) as http, triton_grpc.InferenceServerClient(server.grpc) as rpc:
        for client, module in ((http, triton_http), (rpc, triton_grpc)):
            with pytest.raises(InferenceServerException, match="'coefficients' is refused by this certified bundle"):
                client.infer("certified", [given(module, "coefficients", np.ones((1, 6), np.float32))])


def test_bad_requests_are_refused(server: Server, half: Half) -> None:
    good = question(half.random(1, M))
    (tensor,) = good["inputs"]
    with httpx.Client(verify=False, base_url=server.rest) as client:
        path = "/v2/models/made/infer"
        for body in (
            b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, json.dumps({"inputs": []}).encode(),
            json.dumps({"inputs": [tensor, tensor]}).encode(), json.dumps({"inputs": [7]}).encode(),
            json.dumps(good | {"id": 7}).encode(), json.dumps(good | {"parameters": 7}).encode(),
            json.dumps(good | {"outputs": [7]}).encode(),
        ):  # fmt: skip
            refused(client.post(path, content=body), 400)
        refused(client.post(path, json=good | {"outputs": [{"name": "labels"}]}), 400, "'labels'")
        classified = [{"name": "logits", "parameters": {"classification": 1}}]
        refused(client.post(path, json=good | {"outputs": classified}), 400, "'logits'")
        for length in ("-1", "x", "1e3", "9" * 30, "100000"):
            headers = {"Inference-Header-Content-Length": length}
            refused(client.post(path, json=good, headers=headers), 400)
        refused(client.post(path, content=b"x", headers={"Content-Encoding": "br"}), 415)
        refused(client.post(path, content=b"x", headers={"Content-Encoding": "gzip"}), 400)
        cut = zlib.compress(json.dumps(good).encode())[:-4]
        refused(client.post(path, content=cut, headers={"Content-Encoding": "deflate"}), 400)
        refused(client.post("/v2/models/other/infer", json=good), 404, "'other'")
        refused(client.post("/v2/models/made/versions/2/infer", json=good), 404, "'2'")
        refused(client.get("/v2/models/other"), 404)
        refused(client.get("/nothing"), 404)
        refused(client.get(path), 405)


def test_bad_grpc_requests_are_refused(server: Server, half: Half) -> None:
    import grpc
    from tritonclient.grpc import service_pb2

    sent = half.random(1, M)
    with triton_grpc.InferenceServerClient(server.grpc) as client:

        def ask(code: Any, word: str, **change: Any) -> None:
            request = service_pb2.ModelInferRequest(model_name="made", raw_input_contents=[sent.tobytes()])
            request.inputs.add(name="coefficients", datatype="FP32", shape=sent.shape)
            for key, value in change.items():
                request.ClearField(key)
                request.MergeFrom(service_pb2.ModelInferRequest(**{key: value}))
            with pytest.raises(grpc.RpcError, match=word) as caught:
                client._client_stub.ModelInfer(request)
            assert caught.value.code() == code

        invalid = grpc.StatusCode.INVALID_ARGUMENT
        ask(grpc.StatusCode.NOT_FOUND, "'other'", model_name="other")
        ask(grpc.StatusCode.NOT_FOUND, "'7'", model_version="7")
        ask(invalid, "exactly one input", inputs=[])
        ask(invalid, "'coefficients' has 3 bytes", raw_input_contents=[b"abc"])
        ask(invalid, "needs its data once", raw_input_contents=[b"abc", b"d"])
        ask(invalid, "'coefficients' has 0 values", raw_input_contents=[])
        ask(invalid, "'labels'", outputs=[{"name": "labels"}])
        ask(invalid, "'coefficients' is FP32", inputs=[{"name": "coefficients", "datatype": "FP16", "shape": [1]}])
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            client.get_system_shared_memory_status()


def test_logits_that_overflow_are_the_clients_fault(server: Server) -> None:
    with pytest.raises(InferenceServerException, match="'coefficients' is so large that 'logits' are not finite"):
        through("http", server, "coefficients", np.full((1, 6, 2, 3), 3e38, np.float32))


def test_the_application_answers_without_sockets(folder: Path, half: Half) -> None:
    settings = Settings()
    app = application(open_models([folder], settings), settings)
    sent = half.random(2, M)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            verify=False, transport=httpx.ASGITransport(app), base_url="http://here"
        ) as client:
            assert (await client.get("/v2/health/ready")).status_code == 200
            return await client.post("/v2/models/made/infer", json=question(sent))

    (output,) = asyncio.run(ask()).json()["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], (2, 4)), half.logits(sent), rtol=1e-5, atol=1e-5)


def test_a_fault_of_ours_is_an_opaque_id(
    folder: Path, half: Half, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings()
    models = open_models([folder], settings)
    monkeypatch.setattr(models.get("made")._batcher, "_run", lambda _: 1 / 0 + float("987654.25"))
    app = application(models, settings)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            verify=False, transport=httpx.ASGITransport(app), base_url="http://here"
        ) as client:
            return await client.post("/v2/models/made/infer", json=question(half.random(1, M)))

    answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert "ZeroDivision" not in answer.text
    (record,) = [record for record in caplog.records if record.getMessage() == "fault"]
    assert record.fields["id"] in answer.json()["error"]
    assert "ZeroDivisionError" in record.fields["traceback"]
    assert "division by zero" not in record.fields["traceback"]  # texts of exceptions may hold values


def test_a_real_export_is_served(exported: Path) -> None:
    half = Half(exported / "server")
    sent = half.random(3, 5)
    with serving(exported / "server") as server, triton_http.InferenceServerClient(server.host) as client:
        found = client.infer("pairs", [given(triton_http, "frame", frames(half, sent))])
    np.testing.assert_allclose(found.as_numpy("logits"), half.logits(sent), rtol=1e-5, atol=1e-5)

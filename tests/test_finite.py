"""Finite messages from a photo to the answer: real graphs, a real server, REST and gRPC, and refusals of all else."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

import splitveil as sv
from made_bundles import made_finite_bundle
from made_paths import rows_of
from made_server import Half, Server, serving
from splitveil.bundle import Graph, Messages, from_frames, read_edge, read_server, to_frames, write_bundle
from splitveil.client import AsyncEdgeClient, EdgeClient, EdgeEncoder, describe
from splitveil.codec import index_bytes
from splitveil.deploy.triton import write_repository
from splitveil.errors import ServeError, WireError
from splitveil.wire import HEADER_BYTES, Frame, encode, pack_digits, unpack_digits

LEVELS = {"small": (5, 7, 11), "large": (256,) * 16}
"""Messages of two bytes, and of sixteen: more than 64 bits."""
SIZES = {"small": 2, "large": 16}
PHOTOS = 20


@dataclass(frozen=True)
class Made:
    """A bundle of finite messages, and what its halves say in this process."""

    folder: Path
    levels: tuple[int, ...]
    images: Any
    digits: Any
    logits: Any

    @property
    def identity(self) -> bytes:
        return read_server(self.folder / "server").manifest.short_identity

    def frames(self, digits: Any) -> list[bytes]:
        return pack_digits(np.asarray(digits), self.levels, self.identity)


@pytest.fixture(scope="module", params=LEVELS)
def made(request: pytest.FixtureRequest, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    levels = LEVELS[request.param]
    folder = made_finite_bundle(tmp_path_factory.mktemp(request.param), exported, levels)
    images = sv.load_data("digit-pairs").test.images(slice(0, PHOTOS)).numpy()
    edge = read_edge(folder / "edge")
    digits = Graph(edge.files["edge.onnx"], images.shape[1:], (len(levels),)).run(images)
    return Made(folder, levels, images, digits, Half(folder / "server").logits(digits))


@pytest.fixture(scope="module")
def server(made: Made) -> Iterator[Server]:
    with serving(made.folder / "server", "--max-batch", 64) as running:
        yield running


def ask(module: Any, address: str, frames: list[bytes]) -> Any:
    """Logits by a standard client."""
    rows = rows_of(frames)
    tensor = module.InferInput("frame", list(rows.shape), "UINT8")
    tensor.set_data_from_numpy(rows)
    with module.InferenceServerClient(address) as client:
        return client.infer("finite", [tensor]).as_numpy("logits")


def test_the_made_graphs_say_something(made: Made) -> None:
    assert (made.digits == np.rint(made.digits)).all()
    assert len(np.unique(made.digits, axis=0)) > PHOTOS // 2
    assert len(np.unique(made.logits.argmax(1))) > 2


def test_frames_are_of_one_length_and_hold_the_graph_s_digits(made: Made, request: pytest.FixtureRequest) -> None:
    encoder = EdgeEncoder(made.folder / "edge")
    frames = encoder.frames(list(made.images))
    size = HEADER_BYTES + SIZES[request.node.callspec.params["made"]]
    assert {len(frame) for frame in frames} == {size}
    assert encoder.manifest.messages.frame_bytes(encoder.m, encoder.coding) == size
    assert (encoder.m, encoder.coding) == (len(made.levels), "index")
    np.testing.assert_array_equal(unpack_digits(frames, made.levels, made.identity), made.digits)
    assert len({frame[:12] for frame in frames}) == 1  # nothing varies but the index, and the checksum with it
    # A photo's frame does not depend on the photos beside it.
    assert [encoder.frames([image])[0] for image in made.images] == frames


def test_a_client_gets_the_answers_of_its_messages(made: Made, server: Server) -> None:
    with EdgeClient(made.folder / "edge", server.rest) as client:
        answers = client.answers(list(made.images))
        assert len({answer.frame for answer in answers}) == len(np.unique(made.digits, axis=0))
    np.testing.assert_allclose(np.stack([answer.logits for answer in answers]), made.logits, rtol=1e-5, atol=1e-5)
    assert [answer.index for answer in answers] == made.logits.argmax(1).tolist()

    async def one() -> Any:
        async with AsyncEdgeClient(made.folder / "edge", server.rest) as client:
            return await client.answer(made.images[0])

    alone = asyncio.run(one())
    assert alone.frame == answers[0].frame
    np.testing.assert_allclose(alone.logits, made.logits[0], rtol=1e-5, atol=1e-5)


def test_rest_and_grpc_answer_index_frames(made: Made, server: Server) -> None:
    every = np.random.default_rng(3).integers(0, made.levels, (40, len(made.levels)))
    every[0], every[1] = 0, np.array(made.levels) - 1
    wanted = Half(made.folder / "server").logits(every.astype(np.float32))
    assert len(np.unique(wanted, axis=0)) == len(np.unique(every, axis=0))
    for module, address in ((tritonclient.http, server.host), (tritonclient.grpc, server.grpc)):
        np.testing.assert_allclose(ask(module, address, made.frames(every)), wanted, rtol=1e-5, atol=1e-5)


def strangers(made: Made) -> list[tuple[bytes, str]]:
    """Frames that the bundle does not take, and what is said of them."""
    octets, name = np.zeros((1, index_bytes(made.levels)), np.uint8), made.identity
    found = [
        (encode(Frame(b"abcd", octets, "index")), "hold different models or bases"),
        (encode(Frame(name, octets[:, 1:], "index")), "every message here is an index of"),
        (encode(Frame(name, np.zeros((1, octets.size + 1), np.uint8), "index")), "every message here is an index of"),
        (encode(Frame(name, np.zeros((len(made.levels), 1), np.int8), "int8")), "coded as int8 came"),
        (encode(Frame(name, octets.astype(np.int8), "int8")), "coded as int8 came"),
        (made.frames(made.digits[:1])[0][:-1] + b"x", "checksum does not fit|beyond"),
    ]
    if np.prod(made.levels, dtype=object) < 256**octets.size:
        found.append((encode(Frame(name, octets + 255, "index")), "beyond the number of messages"))
    return found


def test_whatever_is_no_message_of_the_bundle_is_refused(made: Made, server: Server) -> None:
    for frame, words in strangers(made):
        for module, address in ((tritonclient.http, server.host), (tritonclient.grpc, server.grpc)):
            with pytest.raises(InferenceServerException, match=words) as caught:
                ask(module, address, [frame])
            assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    tensor = tritonclient.http.InferInput("coefficients", [1, len(made.levels)], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, len(made.levels)), np.float32))
    with (
        tritonclient.http.InferenceServerClient(server.host) as client,
        pytest.raises(InferenceServerException, match="'coefficients' is refused by this certified bundle"),
    ):
        client.infer("finite", [tensor])


def test_metadata_configuration_and_statistics_name_what_is_served(made: Made) -> None:
    manifest = read_server(made.folder / "server").manifest
    wanted = {
        "identity": manifest.identity, "components": str(len(made.levels)), "codings": "index", "certified": "true",
        "levels": ",".join(map(str, made.levels)),
    }  # fmt: skip
    with serving(made.folder / "server") as server:
        ask(tritonclient.http, server.host, made.frames(made.digits))
        with tritonclient.http.InferenceServerClient(server.host) as client:
            said = client.get_model_metadata("finite")
            assert said["identity"] == manifest.identity
            assert said["inputs"] == [{"name": "frame", "datatype": "UINT8", "shape": [-1, -1]}]
            parameters = client.get_model_config("finite")["parameters"]
            assert {key: value["string_value"] for key, value in parameters.items()} == wanted
            assert client.get_inference_statistics("finite")["model_stats"][0]["inference_count"] == PHOTOS
        with tritonclient.grpc.InferenceServerClient(server.grpc) as rpc:
            parameters = rpc.get_model_config("finite").config.parameters
            assert {key: value.string_value for key, value in parameters.items()} == wanted


def test_triton_is_told_the_same_and_gets_no_bare_graph(made: Made, tmp_path: Path) -> None:
    write_repository(tmp_path / "models", [made.folder / "server"])
    config = text_format.Parse((tmp_path / "models" / "finite" / "config.pbtxt").read_text(), ModelConfig())
    assert [each.name for each in config.input] == ["frame"]
    manifest = read_server(made.folder / "server").manifest
    assert {key: value.string_value for key, value in config.parameters.items()} == manifest.parameters
    with pytest.raises(ServeError, match="certified and takes frames only"):
        write_repository(tmp_path / "other", [made.folder / "server"], backend="onnxruntime")


@pytest.mark.parametrize("wish", [{"m": 1}, {"coding": "int8"}, {"coding": "float32"}])
def test_nothing_but_whole_messages_as_an_index_may_be_asked_for(made: Made, wish: dict[str, Any]) -> None:
    assert EdgeEncoder(made.folder / "edge", m=len(made.levels), coding="index").m == len(made.levels)
    with pytest.raises(WireError, match=r"certified|coded as index here"):
        EdgeEncoder(made.folder / "edge", **wish)


def test_a_graph_whose_digits_are_none_sends_nothing(made: Made, tmp_path: Path) -> None:
    """The graph of other levels gives digits that are too large here."""
    wider = tuple(4 * level for level in made.levels)
    other = read_edge(made_finite_bundle(tmp_path / "other", made.folder, wider) / "edge")
    manifest = read_edge(made.folder / "edge").manifest
    mixed = manifest.model_copy(update={"files": other.manifest.files})
    write_bundle(tmp_path / "edge", mixed, other.files)
    with pytest.raises(WireError, match="no whole numbers below their levels"):
        EdgeEncoder(tmp_path / "edge").frames(list(made.images))


def test_the_fields_of_an_index_frame_are_named(made: Made) -> None:
    (frame,) = made.frames(made.digits[:1])
    fields = {field.name: field for field in describe(frame)}
    assert "".join(field.hex for field in fields.values()) == frame.hex()
    assert fields["coding"].meaning == "index"
    assert fields["components"].meaning == "one index"
    assert fields["positions"].meaning == f"of {len(frame) - HEADER_BYTES} bytes"
    assert fields["payload"].meaning == "the index"


FINITE = Messages(components=3, positions=(), codings=("index",), scales={}, certified=True, levels=(5, 7, 11))


@given(data=st.binary(max_size=24))
def test_any_bytes_are_one_of_the_messages_or_refused(data: bytes) -> None:
    with contextlib.suppress(WireError):
        digits = from_frames([data], FINITE, data[4:8])
        assert to_frames(digits, FINITE, data[4:8], m=3, coding="index") == [data]

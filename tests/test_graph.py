"""Graphs: what a bundle may hold is read by a strict reader, all else is refused before ONNX Runtime sees it."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from fuzz import graphs
from made_server import server_bundle, serving
from splitveil.bundle import (
    Graph,
    from_frames,
    graph,
    identity_of,
    memory,
    read_edge,
    read_server,
    to_frames,
    write_bundle,
)
from splitveil.bundle.manifest import File
from splitveil.bundle.onnx import check, check_graph
from splitveil.bundle.onnx.model import OPSETS, read_model
from splitveil.bundle.onnx.operators import MANY, OPERATORS
from splitveil.bundle.runtime import ort
from splitveil.bundle.watchdog import Watchdog
from splitveil.errors import BundleError, GraphError
from splitveil.export.graphs import to_onnx

OLD = Path(__file__).with_name("bundle_of_0_1")
"""An untrained residual network of ours, exported by version 0.1.0 before graphs were checked, and its answers."""


def made(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray] | None = None, *, opset: int = 18
) -> onnx.ModelProto:
    """A graph from x (B, 4) to y (B, 4)."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    given = [numpy_helper.from_array(value, key) for key, value in (constants or {}).items()]
    built = helper.make_graph(nodes, "made", ends[:1], ends[1:], given)
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def plain() -> onnx.ModelProto:
    return made([helper.make_node("Add", ["x", "w"], ["y"])], {"w": np.ones(4, np.float32)})


def refused(content: bytes | onnx.ModelProto, words: str) -> None:
    """By the check, and so by everything that runs graphs."""
    data = content if isinstance(content, bytes) else content.SerializeToString()
    for read in (check_graph, Graph):
        with pytest.raises(GraphError, match=words):
            read(data, (4,), (4,))


# --- the operators


def test_the_operators_are_as_onnx_defines_them() -> None:
    """For the newest opset, and for an older one where an operator is taken from that, too."""
    kinds = {"float": "FLOAT", "int": "INT", "text": "STRING", "tensor": "TENSOR", "floats": "FLOATS", "ints": "INTS",
             "texts": "STRINGS"}  # fmt: skip
    for name, ours in OPERATORS.items():
        for opset in (version for version in OPSETS if version >= ours.since):
            schema = onnx.defs.get_schema(name, opset)
            attributes = {key: value.type.name for key, value in schema.attributes.items()}
            assert {key: kinds[kind.value] for key, kind in ours.attributes.items()}.items() <= attributes.items(), name
            assert ours.required == {key for key, value in schema.attributes.items() if value.required}, name
            assert schema.min_input <= ours.inputs[0] <= ours.inputs[1] <= max(schema.max_input, 1), name
            assert schema.min_output <= ours.outputs[0] <= ours.outputs[1] <= schema.max_output, name
            assert ours.inputs[1] in (schema.max_input, MANY, 8), name
    forbidden = {"Loop", "If", "Scan", "SequenceMap", "Dropout", "Bernoulli", "Multinomial", "NonZero", "Unique"}
    assert not [name for name in OPERATORS if name in forbidden or name.startswith("Random")]


@pytest.mark.parametrize("seed", range(len(graphs.seeds())))
def test_shapes_are_those_that_onnx_runtime_finds(seed: int) -> None:
    """Every value of a graph, not only its output."""
    content = graphs.seeds()[seed]
    model = read_model(content, graphs.INPUT, graphs.OUTPUT)
    names = [name for node in model.nodes for name in node.outputs]
    for batch in (1, 5):
        values = check.follow(model, graphs.INPUT, graphs.OUTPUT, batch)[1]
        opened = onnx.load_from_string(content)
        del opened.graph.output[:]
        opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        session = ort.InferenceSession(opened.SerializeToString())
        given = np.random.default_rng(0).random((batch, *graphs.INPUT), np.float32)
        for name, array in zip(names, session.run(names, {"image": given}), strict=True):
            assert (values[name].shape, values[name].dtype) == (array.shape, array.dtype), name
            if values[name].known is not None:
                np.testing.assert_array_equal(values[name].known, array)


class Everything(nn.Module):
    """Layers of many architectures in one small network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.depth, self.pool = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.MaxPool2d(2, 2)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.LayerNorm(8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.last = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        z = nn.functional.hardswish(self.norm(self.stem(image)))
        z = z + nn.functional.silu(self.depth(z)) * torch.sigmoid(z.mean((2, 3), keepdim=True))
        z = nn.functional.interpolate(self.pool(z), scale_factor=2, mode="bilinear")
        rows = torch.cat([self.token.expand(image.shape[0], -1, -1), z.flatten(2).transpose(1, 2)], 1)
        rows = rows + self.attend(*[self.layer(rows)] * 3)[0]
        return self.last(nn.functional.gelu(rows[:, 0]))


class Gathers(nn.Module):
    """Digits, a table and double precision, as in the decoders."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Buffer(torch.randn(8, 3, dtype=torch.float64))

    def forward(self, image: Tensor) -> Tensor:
        digits = image.flatten(2).argmax(2).clamp(0, 3).float()
        return nn.functional.embedding(digits.long() + torch.tensor([0, 4]), self.table).sum(1).float()


@pytest.mark.parametrize("network", [Everything, Gathers])
def test_what_networks_need_is_exported_and_runs(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = network().eval()
    images = torch.rand(5, 2, 16, 16)
    found = Graph(to_onnx(module, images[:2], "image", "logits").content, (2, 16, 16), (3,)).run(images.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, module(images).numpy(), atol=1e-5)


class Counts(nn.Module):
    """An operator whose output is as long as data say."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)[:, :3] + torch.nonzero(image).float().sum()


def test_operators_of_data_dependent_length_are_refused() -> None:
    graph = to_onnx(Counts(), torch.rand(2, 2, 4, 4), "image", "logits")
    with pytest.raises(GraphError, match="operator NonZero of opset 18 is not among those that a bundle may hold"):
        Graph(graph.content, (2, 4, 4), (3,))


# --- the encoding


def test_a_plain_graph_is_read_and_run() -> None:
    content = plain().SerializeToString()
    assert Graph(content, (4,), (4,)).run(np.zeros((2, 4), np.float32)).tolist() == [[1.0] * 4] * 2


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = plain()
    change(model)
    return model


def subgraph(operator: str) -> onnx.NodeProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("a", "b")]
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "body", [], values[1:])
    return helper.make_node(operator, ["x"], ["y"], body=body)


def function() -> onnx.FunctionProto:
    nodes = [helper.make_node("Identity", ["a"], ["b"])]
    return helper.make_function("", "Add", ["a", "c"], ["b"], nodes, [helper.make_opsetid("", 18)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.graph.node[0].CopyFrom(subgraph("Loop")), "has a subgraph"),
        (lambda m: m.graph.node[0].CopyFrom(subgraph("If")), "has a subgraph"),
        (lambda m: m.graph.node[0].CopyFrom(helper.make_node("Loop", ["", "w", "x"], ["y"])), "operator Loop"),
        (lambda m: m.graph.node[0].CopyFrom(helper.make_node("RandomNormalLike", ["x"], ["y"])), "operator Random"),
        (lambda m: m.functions.append(function()), "has functions"),
        (lambda m: m.training_info.add(), "field 20"),
        (lambda m: m.metadata_props.add(key="location", value="token"), "field 14"),
        (lambda m: setattr(m, "model_version", 1), "field 5"),
        (lambda m: setattr(m.graph, "doc_string", "location"), "field 10"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse tensor"),
        (lambda m: m.graph.value_info.add(name="x"), "field 13"),
        (lambda m: m.graph.quantization_annotation.add(), "field 14"),
        (lambda m: m.graph.initializer[0].external_data.add(key="location", value="token"), "data in another file"),
        (lambda m: setattr(m.graph.initializer[0], "data_location", 1), "data in another file"),
        (lambda m: m.graph.initializer[0].ClearField("raw_data"), "raw_data: it is missing"),
        (lambda m: m.graph.initializer[0].float_data.append(1.0), "field 4"),
        (lambda m: m.graph.initializer[0].dims.append(2), "are no tensor of shape"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 8), "type 8"),
        (lambda m: setattr(m.graph.initializer[0], "name", "x"), "empty or taken"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "empty or taken"),
        (lambda m: setattr(m.graph.node[0], "domain", "ai.onnx.ml"), "field 7"),
        (lambda m: setattr(m.graph.node[0], "overload", "x"), "field 8"),
        (lambda m: m.graph.node[0].input.append("x"), "Add has 2 to 2, not 3"),
        (lambda m: m.graph.node[0].input.__setitem__(0, ""), "lacks one that it needs"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "later"), "'later' is not defined before it"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "'y' is defined twice"),
        (lambda m: m.graph.node[0].output.__setitem__(0, "z"), "no node gives 'y'"),
        (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("axis", 1)), "no attribute 'axis'"),
        (lambda m: m.opset_import.add(domain="ai.onnx.ml", version=3), "opset_import"),
        (lambda m: setattr(m.opset_import[0], "version", 16), "opset_import"),
        (lambda m: setattr(m, "ir_version", 3), "ir_version"),
        (lambda m: m.graph.input.append(m.graph.input[0]), "there are 2, not one"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 11), "not what its bundle says"),
        (lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[0], "dim_value", 1), "not what its bu"),
        (lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 5), "not what its bu"),
        (lambda m: setattr(m.graph, "name", "x\ny"), "cannot be printed"),
        (lambda m: setattr(m.graph, "name", "x" * 1001), "longer than 1000"),
    ],
)  # fmt: skip
def test_what_the_exporter_never_writes_is_refused(change: Callable[[onnx.ModelProto], object], words: str) -> None:
    refused(changed(change), words)


def test_there_is_one_way_to_write_a_graph() -> None:
    content = plain().SerializeToString()
    assert content[:2] == b"\x08\x0a"
    for other, words in (
        (b"\x88\x00\x0a" + content[2:], "more bytes than it needs"),
        (b"\x08\x8a\x00" + content[2:], "more bytes than it needs"),
        (b"\x88\x80\x80\x80\x10\x0a" + content[2:], "field 536870913"),
        (b"\x08\x8a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01" + content[2:], "more bytes than it needs"),
        (b"\x08\x0a" + content, "stands twice"),
        (content[2:] + b"\x08\x0a", "out of order"),
        (content + b"\x42", "cut off"),
        (content + b"\xfb\x01\xfc\x01", "field 31"),
        (b"\x0b" + content, "wire type 3"),
        (content[:-1], "cut off"),
        (b"", "missing"),
    ):
        refused(other, words)


def test_a_reader_is_not_kept_busy_by_many_small_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitveil.bundle.onnx.protobuf.MOST_FIELDS", 100)
    names = ["x", *(f"x{index}" for index in range(99)), "y"]
    nodes = [helper.make_node("Relu", [before], [after]) for before, after in pairwise(names)]
    refused(made(nodes), "more than 100 fields")


# --- time and memory


def chain(count: int) -> onnx.ModelProto:
    """Each node doubles its input, which a sum shrinks again."""
    nodes = [helper.make_node("Concat", [f"x{i}" if i else "x"] * 2, [f"x{i + 1}"], axis=1) for i in range(count)]
    nodes += [helper.make_node("ReduceSum", [f"x{count}", "axis"], ["s"]), helper.make_node("Add", ["s", "w"], ["y"])]
    return made(nodes, {"axis": np.array([1]), "w": np.ones(4, np.float32)})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (made([helper.make_node("Expand", ["w", "size"], ["e"]), helper.make_node("Add", ["x", "x"], ["y"])],
              {"w": np.ones(1, np.float32), "size": np.array([2**20, 2**20])}), "a row takes more than"),
        (made([helper.make_node("ConstantOfShape", ["size"], ["e"]), helper.make_node("Add", ["x", "x"], ["y"])],
              {"size": np.array([2**62])}), "has the shape"),
        (made([helper.make_node("Tile", ["w", "size"], ["e"]), helper.make_node("Add", ["x", "x"], ["y"])],
              {"w": np.ones(1, np.float32), "size": np.array([2**33])}), "MiB of memory"),
        (made([helper.make_node("Range", ["w", "size", "w"], ["e"]), helper.make_node("Add", ["x", "x"], ["y"])],
              {"w": np.array(1), "size": np.array(2**50)}), "numbers"),
        (made([helper.make_node("MatMul", ["a", "b"], ["e"]), helper.make_node("Add", ["x", "x"], ["y"])],
              {"a": np.ones((2**17, 1), np.float32), "b": np.ones((1, 2**17), np.float32)}), "MiB of memory"),
        (made([helper.make_node("MatMul", ["x", "a"], ["e0"]),
               *(helper.make_node("MatMul", [f"e{i}", "b"], [f"e{i + 1}"]) for i in range(10)),
               helper.make_node("Add", ["x", "x"], ["y"])], {"a": np.ones((4, 2**9), np.float32),
               "b": np.ones((2**9, 2**9), np.float32)}), ""),
        (chain(40), "MiB of memory"),
        (made([helper.make_node("Cast", ["x"], ["i"], to=7), helper.make_node("Expand", ["w", "i"], ["y"])],
              {"w": np.ones(1, np.float32)}), "values are not known before the graph is run"),
        (made([helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["s"]),
               helper.make_node("MatMul", ["s", "x"], ["y"])]), ""),
        (made([helper.make_node("Slice", ["x", "i", "j"], ["s"]), helper.make_node("Expand", ["s", "k"], ["y"])],
              {"i": np.array([0]), "j": np.array([1]), "k": np.array([7, 4])}), "1 rows in give"),
    ],
)  # fmt: skip
def test_memory_and_work_are_bounded_before_anything_runs(model: onnx.ModelProto, words: str) -> None:
    if words:
        refused(model, words)
    else:
        assert Graph(model.SerializeToString(), (4,), (4,)).run(np.zeros((2, 4), np.float32)).shape == (2, 4)


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MOST_WORK", 3)
    refused(plain(), "multiplications")


def test_a_run_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """By ONNX Runtime itself, of a loop that only a graph has which went past the check."""
    kinds = {"i": (TensorProto.INT64, []), "c": (TensorProto.BOOL, []), "d": (TensorProto.BOOL, [])}
    value = {
        name: helper.make_tensor_value_info(name, *kinds.get(name, (TensorProto.FLOAT, ["batch", 4])))
        for name in "icdab"
    }
    nodes = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["a", "a"], ["b"])]
    body = helper.make_graph(nodes, "body", [value["i"], value["c"], value["a"]], [value["d"], value["b"]])
    loop = helper.make_node("Loop", ["n", "t", "x"], ["y"], body=body)
    endless = made([loop], {"n": np.array(2**62), "t": np.array(True)})
    monkeypatch.setattr(graph, "check_graph", lambda *_: 0)
    monkeypatch.setattr(graph, "RUN_SECONDS", 0.2)
    runs = Graph(endless.SerializeToString(), (4,), (4,))
    with pytest.raises(BundleError, match="it took too long, and was stopped"):
        runs.run(np.ones((1, 4), np.float32))


def test_the_watchdog_ends_with_its_work_and_calls_nobody_else() -> None:
    watchdog, called = Watchdog(), []
    kept = [watchdog.begin(0.0, lambda: called.append("late")), watchdog.begin(60.0, lambda: called.append("early"))]
    deadline = time.monotonic() + 20
    while not called and time.monotonic() < deadline:
        time.sleep(0.05)
    for key in kept:
        watchdog.end(key)
    assert set(called) == {"late"}
    while watchdog._alive and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not watchdog._alive


# --- files


@pytest.mark.parametrize("large", [memory.LARGE, 1], ids=["as bytes", "through a pipe"])
@pytest.mark.parametrize("location", ["token", "descriptor"])
def test_no_graph_reads_a_file_even_past_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, location: str, large: int
) -> None:
    secret = np.frombuffer(b"secret of a file" * 4, np.float32).reshape(4, 4)
    (tmp_path / "token").write_bytes(secret.tobytes())
    monkeypatch.chdir(tmp_path)
    model = made([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": secret})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    with (tmp_path / "token").open("rb") as file:  # the pipe's path lies among the files that are open
        name = "token" if location == "token" else str(file.fileno())
        for key, value in (("location", name), ("offset", "0"), ("length", "64")):
            tensor.external_data.add(key=key, value=value)
        content = model.SerializeToString()
        if location == "token":
            read = ort.InferenceSession(content).run(None, {"x": np.eye(4, dtype=np.float32)})[0]
            np.testing.assert_array_equal(read, secret)  # what a session without our settings does
        monkeypatch.setattr(graph, "check_graph", lambda *_: 0)
        monkeypatch.setattr(memory, "LARGE", large)
        with pytest.raises(BundleError, match=r"cannot be loaded .*/dev/null"):
            Graph(content, (4,), (4,))


@pytest.mark.parametrize("spare", [0, 1, 4])
def test_a_signature_does_not_make_a_graph_trusted(tmp_path: Path, spare: int) -> None:
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    folder = server_bundle(tmp_path / "bundle", private_key=private)
    honest = read_server(folder, public_key=public)
    model = graphs.parts(honest.files["server.onnx"], graphs.MODEL)
    graph_parts = next(part.value for part in model if part.number == 7)
    tensor = next(part.value for part in graph_parts if part.number == 5)  # type: ignore[union-attr]
    tensor[:] = [part for part in tensor if part.number != 9] + graphs.external(spare)  # type: ignore[index, union-attr]
    content = graphs.joined(model)
    facts = File(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    identity = identity_of(honest.manifest.messages, facts.sha256)
    manifest = honest.manifest.model_copy(update={"files": {"server.onnx": facts}, "identity": identity})
    write_bundle(folder, manifest, {"server.onnx": content}, private)
    with pytest.raises(BundleError, match=r"server.onnx: a graph cannot be loaded: .*initializer\[0\]"):
        read_server(folder, public_key=public)


def test_mutated_graphs_are_refused_or_harmless() -> None:
    accepted = sum(graphs.check(graphs.case(random.Random(number))) for number in range(2000))
    assert accepted > 20


# --- a bundle of the first version


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_a_bundle_of_the_first_version_is_still_read_and_answers_as_then(old: Path) -> None:
    edge, server, expected = (
        read_edge(old / "edge"),
        read_server(old / "server"),
        json.loads((old / "answers.json").read_text()),
    )
    images = np.linspace(0, 1, 3 * 64, dtype=np.float32).reshape(3, 1, 8, 8)
    given = Graph(edge.files["edge.onnx"], edge.manifest.input_shape, edge.manifest.output_shape).run(images)
    frames = to_frames(given, edge.manifest.messages, edge.manifest.short_identity, m=4, coding="int8")
    assert [frame.hex() for frame in frames] == expected["frames"]
    read = from_frames(frames, server.manifest.messages, server.manifest.short_identity)
    logits = Graph(server.files["server.onnx"], server.manifest.input_shape, server.manifest.output_shape).run(read)
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["edge/edge.onnx", "edge/profile.json", "server/server.onnx", "server/manifest.json"])
def test_a_damaged_bundle_of_the_first_version_is_refused(old: Path, name: str) -> None:
    content = bytearray((old / name).read_bytes())
    content[len(content) // 2] ^= 1
    (old / name).write_bytes(content)
    with pytest.raises(BundleError):
        (read_edge if name.startswith("edge") else read_server)(old / name.split("/")[0])


def test_a_bundle_of_the_first_version_is_served_and_inferred(old: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(old / "photo.png")
    with serving(old / "server") as server:
        command = [sys.executable, "-m", "splitveil", "infer", old / "edge", old / "photo.png", "--url", server.rest]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "probabilities" in done.stdout

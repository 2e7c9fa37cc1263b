"""Loading a large graph: how much memory it takes, and that what was checked is what arrives."""

import mmap
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from made_server import HANGING, server_bundle
from splitveil.bundle import (
    Graph,
    file_facts,
    graph,
    identity_of,
    memory,
    read_edge,
    read_server,
    reading,
    write_bundle,
)
from splitveil.bundle.reading import read_to_load
from splitveil.client import EdgeEncoder
from splitveil.errors import BundleError, GraphError

CLASSES = 4
linux = pytest.mark.skipif(not memory.PIPES.is_dir(), reason="pipes have paths under Linux")


def content(nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], inside: Sequence[int]) -> bytes:
    """A graph from coefficients (B, *inside) to logits (B, CLASSES)."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("coefficients", inside), ("logits", [CLASSES]))
    ]
    given = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    built = helper.make_graph(nodes, "made", ends[:1], ends[1:], given)
    opset = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(built, opset_imports=opset, ir_version=10).SerializeToString())


def dense(count: int, width: int) -> bytes:
    """MatMuls; their weights differ, as equal ones would share their memory."""
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.random((width, width), np.float32) / width for i in range(count)}
    nodes = [
        helper.make_node("MatMul", [f"x{i}" if i else "coefficients", f"w{i}"], [f"x{i + 1}"]) for i in range(count)
    ]
    nodes += [helper.make_node("MatMul", [f"x{count}", "last"], ["logits"])]
    return content(nodes, weights | {"last": np.ones((width, CLASSES), np.float32)}, [width])


def convolutional(count: int, channels: int) -> bytes:
    """Convolutions of 3 x 3, whose weights ONNX Runtime brings into another order."""
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.random((channels, channels, 3, 3), np.float32) / channels for i in range(count)}
    nodes = [
        helper.make_node("Conv", [f"x{i}" if i else "coefficients", f"w{i}"], [f"x{i + 1}"], pads=[1, 1, 1, 1],
                         kernel_shape=[3, 3])
        for i in range(count)
    ]  # fmt: skip
    nodes += [helper.make_node("GlobalAveragePool", [f"x{count}"], ["p"]), helper.make_node("Flatten", ["p"], ["f"])]
    nodes += [helper.make_node("MatMul", ["f", "last"], ["logits"])]
    return content(nodes, weights | {"last": np.ones((channels, CLASSES), np.float32)}, [channels, 4, 4])


def bundle(folder: Path, data: bytes, inside: Sequence[int]) -> Path:
    """A server bundle of that graph."""
    components, *positions = inside
    honest = read_server(server_bundle(folder, components=components, positions=tuple(positions), classes=CLASSES))
    facts = file_facts({"server.onnx": data})
    identity = identity_of(honest.manifest.messages, facts["server.onnx"].sha256)
    manifest = honest.manifest.model_copy(update={"files": facts, "identity": identity})
    write_bundle(folder, manifest, {"server.onnx": data})
    return folder


LOADING = """
import re, sys
from pathlib import Path
import splitveil.serve
from splitveil.serve.metrics import Metrics
from splitveil.serve.model import Model

def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

small, large = map(Path, sys.argv[1:])
settings = splitveil.serve.Settings(max_batch=2)
Model(small, "1", settings, Metrics())
before, size = memory("VmRSS"), (large / "server.onnx").stat().st_size
model = Model(large, "1", settings, Metrics())
print((memory("VmHWM") - before) / size, (memory("VmRSS") - before) / size)
"""


@linux
@pytest.mark.parametrize(
    ("data", "inside", "most"),
    [
        # Each tensor is there twice while it is packed: 1.2 here.
        pytest.param(partial(dense, 8, 1000), [1000], 1.5, id="dense"),
        # ONNX Runtime keeps the weights in the old order until those of all convolutions are in the new: 2.3 here.
        pytest.param(partial(convolutional, 12, 256), [256, 4, 4], 2.5, id="convolutional"),
    ],
)
def test_a_large_graph_is_in_memory_about_once_while_it_is_loaded(
    tmp_path: Path, data: Callable[[], bytes], inside: Sequence[int], most: float
) -> None:
    """By the server, in a process of its own, whose memory nothing else has filled."""
    folders = [str(server_bundle(tmp_path / "small")), str(bundle(tmp_path / "large", data(), inside))]
    command = [sys.executable, "-c", LOADING, *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    peak, after = map(float, done.stdout.split())
    assert after < 1.2
    assert peak < most  # it was 3.0 and 4.1: the file, ONNX Runtime's copies, and what the C library kept


def test_a_bundle_that_is_read_to_be_loaded_holds_no_bytes_of_its_graph(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = list(
        np.random.default_rng(0).random((3, *read_edge(exported / "edge").manifest.picture.shape), np.float32)
    )
    expected = EdgeEncoder(exported / "edge").frames(images)
    monkeypatch.setattr(memory, "LARGE", 1)
    taken: list[weakref.ref[mmap.mmap]] = []

    def take(size: int) -> mmap.mmap | None:
        made = memory.releasable(size)
        taken.extend([weakref.ref(made)] if made is not None else [])
        return made

    monkeypatch.setattr(reading, "releasable", take)
    assert read_edge(exported / "edge", to_load=True).files.keys() == {"profile.json"}
    encoder = EdgeEncoder(exported / "edge")
    assert encoder.frames(images) == expected
    assert [mapping() for mapping in taken] == [None] * 2


@pytest.mark.parametrize("known", [True, False], ids=["through a pipe", "of a version that was not tried"])
def test_a_graph_arrives_whole_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    if not known:
        monkeypatch.setattr(memory, "LET_WRITE", ())
    data = dense(3, 1000)
    (tmp_path / "graph").write_bytes(data)
    rows = np.random.default_rng(1).random((2, 1000), np.float32)
    read = read_to_load(tmp_path, "graph", len(data), len(data))
    assert bytes(read) == data
    assert isinstance(read, bytes) == (not known or not memory.PIPES.is_dir())
    np.testing.assert_array_equal(
        Graph(read, (1000,), (CLASSES,)).run(rows), Graph(data, (1000,), (CLASSES,)).run(rows)
    )


@linux
def test_memory_that_was_handed_over_is_given_back(tmp_path: Path) -> None:
    data = dense(3, 1000)
    (tmp_path / "graph").write_bytes(data)
    read = read_to_load(tmp_path, "graph", len(data), len(data))
    Graph(read, (1000,), (CLASSES,))
    assert not any(bytes(read))
    with pytest.raises(GraphError):  # and nothing else is taken for it
        Graph(read, (1000,), (CLASSES,))


@linux
def test_a_load_that_fails_leaves_no_thread_and_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(2 * memory.LARGE)
    monkeypatch.setattr(graph, "check_graph", lambda *_: 0)
    threads, pipes = threading.active_count(), len(list(memory.PIPES.iterdir()))
    with pytest.raises(BundleError, match="cannot be loaded"):
        Graph(data, (4,), (4,))
    with memory.handed_over(data) as path, Path(str(path)).open("rb") as reader:
        assert reader.read(10) == bytes(10)  # and no more
    names = {thread.name for thread in threading.enumerate()}
    assert "splitveil-load" not in names
    assert threading.active_count() <= threads + 1  # the watchdog's, which ends by itself
    assert len(list(memory.PIPES.iterdir())) == pipes


@linux
def test_a_fork_meanwhile_does_not_keep_a_load_waiting() -> None:
    data = bytes(2 * memory.LARGE)
    waiting, telling = os.pipe()
    read: list[bytes] = []
    with memory.handed_over(data) as path:
        child = os.fork()
        if child == 0:
            os.close(telling)
            os.read(waiting, 1)
            os._exit(0)
        reading = threading.Thread(target=lambda: read.append(Path(str(path)).read_bytes()), daemon=True)
        reading.start()
        reading.join(HANGING)
        ended_before_the_child = not reading.is_alive()
        os.close(telling)
        os.close(waiting)
        os.waitpid(child, 0)
        reading.join()
    assert ended_before_the_child
    assert read == [data]

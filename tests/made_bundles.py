"""Bundles made in seconds: exported from a network that was not trained, or of finite messages with graphs by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import splitveil as sv
from splitveil.bundle import (
    EdgeManifest,
    Messages,
    Policy,
    ServerManifest,
    file_facts,
    identity_of,
    read_edge,
    write_bundle,
)
from splitveil.export import export


def made_model(seed: int = 0) -> sv.Table1Net:
    """Untrained, but with statistics of normalisation that are not the trivial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        data = sv.load_data("digit-pairs")
        model = sv.Table1Net(data.input_shape, data.n_classes)
        with torch.no_grad():
            model(data.train.images(slice(0, 256)))  # in training mode, so that the statistics move
    return model.eval()


def made_bundle(folder: Path, *, cut: int = 4, m: int | None = 8, seed: int = 0, **more: Any) -> Path:
    """``folder/edge`` and ``folder/server``; the strongest components of the server's layer, all of them without m."""
    method = "free" if m is None else "top"
    data = sv.load_data("digit-pairs")
    export(made_model(seed), data, folder, **{"cut": cut, "method": method, "m": m, "name": "pairs", **more})
    return folder


def made_finite_bundle(folder: Path, exported: Path, levels: Sequence[int], *, seed: int = 0) -> Path:
    """``folder/edge`` and ``folder/server`` of finite messages, named "finite".

    Digits are a random map of the photo, cut into as many bins as each level has; the server looks every digit up and
    adds what it finds.

    Args:
        folder: for the two.
        exported: bundles of `made_bundle`, whose model, picture and profile the new ones take over.
        levels: of the digits.
        seed: of the random numbers.
    """
    given = read_edge(exported / "edge")
    shape, classes = given.manifest.picture.shape, given.manifest.classes
    random = np.random.default_rng(seed)
    tables = random.normal(size=(sum(levels), len(classes))).astype(np.float32)
    files = {
        "edge": {"edge.onnx": _digits_of_photos(shape, levels, random), "profile.json": given.files["profile.json"]},
        "server": {"server.onnx": _looked_up(levels, tables)},
    }
    messages = Messages(
        components=len(levels), positions=(), codings=("index",), scales={}, certified=True, levels=tuple(levels)
    )
    facts = {side: file_facts(content) for side, content in files.items()}
    same: dict[str, Any] = {
        "messages": messages, "name": "finite", "schema_version": 1, "splitveil": "test",
        "identity": identity_of(messages, facts["server"]["server.onnx"].sha256),
    }  # fmt: skip
    policy = Policy(m=len(levels), coding="index", max_drop=None, proven_drop=None, confidence=None)
    taken = {
        name: getattr(given.manifest, name) for name in ("model", "cut", "layer", "operator", "classes", "picture")
    }
    edge = EdgeManifest(kind="edge", method="made", policy=policy, files=facts["edge"], **taken, **same)
    server = ServerManifest(kind="server", n_classes=len(classes), files=facts["server"], **same)
    write_bundle(folder / "edge", edge, files["edge"])
    write_bundle(folder / "server", server, files["server"])
    return folder


def _digits_of_photos(shape: Sequence[int], levels: Sequence[int], random: np.random.Generator) -> bytes:
    """A graph from images (B, *shape) to digits (B, n), as float32."""
    size = int(np.prod(shape))
    weights = random.normal(size=(size, len(levels)), scale=4 / np.sqrt(size)).astype(np.float32)
    return _graph(
        [
            helper.make_node("Reshape", ["image", "flat"], ["row"]),
            helper.make_node("MatMul", ["row", "weights"], ["product"]),
            helper.make_node("Sigmoid", ["product"], ["share"]),
            helper.make_node("Mul", ["share", "levels"], ["place"]),
            helper.make_node("Floor", ["place"], ["bin"]),
            helper.make_node("Min", ["bin", "last"], ["digits"]),
        ],
        ("image", shape), ("digits", [len(levels)]),
        {"flat": np.array([-1, size]), "weights": weights - weights.mean(0), "levels": np.float32(levels),
         "last": np.float32(levels) - 1},
    )  # fmt: skip


def _looked_up(levels: Sequence[int], tables: np.ndarray) -> bytes:
    """A graph from digits (B, n), as float32, to logits (B, classes): the sum of one row of each digit's table."""
    first = np.cumsum([0, *levels[:-1]])
    return _graph(
        [
            helper.make_node("Cast", ["digits"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Add", ["whole", "first"], ["rows"]),
            helper.make_node("Gather", ["tables", "rows"], ["found"]),
            helper.make_node("ReduceSum", ["found", "digit_axis"], ["logits"], keepdims=0),
        ],
        ("digits", [len(levels)]), ("logits", tables.shape[1:]),
        {"first": first, "tables": tables, "digit_axis": np.array([1])},
    )  # fmt: skip


def _graph(
    nodes: Sequence[onnx.NodeProto], inside: tuple[str, Sequence[int]], outside: tuple[str, Sequence[int]],
    constants: Mapping[str, np.ndarray],
) -> bytes:  # fmt: skip
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in (inside, outside)
    ]
    initialisers = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, "made", ends[:1], ends[1:], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())

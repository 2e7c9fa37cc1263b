"""A module as the bytes of an ONNX file: any batch size, one file, nothing of this machine in it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from splitveil.bundle.onnx import check_graph
from splitveil.errors import ExportError, GraphError

OPSET = 18  # what the exporter writes by itself; other versions go through converters that know fewer operators


def to_onnx(module: nn.Module, example: Tensor, inside: str, outside: str) -> bytes:
    """The graph of a module with one tensor in and one out.

    Args:
        module: in evaluation mode.
        example: a batch of at least two rows, because tracing takes an axis of length one for fixed.
        inside, outside: names of the graph's input and output.

    Raises:
        ExportError: the module does what ONNX cannot say, or what a bundle may not hold.
    """
    batch = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(), (example,), dynamo=True, dynamic_shapes=({0: batch},), opset_version=OPSET,
                external_data=False, input_names=[inside], output_names=[outside], verbose=False,
            )  # fmt: skip
    except Exception as error:  # torch's exporter raises classes of its own and of what it calls
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"torch cannot export {type(module).__name__} to ONNX ({reason}); cut elsewhere") from error
    assert program is not None
    model = _plain(program.model_proto)
    content = bytes(model.SerializeToString(deterministic=True))
    given = [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    try:
        check_graph(content, example.shape[1:], given[1:])
    except GraphError as error:
        raise ExportError(
            f"a bundle may not hold the graph of {type(module).__name__} ({error.reason}); cut elsewhere, or use other "
            "layers"
        ) from error
    return content


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the paths, source lines and names of values that the exporter leaves in."""
    if {opset.domain: opset.version for opset in model.opset_import} != {"": OPSET}:
        raise ExportError(f"torch wrote another opset than {OPSET}; use the pinned versions")
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    graph = model.graph
    graph.name = "splitveil"
    graph.ClearField("value_info")
    graph.ClearField("metadata_props")
    graph.ClearField("doc_string")
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own deprecations and logs each step."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

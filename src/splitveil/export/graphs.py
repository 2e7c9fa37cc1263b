"""A module as the bytes of an ONNX file: any batch size, one file, nothing of this machine in it."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from splitveil.errors import ExportError

OPSET = 18  # what the exporter writes by itself; other versions go through converters that know fewer operators
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # which torch puts into its sentences
_OPERATION = re.compile(r"OpOverload\(op='([^']+)'")


@dataclass(frozen=True, eq=False)
class Converted:
    """A module and its graph.

    Attributes:
        module: that was converted.
        content: of the ONNX file.
        program: what torch's exporter made, by which a difference is traced to its place.
    """

    module: nn.Module
    content: bytes
    program: Any


def to_onnx(module: nn.Module, example: Tensor, inside: str, outside: str) -> Converted:
    """The graph of a module with one tensor in and one out.

    Args:
        module: in evaluation mode.
        example: a batch of at least two rows, because tracing takes an axis of length one for fixed.
        inside, outside: names of the graph's input and output.

    Raises:
        ExportError: the module does what ONNX cannot say; the sentence names the operation.
    """
    batch = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(), (example,), dynamo=True, dynamic_shapes=({0: batch},), opset_version=OPSET,
                external_data=False, input_names=[inside], output_names=[outside], verbose=False,
            )  # fmt: skip
    except Exception as error:  # torch's exporter raises classes of its own and of what it calls
        raise ExportError(f"{_reason(error)}; replace it in the model, or cut elsewhere") from error
    assert program is not None
    plain = _plain(onnx.ModelProto.FromString(program.model_proto.SerializeToString()))
    return Converted(module, bytes(plain.SerializeToString(deterministic=True)), program)


def _reason(error: BaseException) -> str:
    """What the exporter did not like, from the innermost of its errors, which alone says it."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    texts = [" ".join(_COLOURS.sub("", str(each)).split()) for each in chain]
    named = [found[1] for text in reversed(texts) if (found := _OPERATION.search(text))]
    if any(type(each).__name__ == "DispatchError" for each in chain) and named:
        return f"ONNX has no operation for {named[0].replace('::', '.')}"
    operation = f" at {named[0].replace('::', '.')}" if named else ""
    return f"torch cannot export the model to ONNX{operation} ({texts[-1][:300] or type(chain[-1]).__name__})"


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

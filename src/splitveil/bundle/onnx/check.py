"""Whether a graph is run in bounded time and memory, before anything runs it: its shapes, from input to output."""

from collections.abc import Sequence

import numpy as np

from splitveil.bundle.memory import Content
from splitveil.bundle.onnx.call import MOST_KNOWN, Call, MisfitError, Value
from splitveil.bundle.onnx.model import Model, read_model
from splitveil.bundle.onnx.operators import OPERATORS
from splitveil.errors import GraphError

BATCHES = (1, 64)
"""Lengths of the batch that shapes are followed for: two show a length that is fixed, and memory that grows with its
square."""
MOST_MEMORY = 2**30  # bytes of values that are in use at once, per row; a U-Net on a megapixel has a third of it
MOST_WORK = 10**12  # multiplications per row, half a minute of one core; the largest vision transformers have a fifth


def check_graph(content: Content, inside: Sequence[int], outside: Sequence[int]) -> int:
    """See that a file is a graph of the kind that `splitveil export` writes, and that running it stays within bounds.

    Args:
        content: of the ONNX file.
        inside, outside: shapes of one row of its input and of its output, both float32.

    Returns:
        Multiplications and the like that a row takes.

    Raises:
        GraphError: it is another graph; the sentence names the place.
    """
    model = read_model(content, inside, outside)
    return max(-(-follow(model, inside, outside, batch)[0] // batch) for batch in BATCHES)


def follow(model: Model, inside: Sequence[int], outside: Sequence[int], batch: int) -> tuple[int, dict[str, Value]]:
    """The work of a run on so many rows, and its values by name; raises `GraphError` as `check_graph` does."""
    values = {
        name: Value(array.dtype, array.shape, array if array.size <= MOST_KNOWN else None)
        for name, array in model.constants.items()
    }
    values[model.input] = Value(np.dtype("<f4"), (batch, *inside))
    last = {name: index for index, node in enumerate(model.nodes) for name in (*node.inputs, *node.outputs)}
    work = memory = 0
    for index, node in enumerate(model.nodes):
        call = Call(
            node.operator, [values[name] if name else None for name in node.inputs], node.attributes, len(node.outputs)
        )
        try:
            found = OPERATORS[node.operator].rule(call)
        except MisfitError as error:
            raise GraphError(node.place, f"{node.operator} cannot be run: {error}") from error
        work += max(call.work, *(value.size for value in found), *(value.size for value in call.inputs if value))
        memory += sum(value.size * value.dtype.itemsize for value in found)
        if work > MOST_WORK * batch:
            raise GraphError(node.place, f"a row takes more than {MOST_WORK:.0e} multiplications")
        if memory > MOST_MEMORY * batch:
            raise GraphError(node.place, f"a row takes more than {MOST_MEMORY // 2**20} MiB of memory")
        values.update(zip(node.outputs, found, strict=True))
        if model.output in node.outputs and values[model.output].shape != (batch, *outside):
            raise GraphError(node.place, f"{batch} rows in give {values[model.output].shape}, not {(batch, *outside)}")
        for name in {*node.inputs, *node.outputs}:
            if name and last[name] == index and name not in model.constants and name != model.input:
                memory -= values[name].size * values[name].dtype.itemsize
    return work, values

"""A bundle's graph, run by ONNX Runtime."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitveil.bundle.runtime import ort
from splitveil.errors import BundleError

Array = NDArray[np.float32]


class Graph:
    """One float32 tensor in, one float32 tensor out, any batch size.

    Args:
        content: bytes of an ONNX file whose SHA-256 was compared.
        inside: shape of one input row.
        outside: shape of one output row.
        threads: of ONNX Runtime within one operator; 0: one per core.

    Raises:
        BundleError: the bytes are no such graph.
    """

    def __init__(self, content: bytes, inside: Sequence[int], outside: Sequence[int], threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            found = [_facts(self._session.get_inputs()), _facts(self._session.get_outputs())]
        except Exception as error:  # ONNX Runtime raises classes of its own that share no base
            raise BundleError(f"a graph cannot be loaded ({_line(error)}); export again") from error
        if found != [[("tensor(float)", tuple(inside))], [("tensor(float)", tuple(outside))]]:
            raise BundleError(f"a graph maps {found[0]} to {found[1]}, which is not what its bundle says; export again")
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def run(self, rows: Array) -> Array:
        """Outputs (B, *outside) of inputs (B, *inside)."""
        return np.asarray(self._session.run([self._output], {self._input: np.ascontiguousarray(rows)})[0])


def _facts(values: Sequence[ort.NodeArg]) -> list[tuple[str, tuple[object, ...]]]:
    return [(value.type, tuple(value.shape[1:])) for value in values]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

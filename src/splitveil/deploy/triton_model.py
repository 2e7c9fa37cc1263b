"""A server bundle inside Triton's Python backend; 'splitveil deploy triton' copies this file as a version's model.py.

Tensors are exchanged by DLPack: with NumPy 2 the backend's own ``as_numpy()`` may give garbage without an error.
"""

import ctypes
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from numpy.typing import NDArray

# Importing splitveil switches it off, too; this file may meet an older splitveil on the machine that runs Triton.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
from splitveil.bundle import Graph, from_frames, read_server
from splitveil.errors import WireError

Array = NDArray[np.float32]
TAKEN = b"used_dltensor"
"""What DLPack calls a capsule whose tensor belongs to somebody else now."""
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes = [ctypes.py_object, ctypes.c_char_p]


class TritonPythonModel:
    """What Triton calls: once `initialize`, then `execute` for every batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Check the bundle whole and load its graph.

        Args:
            args: by Triton; ``model_repository`` is this model's folder, ``model_version`` this version's number.

        Raises:
            BundleError: the bundle is not as it was written; Triton then does not offer the model.
        """
        bundle = read_server(Path(args["model_repository"]) / args["model_version"] / "bundle")
        self.manifest = bundle.manifest
        messages = self.manifest.messages
        shape = (messages.components, *messages.positions)
        self.graph = Graph(bundle.files["server.onnx"], shape, (self.manifest.n_classes,))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request; those that can be read are answered by one run of the graph."""
        read = [self._read(request) for request in requests]
        good = [rows for rows in read if isinstance(rows, np.ndarray)]
        answers = iter(self._answers(good))
        return [next(answers) if isinstance(rows, np.ndarray) else _refused(rows) for rows in read]

    def _answers(self, good: Sequence[Array]) -> list[Any]:
        """One response for each request's coefficients."""
        if not good:
            return []
        try:
            logits = self.graph.run(np.concatenate(good))
        except Exception as error:  # a fault of ours: the client learns a number, the log its kind
            refusal = _fault(error)
            return [_refused(refusal) for _ in good]
        ends = np.cumsum([len(rows) for rows in good])
        return [_answered(part) for part in np.split(logits, ends[:-1])]

    def _read(self, request: Any) -> Any:
        """Coefficients (B, *shape) of a request, or the error that it gets."""
        frames = triton.get_input_tensor_by_name(request, "frame")
        coefficients = triton.get_input_tensor_by_name(request, "coefficients")
        try:
            if (frames is None) == (coefficients is None):
                raise WireError("give exactly one of the tensors 'frame' and 'coefficients'")
            if frames is not None:
                return self._from_frames(np.from_dlpack(frames))
            return self._padded(np.from_dlpack(coefficients))
        except WireError as error:
            return _mistake(str(error))
        except Exception as error:
            return _fault(error)

    def _from_frames(self, rows: NDArray[Any]) -> Array:
        try:
            return from_frames([row.tobytes() for row in rows], self.manifest.messages, self.manifest.short_identity)
        except WireError as error:
            raise WireError(f"tensor 'frame': {error}") from error

    def _padded(self, rows: NDArray[Any]) -> Array:
        components = self.manifest.messages.components
        if not 1 <= rows.shape[1] <= components:
            raise WireError(f"tensor 'coefficients': a row has 1 to {components} components here, not {rows.shape[1]}")
        if not np.isfinite(rows).all():
            raise WireError("tensor 'coefficients': not every number is finite")
        found = np.zeros((len(rows), components, *rows.shape[2:]), np.float32)
        found[:, : rows.shape[1]] = rows
        return found


def _answered(logits: Array) -> Any:
    if not np.isfinite(logits).all():
        return _refused(_mistake("the input is so large that 'logits' are not finite"))
    capsule = np.ascontiguousarray(logits).__dlpack__()
    tensor = triton.Tensor.from_dlpack("logits", capsule)
    # Triton marks what it took by a name that NumPy does not know, and NumPy would complain in the log each time.
    _rename(capsule, TAKEN)
    return triton.InferenceResponse([tensor])


def _refused(error: Any) -> Any:
    return triton.InferenceResponse([], error)


def _mistake(sentence: str) -> Any:
    return triton.TritonError(sentence, triton.TritonError.INVALID_ARG)


def _fault(error: Exception) -> Any:
    """An error that tells a client nothing but a number, under which the log names the kind of fault."""
    number = uuid.uuid4().hex
    triton.Logger.log_error(f"fault {number}: {type(error).__name__}")
    return triton.TritonError(f"a fault of the server; its number is {number}", triton.TritonError.INTERNAL)

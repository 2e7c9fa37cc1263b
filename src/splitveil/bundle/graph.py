"""A bundle's graph, run by ONNX Runtime."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitveil.bundle.memory import Content, give_back_memory, handed_over
from splitveil.bundle.onnx import check_graph
from splitveil.bundle.runtime import ort
from splitveil.bundle.watchdog import WATCHDOG
from splitveil.errors import BundleError

Array = NDArray[np.float32]

LOAD_SECONDS = 60.0  # that a graph may take to be loaded, and 1 s more for each 4 MB: a slow disk's and core's share
LOADED_BYTES = 4_000_000  # per second
RUN_SECONDS = 30.0  # that a run may take, and as long again as a slow core needs for its multiplications
SLOW_CORE = 100_000_000  # multiplications per second; a small device has ten times as many
# ONNX Runtime looks here for data outside of a graph. `check_graph` lets no such graph through; should it ever, then
# there is nothing to be found, whatever the working directory holds. A path below a device can never be made.
NO_FOLDER = os.path.join(os.devnull, "none")  # noqa: PTH118


class Graph:
    """One float32 tensor in, one float32 tensor out, any batch size.

    Args:
        content: bytes of an ONNX file whose SHA-256 was compared. They are checked before ONNX Runtime gets them. What
            `read_edge` and `read_server` have read to be loaded is empty afterwards.
        input_shape: shape of one input row.
        output_shape: shape of one output row.
        threads: of ONNX Runtime within one operator; 0: one per core.

    Raises:
        BundleError: the bytes are no graph that a bundle may hold, or it takes too long to be loaded.
    """

    def __init__(
        self, content: Content, input_shape: Sequence[int], output_shape: Sequence[int], threads: int = 1
    ) -> None:
        self._work = check_graph(content, input_shape, output_shape)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised, too
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", NO_FOLDER)
        seconds = LOAD_SECONDS + len(content) / LOADED_BYTES
        self._session = _session(content, options, seconds)
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def run(self, rows: Array) -> Array:
        """Outputs (B, *output_shape) of inputs (B, *input_shape).

        Raises:
            BundleError: the graph does not run, or not within its time.
        """
        options = ort.RunOptions()

        def stop() -> None:
            options.terminate = True

        watched = WATCHDOG.begin(RUN_SECONDS + self._work * len(rows) / SLOW_CORE, stop)
        try:
            found = self._session.run([self._output], {self._input: np.ascontiguousarray(rows)}, options)
        except Exception as error:  # ONNX Runtime raises classes of its own that share no base
            reason = "it took too long, and was stopped" if options.terminate else _line(error)
            raise BundleError(f"a graph does not run ({reason}); export again") from error
        finally:
            WATCHDOG.end(watched)
        return np.asarray(found[0])


def _session(content: Content, options: ort.SessionOptions, seconds: float) -> ort.InferenceSession:
    """ONNX Runtime's session, made within so many seconds; raises `BundleError` otherwise."""
    late = False

    def stop() -> None:
        nonlocal late
        late = True
        if hasattr(options, "set_load_cancellation_flag"):  # older versions end by what `check_graph` bounds
            options.set_load_cancellation_flag(True)

    watched = WATCHDOG.begin(seconds, stop)
    try:
        with handed_over(content) as model:
            # Without a second attempt, which would begin to read a pipe where the first one stopped.
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises classes of its own that share no base
        reason = "it took too long, and was stopped" if late else _line(error)
        raise BundleError(f"a graph cannot be loaded ({reason}); export again") from error
    finally:
        WATCHDOG.end(watched)
    # The session keeps the file's bytes, to begin anew on another device, which there is not.
    session._model_bytes = None
    give_back_memory()
    return session


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

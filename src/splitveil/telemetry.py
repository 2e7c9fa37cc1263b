"""No telemetry: the reports that libraries send to their makers are off before one of them can start.

ONNX Runtime decides once, at its first import: with its reports on, it looks up its maker's collector and writes an
identifier of this device into the home folder. So `splitveil/__init__.py` calls `switch_off` before anything else.
"""

import os
import sys
import warnings

from splitveil.errors import TelemetryWarning

OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: on by default in its official builds since 1.29
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray
    "HF_HUB_DISABLE_TELEMETRY": "1",  # Hugging Face's libraries: none is a dependency, but a user's model may need one
    "DO_NOT_TRACK": "1",  # what further libraries have agreed to heed
}
"""Environment variables that switch reports off. They replace the user's own values: we promise none, ever."""
_HEEDED = ("1", "true", "yes", "on", "y")
"""Values that ONNX Runtime takes for "off", in any case."""
_started_before = False


def switch_off() -> None:
    """Switch reports off in this process and in those that it will start.

    Warns:
        TelemetryWarning: ONNX Runtime was imported before, with its reports on. It is told to stop, which is too late
            for its first report.
    """
    global _started_before
    value = os.environ.get("ORT_DISABLE_TELEMETRY", "")
    os.environ.update(OFF)
    ours = hasattr(sys.modules.get("splitveil.bundle.runtime"), "ort")  # imported with reports off, which lasts
    if "onnxruntime" not in sys.modules or ours or value.lower() in _HEEDED:
        return
    _started_before = True
    sys.modules["onnxruntime"].disable_telemetry_events()
    warnings.warn(
        "onnxruntime was imported before splitveil, so it may have sent a report to its maker; import splitveil first, "
        "or set ORT_DISABLE_TELEMETRY=1",
        TelemetryWarning,
        stacklevel=3,
    )


def state() -> str:
    """Whether ONNX Runtime may report from this process, in a phrase for people."""
    if _started_before:
        return "possibly on: onnxruntime was imported before splitveil; import splitveil first"
    return "off"

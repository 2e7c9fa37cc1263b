"""ONNX Runtime without its telemetry; the one place that imports it."""

from splitveil.telemetry import switch_off

switch_off()  # again, as the environment may have changed since splitveil was imported

import onnxruntime as ort  # noqa: E402

# Builds for Windows that report through the system's tracing do not read the environment. Elsewhere it changes nothing.
ort.disable_telemetry_events()

__all__ = ["ort"]

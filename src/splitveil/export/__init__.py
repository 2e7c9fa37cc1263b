"""Exporting a run: both halves as ONNX, with everything that the two sides must know."""

from splitveil.export.bundles import Exported, export

__all__ = ["Exported", "export"]

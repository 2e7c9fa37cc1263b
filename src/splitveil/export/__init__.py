"""Exporting a run: both halves as ONNX, with everything that the two sides must know."""

from splitveil.export.bundles import Exported, export
from splitveil.export.writing import check_target

__all__ = ["Exported", "check_target", "export"]

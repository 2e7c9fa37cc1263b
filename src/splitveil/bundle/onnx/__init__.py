"""ONNX files, read strictly and without the package onnx: whether a graph is one of those that a bundle may hold."""

from splitveil.bundle.onnx.check import check_graph
from splitveil.bundle.onnx.model import LARGEST_GRAPH

__all__ = ["LARGEST_GRAPH", "check_graph"]

"""A model cut in two at one tensor.

`tracing` records a model as a graph of operations, `effects` orders those that change a tensor in place, `cutting`
parts the graph, `sizes` recomputes the numbers that the server needs, `checking` runs the halves against the model.
"""

from splitveil.split.cutting import layer_name, possible_cuts
from splitveil.split.model import LinearLayer, SplitModel

__all__ = ["LinearLayer", "SplitModel", "layer_name", "possible_cuts"]

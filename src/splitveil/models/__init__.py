"""Models: the paper's network, and a user's own, from a file of torch.export or a function.

Loading a user's own model runs code of its maker (docs/threat-model.md): only for files that the user names.
"""

from splitveil.models.exported import load_exported, without_examples
from splitveil.models.function import call_function, is_reference
from splitveil.models.shapes import InputShape, answer_of, declare_shape, declared_shape, known_shape, sample_images
from splitveil.models.table1 import Table1Net

__all__ = [
    "InputShape",
    "Table1Net",
    "answer_of",
    "call_function",
    "declare_shape",
    "declared_shape",
    "is_reference",
    "known_shape",
    "load_exported",
    "sample_images",
    "without_examples",
]

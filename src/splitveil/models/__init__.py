"""Models: the paper's network, and a user's own, from a file of torch.export or a function.

Loading a user's own model runs code of its maker (docs/threat-model.md): only for files that the user names.
"""

from splitveil.models.answers import Logits, are_probabilities, logarithm
from splitveil.models.exported import load_exported, without_examples
from splitveil.models.fixed import TOLERANCE, answers_differ_by, fixed_answers, fixed_images
from splitveil.models.function import call_function, is_reference
from splitveil.models.precision import check_float32, check_precision
from splitveil.models.shapes import InputShape, answer_of, declare_shape, declared_shape, known_shape, sample_images
from splitveil.models.table1 import Table1Net

__all__ = [
    "TOLERANCE",
    "InputShape",
    "Logits",
    "Table1Net",
    "answer_of",
    "answers_differ_by",
    "are_probabilities",
    "call_function",
    "check_float32",
    "check_precision",
    "declare_shape",
    "declared_shape",
    "fixed_answers",
    "fixed_images",
    "is_reference",
    "known_shape",
    "load_exported",
    "logarithm",
    "sample_images",
    "without_examples",
]

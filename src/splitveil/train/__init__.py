"""Training: the recipe, the loop, the paper's ingredients, and checkpoints."""

from splitveil.train.checkpoint import CHECKPOINT, Epoch
from splitveil.train.loop import Progress, accuracy, fit, predict
from splitveil.train.precision import Precision, available, fastest_precision, products
from splitveil.train.recipe import Recipe

__all__ = [
    "CHECKPOINT", "Epoch", "Precision", "Progress", "Recipe", "accuracy", "available", "fastest_precision", "fit",
    "predict", "products",
]  # fmt: skip

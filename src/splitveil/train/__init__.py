"""Training: the recipe, the loop, the paper's ingredients, and checkpoints."""

from splitveil.train.checkpoint import CHECKPOINT, Epoch
from splitveil.train.loop import Progress, accuracy, available, fastest_precision, fit, predict
from splitveil.train.recipe import Recipe

__all__ = ["CHECKPOINT", "Epoch", "Progress", "Recipe", "accuracy", "available", "fastest_precision", "fit", "predict"]

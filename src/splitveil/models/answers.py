"""What a model's answers are: logits, or probabilities of which logits are to be made."""

import torch
from torch import Tensor, nn

_ROUNDING = 1e-3
"""Of a sum of float32 probabilities over up to some 20,000 classes."""


def are_probabilities(answers: Tensor) -> bool:
    """Whether rows (B, classes) look like probabilities: none is negative, and every row adds up to one."""
    if answers.dim() != 2 or answers.shape[1] < 2 or not len(answers):
        return False
    finite = answers[answers.isfinite().all(1)]
    return bool(len(finite)) and bool((finite >= 0).all()) and bool(((finite.sum(1) - 1).abs() < _ROUNDING).all())


def logarithm(probabilities: Tensor) -> Tensor:
    """Logits of probabilities, whose softmax gives these again; of 0 the logarithm of the least normal float32."""
    return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


class Logits(nn.Module):
    """A module that answers with probabilities, followed by their logarithm.

    Args:
        module: whose answers are `are_probabilities`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return logarithm(self.module(x))

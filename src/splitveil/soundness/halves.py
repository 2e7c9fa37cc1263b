"""Half a model, copied so that nothing that is tried on it shows in the caller's."""

from copy import deepcopy

from torch import nn


def frozen(half: nn.Module) -> nn.Module:
    """A copy of half a model that only answers, so that the caller's keeps its mode and gets no gradient."""
    return deepcopy(half).eval().requires_grad_(False)

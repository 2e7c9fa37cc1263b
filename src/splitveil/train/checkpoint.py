"""The state of a training on disk: weights, optimiser and history, and what they belong to."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splitveil.data import Dataset
from splitveil.errors import RunError
from splitveil.files import is_there
from splitveil.tensors import read_tensors, write_tensors
from splitveil.train.recipe import Recipe

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Epoch:
    """What one epoch did: mean training loss (nats, penalties included) and accuracy on the validation part."""

    loss: float
    val_accuracy: float


@dataclass(eq=False)
class State:
    """All that training changes.

    Attributes:
        model: what is trained.
        heads: what is trained along with it and thrown away in the end.
        optimizer: over the parameters of both.
        history: the epochs done.
    """

    model: nn.Module
    heads: nn.Module
    optimizer: torch.optim.Optimizer
    history: list[Epoch] = field(default_factory=list)


def save(path: Path, state: State, data: Dataset, recipe: Recipe) -> None:
    """Write the state, atomically; raises `RunError` if it cannot be written."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"heads.{name}": tensor for name, tensor in state.heads.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    write_tensors(path, tensors, _facts(data, recipe, state.history))


def resume(path: Path, state: State, data: Dataset, recipe: Recipe) -> None:
    """Load what `save` wrote into ``state``; nothing where there is no file.

    Raises:
        RunError: the file is damaged, or belongs to another recipe, model or data set.
    """
    if not is_there(path):
        return
    tensors, facts = read_tensors(path)
    try:
        history = [Epoch(**epoch) for epoch in facts["history"]]
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} is not a checkpoint of this version; choose another folder or remove it") from error
    if facts != _facts(data, recipe, history):
        raise RunError(f"{path} belongs to another data set or recipe; choose another folder or remove it")
    try:
        state.model.load_state_dict(_below("model.", tensors))
        state.heads.load_state_dict(_below("heads.", tensors))
        _restore(state.optimizer, _below("optimizer.", tensors))
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(f"{path} belongs to another model; choose another folder or remove it") from error
    state.history[:] = history


def _facts(data: Dataset, recipe: Recipe, history: list[Epoch]) -> dict[str, Any]:
    return {"data": data.digest, "recipe": asdict(recipe), "history": [asdict(epoch) for epoch in history]}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

"""Training a model to answer: one plain loop that can be stopped at any epoch and goes on where it stood."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splitveil.data import Dataset, Part
from splitveil.errors import RecipeError, RunError, TrainingError
from splitveil.files import read_tensors, write_tensors

Progress = Callable[[int, int, str], None]

CHECKPOINT = "checkpoint.safetensors"
# Section 5.1 drops the rate after epochs 20 and 40 of 50; shorter runs keep the proportions.
_RATE_DROPS = (0.4, 0.8)


@dataclass(frozen=True)
class Recipe:
    """How to train (paper section 5.1; batch size and mirror images are ours, the paper says nothing of them).

    Attributes:
        epochs: passes over the training part.
        seed: of the order of the samples.
        batch_size: samples per step.
        learning_rate: of Adam; divided by 10 after 40 % and after 80 % of the epochs.
        flip: mirror half of the images where the data set allows it (`Dataset.mirror`: faces, not digits).

    Raises:
        RecipeError: a value is impossible.
    """

    epochs: int = 50
    seed: int = 0
    batch_size: int = 128
    learning_rate: float = 1e-3
    flip: bool = True

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("seed", 0), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise RecipeError(f"learning_rate must be a positive number, not {self.learning_rate}")

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> "Recipe":
        """A recipe from named settings; raises `RecipeError` on a name that is not a setting."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise RecipeError(f"a recipe has no setting {unknown[0]!r}; it has: {', '.join(known)}")
        return cls(**settings)


@dataclass(frozen=True)
class Epoch:
    """What one epoch did: mean training loss (nats) and accuracy on the validation part."""

    loss: float
    val_accuracy: float


def fit(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train ``model`` in place on the target labels; leaves it in evaluation mode on ``device``.

    Hidden attributes are never read. With ``out``, every epoch ends with a checkpoint there, and a call with the
    same model, data and recipe goes on from it to the same weights as an uninterrupted run.

    Args:
        model: maps images (B, C, H, W) to logits (B, n_classes); its weights are the starting point.
        data: images and target labels.
        recipe: the settings.
        out: folder for the checkpoint.
        device: where to train.
        progress: called as (epochs done, epochs in all, text).

    Returns:
        One `Epoch` each, those before an interruption included.

    Raises:
        RunError: ``out`` holds a checkpoint of another recipe, model or data set, or cannot be written.
        TrainingError: the loss is no longer finite.
    """
    # Channels last makes these small convolutions several times faster on a CPU (benchmarks/training.py).
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    path = None if out is None else Path(out) / CHECKPOINT
    history = [] if path is None else _resume(path, model, optimizer, data, recipe)
    for epoch in range(len(history), recipe.epochs):
        _set_rate(optimizer, recipe, epoch)
        loss = _train_epoch(model, optimizer, data, recipe, epoch)
        history.append(Epoch(loss, accuracy(model, data.val)))
        if path is not None:
            _save(path, model, optimizer, data, recipe, history)
        if progress:
            progress(epoch + 1, recipe.epochs, f"loss {loss:.3f}, validation {history[-1].val_accuracy:.1%}")
    model.eval()
    return history


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], part: Part, *, batch_size: int = 512) -> Tensor:
    """Outputs of ``model`` for every image of a part, in batches, on the CPU: (N, …)."""
    device = next((p.device for p in model.parameters()), None) if isinstance(model, nn.Module) else None
    rows = range(0, len(part), batch_size)
    return torch.cat([model(part.images(slice(i, i + batch_size)).to(device)).cpu() for i in rows])


def accuracy(model: nn.Module, part: Part) -> float:
    """Share of images whose target the model finds; puts the model into evaluation mode."""
    return float((predict(model.eval(), part).argmax(1) == part.y).float().mean())


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Dataset, recipe: Recipe, epoch: int
) -> float:
    model.train()
    part, flip = data.train, recipe.flip and data.mirror
    device = next(model.parameters()).device
    # The order depends on seed and epoch alone, so that a resumed run needs no generator state.
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    order = torch.randperm(len(part), generator=generator)
    mirrored = torch.rand(len(part), generator=generator) < (0.5 if flip else 0.0)
    total = 0.0
    for step, rows in enumerate(_batches(order, recipe.batch_size)):
        x = _mirror(part.images(rows), mirrored[rows]).to(device, memory_format=torch.channels_last)
        y = part.y[rows].to(device)
        loss = nn.functional.cross_entropy(model(x), y)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {epoch + 1}, step {step + 1}; the checkpoint of the epoch "
                "before is kept: start again with a lower learning rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(order)


def _mirror(x: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows[:, None, None, None], x.flip(3), x)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Batches of ``size`` rows; a last one of a single row joins its neighbour, for batch normalisation's sake."""
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> None:
    drops = sum(epoch >= round(share * recipe.epochs) for share in _RATE_DROPS)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate / 10**drops


def _facts(data: Dataset, recipe: Recipe, history: list[Epoch]) -> dict[str, Any]:
    return {"data": data.digest, "recipe": asdict(recipe), "history": [asdict(epoch) for epoch in history]}


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    recipe: Recipe,
    history: list[Epoch],
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
    write_tensors(path, tensors, _facts(data, recipe, history))


def _resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, data: Dataset, recipe: Recipe
) -> list[Epoch]:
    if not path.exists():
        return []
    tensors, facts = read_tensors(path)
    history = [Epoch(**epoch) for epoch in facts["history"]]
    if facts != _facts(data, recipe, history):
        raise RunError(f"{path} belongs to another data set or recipe; choose another folder or remove it")
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, key = name.partition(".")
        if kind == "optimizer":
            index, _, field = key.partition(".")
            state.setdefault(int(index), {})[field] = tensor
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except (RuntimeError, ValueError) as error:
        raise RunError(f"{path} belongs to another model; choose another folder or remove it") from error
    return history

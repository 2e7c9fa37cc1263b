"""Training a model to answer: one plain loop that can be stopped at any epoch and goes on where it stood."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from splitveil.data import Dataset, Part
from splitveil.errors import DataError, ModelError, TrainingError
from splitveil.train.checkpoint import CHECKPOINT, Epoch, State, resume, save
from splitveil.train.ingredients import Addition, Ingredients
from splitveil.train.precision import available, products
from splitveil.train.recipe import Recipe

Progress = Callable[[int, int, str], None]

# Section 5.1 drops the rate after epochs 20 and 40 of 50; shorter runs keep the proportions.
_RATE_DROPS = (0.4, 0.8)


def fit(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    addition: Addition | None = None,
) -> list[Epoch]:
    """Train ``model`` in place on the target labels; leaves it in evaluation mode on ``device``.

    Hidden attributes are never read here. With ``out``, every epoch ends with a checkpoint there, and a call with the
    same model, data and recipe goes on from it to the same weights as an uninterrupted run.

    Args:
        model: maps images (B, C, H, W) to logits (B, n_classes); its weights are the starting point.
        data: images and target labels.
        recipe: the settings.
        out: folder for the checkpoint.
        device: where to train.
        progress: called as (epochs done, epochs in all, text).
        addition: what every step gets besides the recipe's ingredients; not with ``out``, since it may hold state
            that no checkpoint has.

    Returns:
        One `Epoch` each, those before an interruption included.

    Raises:
        ModelError: the model does not map the data's images to one logit per class.
        RunError: ``out`` holds a checkpoint of another recipe, model or data set, or cannot be written.
        TrainingError: there is no such device, or the loss or a weight is no longer finite, or an addition was given
            together with ``out``.
    """
    device = available(device)
    if addition is not None and out is not None:
        raise TrainingError("training with an addition keeps no checkpoints; leave out the folder")
    # Channels last makes these small convolutions several times faster on a CPU.
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check_fit(model, data)
    ingredients = Ingredients(model, recipe, data.train.images(slice(0, 1)).to(device))
    added: list[Addition] = [ingredients] if addition is None else [ingredients, addition]
    heads = nn.ModuleList(head for each in added for head in each.heads).to(device)
    optimizer = torch.optim.Adam([*model.parameters(), *heads.parameters()], lr=recipe.learning_rate)
    state = State(model, heads, optimizer)
    path = None if out is None else Path(out) / CHECKPOINT
    if path is not None:
        resume(path, state, data, recipe)
    for epoch in range(len(state.history), recipe.epochs):
        _set_rate(optimizer, recipe, epoch)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(_seed(recipe, epoch))
            loss = _train_epoch(state, added, data, recipe, epoch)
        state.history.append(Epoch(loss, accuracy(model, data.val)))
        if path is not None:
            save(path, state, data, recipe)
        if progress:
            accurate = state.history[-1].val_accuracy
            progress(epoch + 1, recipe.epochs, f"loss {loss:.3f}, validation {accurate:.1%}")
    model.eval()
    return state.history


@torch.no_grad()
def predict(model: Callable[[Tensor], Tensor], part: Part, *, batch_size: int = 512) -> Tensor:
    """Outputs of ``model`` for every image of a part, in batches, on the CPU: (N, …)."""
    device = next((p.device for p in model.parameters()), None) if isinstance(model, nn.Module) else None
    rows = range(0, len(part), batch_size)
    return torch.cat([model(part.images(slice(i, i + batch_size)).to(device)).cpu() for i in rows])


def accuracy(model: nn.Module, part: Part) -> float:
    """Share of images whose target the model finds; puts the model into evaluation mode."""
    return float((predict(model.eval(), part).argmax(1) == part.y).double().mean())


def _train_epoch(state: State, added: Sequence[Addition], data: Dataset, recipe: Recipe, epoch: int) -> float:
    model, part, flip = state.model.train(), data.train, recipe.flip and data.mirror
    device = next(model.parameters()).device
    # The order depends on seed and epoch alone, so that a resumed run needs no generator state.
    generator = torch.Generator().manual_seed(_seed(recipe, epoch))
    order = torch.randperm(len(part), generator=generator)
    mirrored = torch.rand(len(part), generator=generator) < (0.5 if flip else 0.0)
    batches = _batches(order, recipe.batch_size)
    total, place = 0.0, f"epoch {epoch + 1}"
    for step, rows in enumerate(batches):
        place = f"epoch {epoch + 1}, step {step + 1}"
        x = _mirror(part.images(rows), mirrored[rows]).to(device, memory_format=torch.channels_last)
        with ExitStack() as stack:
            penalties = [stack.enter_context(each.step(epoch * len(batches) + step, rows)) for each in added]
            loss = _loss(model, x, part.y[rows].to(device), recipe)
        loss = loss + sum(chain.from_iterable(penalties))
        _check_finite("loss", [loss], place)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        total += loss.item() * len(rows)
    # The last step may have spoilt what no loss has seen yet; a checkpoint must not keep that.
    _check_finite("weights", model.state_dict().values(), place)
    return total / len(order)


def _loss(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> Tensor:
    """Mean cross-entropy, in nats."""
    with products(x.device, recipe.precision):
        logits = model(x)
    return nn.functional.cross_entropy(logits.float(), y)


def _seed(recipe: Recipe, epoch: int) -> int:
    return recipe.seed * 1_000_003 + epoch


def _check_finite(what: str, tensors: Iterable[Tensor], place: str) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise TrainingError(
            f"the {what} became infinite or NaN in {place}; start again with a lower learning rate "
            "(checkpoints of earlier epochs are kept)"
        )


def _check_fit(model: nn.Module, data: Dataset) -> None:
    """See that the model answers the data's images with one logit per class, before anything is learnt."""
    if len(data.train) < 2:
        raise DataError(f"{data.name} has one training image; training needs two or more")
    device = next((p.device for p in model.parameters()), None)
    if device is None:
        raise ModelError(f"{type(model).__name__} has no parameters, so there is nothing to train")
    try:
        with torch.no_grad():
            shape = tuple(model.eval()(data.train.images(slice(0, 2)).to(device)).shape)
    except RuntimeError as error:
        raise ModelError(f"the model cannot read images of shape {data.input_shape}: {error}") from error
    if shape != (2, data.n_classes):
        raise ModelError(f"{data.name} has {data.n_classes} classes, but the model answers 2 images with shape {shape}")


def _mirror(x: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows[:, None, None, None], x.flip(3), x)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Batches of ``size`` rows; a last one of a single row joins its neighbour, for batch normalisation's sake."""
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> None:
    # The first epoch always has the full rate, even if it is the only one.
    drops = sum(epoch >= max(1, round(share * recipe.epochs)) for share in _RATE_DROPS)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate / 10**drops

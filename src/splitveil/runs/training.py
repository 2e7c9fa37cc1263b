"""Training in a run's folder."""

from pathlib import Path
from typing import Any

import torch

from splitveil.data import Dataset
from splitveil.files import write_json
from splitveil.models import fixed_answers
from splitveil.runs.manifest import MANIFEST, DataSource, Manifest, claim, read_manifest, versions
from splitveil.runs.sources import WEIGHTS, Table1Source
from splitveil.tensors import write_tensors
from splitveil.train import Epoch, Progress, Recipe, fit


def train_run(
    out: str | Path,
    data: Dataset,
    recipe: Recipe,
    *,
    source: str,
    options: dict[str, Any] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train `Table1Net` on ``data`` in the folder ``out``, going on where an earlier call stopped.

    Args:
        out: the run's folder.
        data: from `load_data`.
        recipe: the settings; the seed also draws the first weights.
        source: the name that `load_data` was called with.
        options: the options that `load_data` was called with.
        device: where to train.
        progress: see `fit`.

    Raises:
        RunError: the folder belongs to another run, or cannot be written.
    """
    folder = Path(out)
    architecture = Table1Source(name="Table1Net", input_shape=data.input_shape, n_classes=data.n_classes)
    manifest = Manifest(
        model=architecture,
        data=DataSource(name=source, options=options or {}, digest=data.digest),
        recipe=recipe.__dict__.copy(),
        versions=versions(),
    )
    claim(folder, manifest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = architecture.build()
    history = fit(model, data, recipe, out=folder, device=device, progress=progress)
    write_tensors(folder / WEIGHTS, model.state_dict(), {"data": data.digest})
    answers = fixed_answers(model.eval(), data.input_shape)
    there = read_manifest(folder / MANIFEST).model_copy(update={"answers": answers})
    write_json(folder / MANIFEST, there.model_dump(mode="json"))
    return history

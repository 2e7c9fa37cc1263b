"""A run is a folder: which model, data, recipe and versions, and the weights that came of it."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from splitveil.data import Dataset, load_data
from splitveil.errors import RunError
from splitveil.files import is_there, read_json, write_json
from splitveil.models import Table1Net
from splitveil.tensors import read_tensors, write_tensors
from splitveil.train import CHECKPOINT, Epoch, Progress, Recipe, fit
from splitveil.version import __version__

MANIFEST = "run.json"
WEIGHTS = "model.safetensors"
_RECORDED = ("torch", "numpy", "safetensors")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSource(_Strict):
    """Where a model comes from: the class and its arguments."""

    name: Literal["Table1Net"]
    input_shape: tuple[int, int, int]
    n_classes: int

    def build(self) -> nn.Module:
        """The network with fresh weights from torch's global generator."""
        return Table1Net(self.input_shape, self.n_classes)


class DataSource(_Strict):
    """Where the data came from: the name and options of `load_data`, and the digest of what it gave."""

    name: str
    options: dict[str, Any]
    digest: str


class Manifest(_Strict):
    """What ``run.json`` holds."""

    schema_version: Literal[1] = 1
    model: ModelSource
    data: DataSource
    recipe: dict[str, Any]
    versions: dict[str, str]


class Run:
    """A trained model on disk.

    Args:
        folder: what `train_run` has written.

    Raises:
        RunError: the folder is missing, damaged, or its training has not finished.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder / MANIFEST)
        if not is_there(self.folder / WEIGHTS):
            raise RunError(f"{folder} holds no finished training; run 'splitveil train --out {folder}' to its end")

    def model(self) -> nn.Module:
        """The trained model in evaluation mode."""
        model = self.manifest.model.build()
        weights, _ = read_tensors(self.folder / WEIGHTS)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(f"the weights in {self.folder} are of another model; train again") from error
        return model.eval()

    def data(self, root: str | Path | None = None, progress: Progress | None = None) -> Dataset:
        """The data set that the run was trained on.

        Raises:
            RunError: what is found there now is not the same data.
            DataError: it cannot be loaded.
        """
        source = self.manifest.data
        data = load_data(source.name, root=root, progress=progress, **source.options)
        if data.digest != source.digest:
            raise RunError(
                f"the data set {source.name!r} has changed since {self.folder} was trained; restore it or train again"
            )
        return data


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
    architecture = ModelSource(name="Table1Net", input_shape=data.input_shape, n_classes=data.n_classes)
    manifest = Manifest(
        model=architecture,
        data=DataSource(name=source, options=options or {}, digest=data.digest),
        recipe=recipe.__dict__.copy(),
        versions=versions(),
    )
    _claim(folder, manifest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = architecture.build()
    history = fit(model, data, recipe, out=folder, device=device, progress=progress)
    write_tensors(folder / WEIGHTS, model.state_dict(), {"data": data.digest})
    return history


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {name: version(name) for name in _RECORDED}
    return {"splitveil": __version__, "python": platform.python_version(), **found}


def _claim(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, or see that the one there is of the same run."""
    path = folder / MANIFEST
    if not is_there(path):
        if is_there(folder / CHECKPOINT) or is_there(folder / WEIGHTS):
            raise RunError(f"{folder} holds weights but no {MANIFEST}; choose another folder")
        write_json(path, manifest.model_dump(mode="json"))
        return
    there, manifest = _read_manifest(path), Manifest.model_validate(manifest.model_dump(mode="json"))
    for name in ("data", "model", "recipe"):
        if differs := _differences(getattr(there, name), getattr(manifest, name)):
            raise RunError(f"{folder} holds a run with another {name} ({differs}); choose another folder for this one")


def _differences(there: Any, asked: Any) -> str:
    old, new = dict(there), dict(asked)
    return ", ".join(f"{key} {old.get(key)} there, {new.get(key)} asked" for key in new if old.get(key) != new[key])


def _read_manifest(path: Path) -> Manifest:
    content = read_json(path)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{path} is not a run of this version of splitveil ({place}: {first['msg']})") from error

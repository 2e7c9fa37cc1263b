"""The model that a user names: a run's folder, a file of torch.export, or a function."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from torch import nn

from splitveil.errors import ModelError
from splitveil.files import is_there, write_bytes
from splitveil.models import (
    answer_of,
    call_function,
    declare_shape,
    is_reference,
    known_shape,
    load_exported,
    sample_images,
    without_examples,
)
from splitveil.runs.manifest import DataSource, ImageSource
from splitveil.runs.run import Run
from splitveil.runs.sources import WEIGHTS, ExportedSource, FunctionSource, ModelSource
from splitveil.tensors import write_tensors


@dataclass(frozen=True, eq=False)
class NamedModel:
    """A model on its way into a run's folder.

    Attributes:
        model: in evaluation mode.
        source: what the run is to remember.
        write: puts the model's file into a folder.
        data: what it was trained on or fitted to, where it comes from a run.
        classes: names of its answers, where it comes from a run that has some.
    """

    model: nn.Module
    source: ModelSource
    write: Callable[[Path], None]
    data: DataSource | ImageSource | None = None
    classes: tuple[str, ...] | None = None


def find_model(name: str, *, size: tuple[int, int] | None = None, trust: bool = False) -> NamedModel:
    """The model that a user names; what is named here is the user's own, so its code runs.

    Args:
        name: a run's folder, a file of ``torch.export.save``, or ``package.module:function``.
        size: height and width of its images, where the model does not say.
        trust: see `Run`.

    Raises:
        ModelError: there is no such model, or it does not map images to logits.
        RunError: the run is damaged, or is code that was made elsewhere.
    """
    path = Path(name)
    if is_there(path) and path.is_dir():
        return _of_run(Run(path, trust=trust), size)
    if is_there(path):
        return _of_file(path, size)
    if is_reference(name):
        return _of_function(name, size)
    raise ModelError(f"there is no model {name!r}; name a run's folder, a .pt2 file, or package.module:function")


def _of_run(run: Run, size: tuple[int, int] | None) -> NamedModel:
    model, source = run.model(), run.manifest.model
    if size is not None and size != source.input_shape[1:]:
        height, width = source.input_shape[1:]
        raise ModelError(f"the model of {run.folder} takes images of {height}x{width} pixels; drop --size")
    content = (run.folder / source.file).read_bytes()
    return NamedModel(
        model, source, lambda folder: write_bytes(folder / source.file, content), run.manifest.data,
        run.manifest.classes,
    )  # fmt: skip


def _of_file(path: Path, size: tuple[int, int] | None) -> NamedModel:
    model, content = load_exported(path), without_examples(path)
    shape = known_shape(model, size)
    declare_shape(model, shape)
    source = ExportedSource(sha256=sha256(content).hexdigest(), input_shape=shape, n_classes=_classes(model, shape))
    return NamedModel(model, source, lambda folder: write_bytes(folder / source.file, content))


def _of_function(reference: str, size: tuple[int, int] | None) -> NamedModel:
    model = call_function(reference)
    shape = known_shape(model, size)
    declare_shape(model, shape)
    source = FunctionSource(reference=reference, input_shape=shape, n_classes=_classes(model, shape))
    # A copy, because fitting moves the model to a device.
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return NamedModel(model, source, lambda folder: write_tensors(folder / WEIGHTS, weights, {}))


def _classes(model: nn.Module, shape: tuple[int, int, int]) -> int:
    return answer_of(model, sample_images(shape, 2)).shape[1]

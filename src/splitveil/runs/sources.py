"""Where a run's model comes from, and how it is loaded again."""

import hashlib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from splitveil.errors import RunError
from splitveil.models import InputShape, Table1Net, call_function, declare_shape, load_exported
from splitveil.tensors import read_tensors

WEIGHTS = "model.safetensors"
PROGRAM = "model.pt2"


class Strict(BaseModel):
    """What a run records: nothing that it does not know, and nothing that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Table1Source(Strict):
    """The paper's network: its arguments; the weights lie in a file of their own."""

    name: Literal["Table1Net"]
    input_shape: InputShape
    n_classes: int

    file: ClassVar[str] = WEIGHTS
    runs_code: ClassVar[bool] = False

    def build(self) -> nn.Module:
        """The network with fresh weights from torch's global generator."""
        return Table1Net(self.input_shape, self.n_classes)

    def load(self, folder: Path) -> nn.Module:
        """The network with the weights of the run in ``folder``."""
        return _with_weights(self.build(), folder)


class ExportedSource(Strict):
    """A user's model that ``torch.export.save`` wrote: the file without example inputs, known by its SHA-256."""

    name: Literal["exported"] = "exported"
    sha256: str
    input_shape: InputShape
    n_classes: int

    file: ClassVar[str] = PROGRAM
    runs_code: ClassVar[bool] = True

    def load(self, folder: Path) -> nn.Module:
        """The model in the run's copy of the file; raises `RunError` where that has changed."""
        path = folder / self.file
        if sha256_of(path) != self.sha256:
            raise RunError(f"{path} is not the file that this run was made of; restore it or obfuscate again")
        model = load_exported(path)
        declare_shape(model, self.input_shape)
        return model


class FunctionSource(Strict):
    """A user's model that a function of theirs makes; the weights lie in a file of their own."""

    name: Literal["function"] = "function"
    reference: str
    input_shape: InputShape
    n_classes: int

    file: ClassVar[str] = WEIGHTS
    runs_code: ClassVar[bool] = True

    def load(self, folder: Path) -> nn.Module:
        """What the function makes now, with the weights that it had when the run was made."""
        model = _with_weights(call_function(self.reference), folder)
        declare_shape(model, self.input_shape)
        return model


ModelSource = Annotated[Table1Source | ExportedSource | FunctionSource, Field(discriminator="name")]


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; raises `RunError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error}); restore it") from error


def _with_weights(model: nn.Module, folder: Path) -> nn.Module:
    weights, _ = read_tensors(folder / WEIGHTS)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"the weights in {folder} are of another model; train again") from error
    return model.eval()

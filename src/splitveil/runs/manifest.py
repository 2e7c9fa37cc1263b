"""What ``run.json`` says."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from splitveil.errors import RunError
from splitveil.files import check_writable, is_there, read_json, write_json
from splitveil.runs.sources import PROGRAM, WEIGHTS, ModelSource, Strict
from splitveil.train import CHECKPOINT
from splitveil.version import __version__

MANIFEST = "run.json"
OBFUSCATOR = "obfuscator.safetensors"
_RECORDED = ("torch", "numpy", "safetensors")


class DataSource(Strict):
    """Where the data came from: the name and options of `load_data`, and the digest of what it gave."""

    name: str
    options: dict[str, Any]
    digest: str


class ImageSource(Strict):
    """A folder of unlabelled images, and the digest of what `load_unlabelled` gave."""

    folder: str
    digest: str


class Fitted(Strict):
    """The obfuscator that was fitted: where the model is cut, and what was asked for."""

    cut: str
    method: str
    m: int | None
    messages: int | None
    width: int | None = None
    seed: int


class Manifest(Strict):
    """What ``run.json`` holds: of a training a recipe, of a fit an obfuscator and the names of the answers.

    Attributes:
        answers: of the model to images that are the same everywhere, see `fixed_answers`: by them it is known again,
            since weights do not say what else a function makes its model of. None in runs from before, while a
            training goes on, and where they are not finite.
    """

    schema_version: Literal[1] = 1
    model: ModelSource
    data: DataSource | ImageSource
    recipe: dict[str, Any] | None = None
    obfuscator: Fitted | None = None
    classes: tuple[str, ...] | None = None
    answers: tuple[float, ...] | None = None
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {name: version(name) for name in _RECORDED}
    return {"splitveil": __version__, "python": platform.python_version(), **found}


def read_manifest(path: Path) -> Manifest:
    """What a run's folder says of itself; raises `RunError` where it is missing or damaged."""
    content = read_json(path)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{path} is not a run of this version of splitveil ({place}: {first['msg']})") from error


def claim(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a training, or see that the one there is of the same; raises `RunError` if not."""
    path = folder / MANIFEST
    if not is_there(path):
        check_free(folder)
        write_json(path, manifest.model_dump(mode="json"))
        return
    there, manifest = read_manifest(path), Manifest.model_validate(manifest.model_dump(mode="json"))
    if there.recipe is None:
        raise RunError(f"{folder} holds a run of 'splitveil obfuscate'; choose another folder for a training")
    for name in ("data", "model", "recipe"):
        if differs := _differences(getattr(there, name), getattr(manifest, name)):
            # The rate drops are places in the whole training, so more epochs are not a continuation.
            why = "; it cannot be given more or fewer epochs, since the learning rate falls after shares of all of them"
            raise RunError(
                f"{folder} holds a run with another {name} ({differs}){why if 'epochs ' in differs else ''}; "
                "choose another folder for this one"
            )


def check_free(folder: Path) -> None:
    """Raises `RunError` where the folder holds a run, or the weights of one, or cannot be written."""
    check_writable(folder)
    if is_there(folder / MANIFEST):
        raise RunError(f"{folder} holds a run already; choose another folder")
    if any(is_there(folder / name) for name in (CHECKPOINT, WEIGHTS, PROGRAM)):
        raise RunError(f"{folder} holds weights but no {MANIFEST}; choose another folder")


def _differences(there: Any, asked: Any) -> str:
    old, new = dict(there), dict(asked)
    return ", ".join(f"{key} {old.get(key)} there, {new.get(key)} asked" for key in new if old.get(key) != new[key])

"""A model repository for the Triton Inference Server, from server bundles.

    DIR/NAME/config.pbtxt             what the model takes and gives, and its identity
    DIR/NAME/1/model.py               triton_model.py, as it is beside this file
    DIR/NAME/1/bundle/…               the server bundle, checked whole again when Triton loads it

With the backend "onnxruntime" a version is the bundle's graph alone, ``DIR/NAME/1/model.onnx``.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from splitveil.bundle import ServerManifest, read_server
from splitveil.bundle.manifest import MANIFEST, SIGNATURE
from splitveil.errors import RunError, ServeError
from splitveil.files import write_bytes, write_text

Backend = Literal["python", "onnxruntime"]
CONFIG = "config.pbtxt"
MARK = "# Written by 'splitveil deploy triton'.\n"
LARGEST_BATCH = 64


@dataclass(frozen=True)
class Placed:
    """A bundle's place in a model repository.

    Attributes:
        name: of the model.
        version: of the model; Triton serves the highest one.
        identity: of the bundle.
        folder: of the version.
    """

    name: str
    version: int
    identity: str
    folder: Path


def write_repository(
    folder: str | Path,
    bundles: Sequence[str | Path],
    *,
    backend: Backend = "python",
    instances: int = 1,
    public_key: str | Path | None = None,
) -> list[Placed]:
    """Put server bundles into a model repository, each as the next version of the model of its name.

    Args:
        folder: the repository; models of other names in it are left alone.
        bundles: folders of server bundles, of different names.
        backend: "python" takes frames, and coefficients unless the bundle is certified; "onnxruntime" takes
            coefficients only, and so no certified bundle.
        instances: of each model that run at once.
        public_key: PEM file of an Ed25519 key; the bundles must then carry its signature.

    Raises:
        BundleError: a bundle is missing, damaged, or not signed as asked.
        ServeError: two bundles have one name, a name is taken by a model that is not ours, or the backend cannot
            serve a bundle.
        RunError: the repository cannot be written.
    """
    manifests = [read_server(bundle, public_key=public_key).manifest for bundle in bundles]
    names = [manifest.name for manifest in manifests]
    for manifest in manifests:
        if names.count(manifest.name) > 1:
            raise ServeError(f"two of the bundles are named {manifest.name}; export one of them with another --name")
        if backend == "onnxruntime" and manifest.messages.certified:
            raise ServeError(
                f"{manifest.name} is certified and takes frames only, which the backend onnxruntime cannot read; "
                "use --backend python"
            )
        _check_ours(Path(folder) / manifest.name, backend)
    try:
        return [_place(Path(folder), Path(bundle), backend, instances, public_key) for bundle in bundles]
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error}); free space or choose another folder") from error


def config_text(manifest: ServerManifest, backend: Backend, instances: int) -> str:
    """The ``config.pbtxt`` of a bundle's model."""
    messages = manifest.messages
    frame = 'name: "frame" data_type: TYPE_UINT8 dims: [ -1 ]'
    coefficients = 'name: "coefficients" data_type: TYPE_FP32 dims: [ {} ]'
    if backend == "onnxruntime":
        inputs = [coefficients.format(_listed(messages.components, *messages.positions))]
    elif messages.certified:
        inputs = [f"{frame} allow_ragged_batch: true"]
    else:
        # Messages of different lengths, or of either kind, still share a batch: model.py joins the rows.
        shorter = coefficients.format(_listed(-1, *messages.positions))
        inputs = [f"{text} allow_ragged_batch: true optional: true" for text in (frame, shorter)]
    lines = [
        f'name: "{manifest.name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {LARGEST_BATCH}",
        *(f"input {{ {text} }}" for text in inputs),
        f'output {{ name: "logits" data_type: TYPE_FP32 dims: [ {manifest.n_classes} ] }}',
        f"instance_group {{ kind: KIND_CPU count: {instances} }}",
        # Rows of different requests, only where the export has seen that none changes another's answer.
        *(["dynamic_batching { }"] if getattr(manifest, "rows_independent", False) else []),
        *(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in manifest.parameters.items()
        ),
    ]
    return MARK + "\n".join(lines) + "\n"


def _listed(*sizes: int) -> str:
    return ", ".join(map(str, sizes))


def _check_ours(model: Path, backend: Backend) -> None:
    if not model.exists():
        return
    try:
        config = (model / CONFIG).read_text(encoding="utf-8")
    except (OSError, ValueError):
        config = ""
    if not config.startswith(MARK):
        raise ServeError(f"{model} is no model that 'splitveil deploy triton' wrote; choose another folder")
    if f'backend: "{backend}"' not in config:
        raise ServeError(
            f"{model} has versions for another backend, which share its configuration; choose another folder"
        )


def _place(repository: Path, bundle: Path, backend: Backend, instances: int, public_key: str | Path | None) -> Placed:
    """The version appears whole, by a rename; Triton overlooks folders whose name is no number."""
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository, prefix=".new-") as temporary:
        made = Path(temporary) / "version"
        copy = made / "bundle"
        copy.mkdir(parents=True)
        signed = [SIGNATURE] if public_key else []
        for name in (*read_server(bundle).manifest.files, MANIFEST, *signed):  # whatever else lies there stays there
            shutil.copyfile(bundle / name, copy / name)
        # What was copied is what counts, should the bundle have changed since it was looked at.
        checked = read_server(copy, public_key=public_key)
        manifest = checked.manifest
        if backend == "python":
            shutil.copyfile(Path(__file__).with_name("triton_model.py"), made / "model.py")
        else:
            shutil.rmtree(copy)
            write_bytes(made / "model.onnx", checked.files["server.onnx"])
        model = repository / manifest.name
        model.mkdir(exist_ok=True)
        version = 1 + max((int(path.name) for path in model.iterdir() if path.name.isdecimal()), default=0)
        made.rename(model / str(version))
    write_text(model / CONFIG, config_text(manifest, backend, instances))
    return Placed(manifest.name, version, manifest.identity, model / str(version))

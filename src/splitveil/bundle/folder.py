"""A bundle as a folder: written whole, checked whole before anything in it is used."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from splitveil.bundle.manifest import MANIFEST, SCHEMA_VERSION, SIGNATURE, EdgeManifest, File, ServerManifest
from splitveil.bundle.memory import Content
from splitveil.bundle.onnx import LARGEST_GRAPH, check_graph
from splitveil.bundle.reading import read_file, read_to_load
from splitveil.bundle.signing import check_signature, sign
from splitveil.errors import BundleError, GraphError
from splitveil.files import write_bytes

LARGEST_MANIFEST = 10 * 2**20  # bytes; one of 65,535 components and all codings has a third of it
LARGEST_PROFILE = 100 * 2**20  # bytes; a row has under a thousand
M = TypeVar("M", EdgeManifest, ServerManifest)
C = TypeVar("C", bound=Content)


@dataclass(frozen=True, eq=False)
class Bundle(Generic[M]):
    """A bundle that was found whole.

    Attributes:
        manifest: what it says of itself.
        files: the content of each file, as it was when its SHA-256 was compared. One that was read to be loaded lacks
            the graph's.
        graph: the content of the graph's file.
    """

    manifest: M
    files: Mapping[str, bytes]
    graph: Content


def read_edge(
    folder: str | Path, *, public_key: str | Path | None = None, to_load: bool = False
) -> Bundle[EdgeManifest]:
    """The edge bundle in a folder.

    Args:
        folder: what `splitveil export` wrote as ``edge``.
        public_key: PEM file of an Ed25519 key; the bundle must then carry its signature.
        to_load: the bundle's graph is only to be loaded, once: where it is large, `Graph` gives back the memory of each
            part of it as soon as it is loaded.

    Raises:
        BundleError: it is missing, damaged, incomplete, of another version or kind, or not signed as asked.
    """
    return _read(Path(folder), EdgeManifest, public_key, to_load)


def read_server(
    folder: str | Path, *, public_key: str | Path | None = None, to_load: bool = False
) -> Bundle[ServerManifest]:
    """The server bundle in a folder; see `read_edge`."""
    return _read(Path(folder), ServerManifest, public_key, to_load)


def write_bundle(
    folder: Path, manifest: EdgeManifest | ServerManifest, files: Mapping[str, bytes], private_key: Path | None = None
) -> None:
    """Write a bundle, the manifest last, so that one that was interrupted is refused.

    Args:
        folder: an earlier bundle there is replaced.
        manifest: whose files are those given.
        files: by name.
        private_key: PEM file of an Ed25519 key to sign with.

    Raises:
        BundleError: the folder holds something else.
        RunError: it cannot be written.
    """
    check_free(folder)
    text = (json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()
    signature = sign(text, private_key) if private_key else None  # a wrong key must not cost the bundle that is there
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / SIGNATURE).unlink(missing_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)
    if signature:
        write_bytes(folder / SIGNATURE, signature)
    write_bytes(folder / MANIFEST, text)


def check_free(folder: Path) -> None:
    """Raises `BundleError` where a folder holds something other than a bundle."""
    try:
        if in_the_way := [place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()]:
            raise BundleError(f"{in_the_way[0]} is a file, where a folder is needed; choose another folder")
        foreign = folder.exists() and any(folder.iterdir()) and not _is_ours(folder / MANIFEST)
    except OSError as error:
        raise BundleError(f"{folder} cannot be looked into ({error}); choose another folder") from error
    if foreign:
        raise BundleError(f"{folder} holds something that is no bundle; choose another folder")


def _is_ours(manifest: Path) -> bool:
    """Whether a file is the manifest of a bundle, of whichever version; others, too, name a file so."""
    try:
        content = json.loads(read_file(manifest.parent, manifest.name, LARGEST_MANIFEST))
    except (FileNotFoundError, ValueError, RecursionError):  # a `BundleError` is a ValueError
        return False
    return isinstance(content, dict) and content.get("kind") in ("edge", "server") and "schema_version" in content


def file_facts(files: Mapping[str, bytes]) -> dict[str, File]:
    """Sizes and SHA-256 of files by name."""
    return {
        name: File(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()) for name, content in files.items()
    }


def _read(folder: Path, model: type[M], public_key: str | Path | None, to_load: bool) -> Bundle[M]:
    try:
        text = read_file(folder, MANIFEST, LARGEST_MANIFEST)
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} is no bundle: it has no file {MANIFEST}; name what 'splitveil export' wrote"
        ) from error
    if public_key is not None:
        check_signature(folder, text, Path(public_key))
    manifest = _manifest(folder, text, model)
    files: dict[str, bytes] = {}
    if to_load:
        graph: Content = _whole(folder, model.GRAPH, manifest, read_to_load)
    else:
        graph = files[model.GRAPH] = _whole(folder, model.GRAPH, manifest, read_file)
    for name in manifest.files.keys() - {model.GRAPH}:
        files[name] = _whole(folder, name, manifest, read_file)
        _json(folder / name, files[name])
    try:  # what is as it was signed may still be hostile
        check_graph(graph, manifest.input_shape, manifest.output_shape)
    except GraphError as error:
        raise BundleError(f"{folder / model.GRAPH}: {error}") from error
    return Bundle(manifest, files, graph)


def _whole(
    folder: Path, name: str, manifest: EdgeManifest | ServerManifest, read: Callable[[Path, str, int, int], C]
) -> C:
    """The content of a file, if it is what the manifest says it is."""
    facts = manifest.files[name]
    try:
        content = read(folder, name, LARGEST_GRAPH if name == manifest.GRAPH else LARGEST_PROFILE, facts.bytes)
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} is incomplete: it has no file {name}; name what 'splitveil export' wrote"
        ) from error
    if hashlib.sha256(content).hexdigest() != facts.sha256:
        raise BundleError(f"{folder / name} is not what its bundle says it is: it was changed; export again")
    return content


def _json(path: Path, text: bytes) -> Any:
    """The content of a JSON file in which no key stands twice, as readers differ in which of the two they take."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BundleError(f"{path} has the key {twice[:50]!r} twice in one place; export again")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except BundleError:
        raise
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is no JSON ({error}); export again") from error


def _manifest(folder: Path, text: bytes, model: type[M]) -> M:
    kind = "edge" if model is EdgeManifest else "server"
    content = _json(folder / MANIFEST, text)
    found = content if isinstance(content, dict) else {}
    if isinstance(found.get("schema_version"), int) and found["schema_version"] != SCHEMA_VERSION:
        raise BundleError(
            f"{folder} is a bundle of version {found['schema_version']}, but version {SCHEMA_VERSION} is read here; "
            "export again, or update splitveil"
        )
    if found.get("kind") in ("edge", "server") and found["kind"] != kind:
        raise BundleError(f"{folder} is the {found['kind']} bundle; name the {kind} bundle beside it")
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "as a whole"
        raise BundleError(f"{folder} is no valid {kind} bundle ({place}: {first['msg']}); export again") from error

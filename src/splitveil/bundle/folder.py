"""A bundle as a folder: written whole, checked whole before anything in it is used."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from splitveil.bundle.manifest import MANIFEST, SCHEMA_VERSION, SIGNATURE, EdgeManifest, File, ServerManifest
from splitveil.bundle.signing import check_signature, sign
from splitveil.errors import BundleError
from splitveil.files import write_bytes

LARGEST_MANIFEST = 10 * 2**20
# A text "location" in the field of a key; numbers may be written with more bytes than they need.
_LOCATION = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
M = TypeVar("M", EdgeManifest, ServerManifest)


@dataclass(frozen=True, eq=False)
class Bundle(Generic[M]):
    """A bundle that was found whole.

    Attributes:
        manifest: what it says of itself.
        files: the content of each file, as it was when its SHA-256 was compared.
    """

    manifest: M
    files: Mapping[str, bytes]


def read_edge(folder: str | Path, *, public_key: str | Path | None = None) -> Bundle[EdgeManifest]:
    """The edge bundle in a folder.

    Args:
        folder: what `splitveil export` wrote as ``edge``.
        public_key: PEM file of an Ed25519 key; the bundle must then carry its signature.

    Raises:
        BundleError: it is missing, damaged, incomplete, of another version or kind, or not signed as asked.
    """
    return _read(Path(folder), EdgeManifest, public_key)


def read_server(folder: str | Path, *, public_key: str | Path | None = None) -> Bundle[ServerManifest]:
    """The server bundle in a folder; see `read_edge`."""
    return _read(Path(folder), ServerManifest, public_key)


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
    """Raises `BundleError` where a folder holds what is no bundle."""
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
        with manifest.open("rb") as file:
            content = json.loads(file.read(LARGEST_MANIFEST))
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("kind") in ("edge", "server") and "schema_version" in content


def file_facts(files: Mapping[str, bytes]) -> dict[str, File]:
    """Sizes and SHA-256 of files by name."""
    return {
        name: File(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()) for name, content in files.items()
    }


def _read(folder: Path, model: type[M], public_key: str | Path | None) -> Bundle[M]:
    text = _content(folder, MANIFEST, LARGEST_MANIFEST)
    if public_key is not None:
        check_signature(folder, text, Path(public_key))
    manifest = _manifest(folder, text, model)
    files: dict[str, bytes] = {}
    for name, facts in manifest.files.items():
        content = _content(folder, name, facts.bytes)
        if len(content) != facts.bytes or hashlib.sha256(content).hexdigest() != facts.sha256:
            raise BundleError(f"{folder / name} is not what its bundle says it is: it was changed; export again")
        if name.endswith(".onnx"):
            _check_graph(folder / name, content)
        files[name] = content
    return Bundle(manifest, files)


def _manifest(folder: Path, text: bytes, model: type[M]) -> M:
    kind = "edge" if model is EdgeManifest else "server"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder / MANIFEST} is no JSON ({error}); export again") from error
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


def _content(folder: Path, name: str, most: int) -> bytes:
    """The bytes of one file inside the folder, which are no more than is expected."""
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{path} leads out of its bundle; export again")
        if not path.is_file():
            what = "is no bundle" if name == MANIFEST else "is incomplete"
            raise BundleError(f"{folder} {what}: it has no file {name}; name what 'splitveil export' wrote")
        with path.open("rb") as file:
            # What a manifest claims is no reason to ask for memory that the file does not fill.
            content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise BundleError(f"{path} cannot be read ({error}); export again") from error
    if len(content) > most:
        raise BundleError(f"{path} is longer than the {most} bytes that it should have at most; export again")
    return content


def _check_graph(path: Path, content: bytes) -> None:
    """A graph must not name other files, which would escape the check; ours never do."""
    if _LOCATION.search(content):
        raise BundleError(f"{path} refers to data in another file, which a bundle must not; export again")

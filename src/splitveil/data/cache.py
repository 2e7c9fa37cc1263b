"""Decoded data sets, kept outside the repository and found again by the content of their files.

    (path, size, mtime) of every file ──► fingerprint ──► content key ──► data set
                                             a new fingerprint reads every byte once

Files that were only touched or moved get a new fingerprint but the old key, so they are not decoded again.
The folder may be deleted at any time.
"""

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from splitveil.data.dataset import Dataset, Part
from splitveil.data.source import Source
from splitveil.data.splitting import PART_NAMES
from splitveil.errors import RunError
from splitveil.files import cache_folder

# Raise it whenever a loader would give other data for the same files.
VERSION = 1

File = tuple[str, int, int]  # path relative to the data set's folder, bytes, mtime in ns


def cached(
    source: Source,
    folder: Path,
    files: Sequence[File],
    options: Mapping[str, Any],
    build: Callable[[], Dataset],
) -> Dataset:
    """What build() gives, from the cache where it has been built from the same bytes with the same options.

    A damaged cache file is built again. A cache folder that cannot be written costs a warning, no more.
    """
    recipe = json.dumps([VERSION, source.name, options], sort_keys=True)
    key = content_key(source, folder, files, recipe)
    place = cache_folder() / f"{source.name}-{key[:32]}.safetensors"
    data = read(place)
    if data is None:
        data = build()
        if_writable(lambda: write(place, data))
    return data


def list_files(folder: Path, suffixes: tuple[str, ...] = ()) -> list[File]:
    """All files below a folder, in the order of their paths, with size and time; hidden ones left out.

    Args:
        folder: Where to look.
        suffixes: Lower-case endings of the names wanted, such as ".jpg"; all files where none is given.
    """
    found: list[File] = []
    waiting = [(str(folder), "")]
    while waiting:
        path, prefix = waiting.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((entry.path, f"{prefix}{entry.name}/"))
                elif not suffixes or entry.name.lower().endswith(suffixes):
                    facts = entry.stat()
                    found.append((prefix + entry.name, facts.st_size, facts.st_mtime_ns))
    return sorted(found)


def read(place: Path) -> Dataset | None:
    """The data set in a cache file, or None where there is none or its bytes are not what was written."""
    if not place.is_file():
        return None
    try:
        with safe_open(place, framework="pt") as file:
            facts = json.loads(file.metadata()["splitveil"])
            # Copies, because a mapped file that somebody truncates later would end the process.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        data = _assemble(facts, tensors)
        return data if data.digest == facts["digest"] else None
    except (SafetensorError, OSError, LookupError, TypeError, ValueError):
        return None


def write(place: Path, data: Dataset) -> None:
    """Write a data set so that a reader sees all of it or nothing.

    Raises:
        OSError: if the folder cannot be written.
    """
    tensors = {f"{part}/{name}": tensor for part, name, tensor in _tensors(data)}
    facts = {
        "name": data.name,
        "classes": data.classes,
        "hidden_classes": data.hidden_classes,
        "skipped": data.skipped,
        "mirror": data.mirror,
        "digest": data.digest,
    }
    _replace(place, lambda path: save_file(tensors, path, metadata={"splitveil": json.dumps(facts)}))


def _tensors(data: Dataset) -> list[tuple[str, str, Tensor]]:
    return [
        (name, key, tensor.contiguous())
        for name, part in data.parts.items()
        for key, tensor in {"pixels": part.pixels, "y": part.y, **_prefixed(part.hidden)}.items()
    ]


def _prefixed(hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"hidden/{key}": values for key, values in hidden.items()}


def _assemble(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Dataset:
    hidden_classes = {key: tuple(names) for key, names in facts["hidden_classes"].items()}
    train, val, test = (
        Part(
            tensors[f"{part}/pixels"],
            tensors[f"{part}/y"],
            {key: tensors[f"{part}/hidden/{key}"] for key in hidden_classes},
        )
        for part in PART_NAMES
    )
    classes, skipped = tuple(facts["classes"]), tuple(facts["skipped"])
    return Dataset(facts["name"], train, val, test, classes, hidden_classes, skipped, facts["mirror"])


def content_key(source: Source, folder: Path, files: Sequence[File], recipe: str) -> str:
    """SHA-256 of the recipe and of every file's path and bytes; remembered by what the file system says."""
    seen = json.dumps([recipe, str(folder.resolve()), files])
    note = cache_folder() / f"{source.name}-{hashlib.sha256(seen.encode()).hexdigest()[:32]}.key"
    if remembered := _remembered(note):
        return remembered
    key = _hash_files(source, folder, files, recipe)
    if_writable(lambda: _replace(note, lambda path: path.write_text(key, encoding="ascii")))
    return key


def _remembered(note: Path) -> str | None:
    try:
        key = note.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return key if re.fullmatch("[0-9a-f]{64}", key) else None


def _hash_files(source: Source, folder: Path, files: Sequence[File], recipe: str) -> str:
    state = hashlib.sha256(recipe.encode())
    for done, (path, size, _) in enumerate(files):
        state.update(f"\0{path}\0{size}\0".encode())
        state.update((folder / path).read_bytes())
        source.report(done + 1, len(files), "reading")
    return state.hexdigest()


def _replace(place: Path, write_to: Callable[[Path], object]) -> None:
    """Let write_to() fill a new file beside `place`, then put it there in one step."""
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=".writing-")
    os.close(handle)
    try:
        write_to(Path(name))
        Path(name).replace(place)
    finally:
        Path(name).unlink(missing_ok=True)


def if_writable(write_it: Callable[[], None]) -> None:
    """Write to the cache; where that fails there is a warning, and no more."""
    try:
        write_it()
    except (OSError, SafetensorError, RunError) as error:
        warnings.warn(
            f"the cache folder {cache_folder()} cannot be written ({error}); set SPLITVEIL_CACHE",
            stacklevel=4,
        )

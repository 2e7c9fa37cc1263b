"""Decoded images, kept outside the repository and found again by the content of their files.

    path and bytes of every file, options, rule of decoding ──► key ──► tensors

Every byte is read each time: neither size nor time shows that a file is the same, and hashing takes a small part of
the time of decoding. The folder may be deleted at any time.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from splitveil.data.dataset import Dataset, Part
from splitveil.data.listing import DataWarning
from splitveil.data.source import Source
from splitveil.data.splitting import PART_NAMES
from splitveil.errors import RunError
from splitveil.files import cache_folder
from splitveil.picture import RULE, open_file
from splitveil.tensors import FACTS, read_tensors

# Raise it whenever a loader would give other data for the same files.
VERSION = 2

Packed = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and facts in JSON


class _Kept(Protocol):
    @property
    def digest(self) -> str: ...


T = TypeVar("T", bound=_Kept)


def cached(
    source: Source, folder: Path, files: Sequence[str], options: Mapping[str, Any], build: Callable[[], Dataset]
) -> Dataset:
    """A data set from the cache; see `kept`."""
    return kept(source, folder, files, options, build, _pack, _unpack)


def kept(
    source: Source,
    folder: Path,
    files: Sequence[str],
    options: Mapping[str, Any],
    build: Callable[[], T],
    pack: Callable[[T], Packed],
    unpack: Callable[[Packed], T],
) -> T:
    """What build() gives, from the cache where it has been built from the same bytes with the same options.

    A damaged cache file is built again. A cache folder that cannot be written costs a warning, no more. What was built
    while a file changed is not kept, since nobody knows of which bytes it is.

    Args:
        source: Named as the cache's file is to be; told about progress.
        folder: What the files are relative to.
        files: All that build() reads.
        options: What else the result depends on, in JSON.
        build: Reads and decodes.
        pack: Turns the result into tensors and facts, from which `unpack` makes it again.
        unpack: May raise whatever tensors or facts of another form bring about.
    """
    recipe = json.dumps([VERSION, RULE, source.name, options], sort_keys=True)
    key = content_key(source, folder, files, recipe)
    place = cache_folder() / f"{source.name}-{key[:32]}.safetensors"
    found = read(place, unpack)
    if found is None:
        found = build()
        if content_key(Source(source.name), folder, files, recipe) == key:
            tensors, facts = pack(found)
            if_writable(lambda: write(place, tensors, {**facts, "digest": found.digest}))
    return found


def content_key(source: Source, folder: Path, files: Sequence[str], recipe: str) -> str:
    """SHA-256 (64 hex digits) of the recipe and of every file's path and bytes."""
    state = hashlib.sha256(recipe.encode())
    with ThreadPoolExecutor() as pool:
        groups = (files[start : start + _TOGETHER] for start in range(0, len(files), _TOGETHER))
        digests = pool.map(lambda some: [_digest(folder / path) for path in some], groups)
        for done, (path, digest) in enumerate(zip(files, chain.from_iterable(digests), strict=True)):
            state.update(b"\0%b\0%b\0" % (os.fsencode(path), digest))
            source.report(done + 1, len(files), "reading")
    return state.hexdigest()


_TOGETHER = 64  # files for a thread at once, since handing over one takes as long as hashing it


def _digest(file: Path) -> bytes:
    try:
        with open_file(file) as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except (OSError, ValueError):  # decoding will say why
        return b"cannot be read"


def read(place: Path, unpack: Callable[[Packed], T]) -> T | None:
    """What is in a cache file, or None where there is none or its bytes are not what was written."""
    if not place.is_file():
        return None
    try:
        tensors, facts = read_tensors(place)
        # Copies, because a mapped file that somebody truncates later would end the process.
        found = unpack(({name: tensor.clone() for name, tensor in tensors.items()}, facts))
        return found if found.digest == facts["digest"] else None
    except (RunError, OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        return None


def write(place: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a cache file so that a reader sees all of it or nothing, and that no other user can read it.

    Raises:
        OSError, SafetensorError: if the folder cannot be written.
    """
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".writing-") as closed:  # open to its owner alone
        file = Path(closed) / place.name
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(plain, file, metadata={FACTS: json.dumps(facts)})
        file.chmod(0o600)
        file.replace(place)


def if_writable(write_it: Callable[[], None]) -> None:
    """Write to the cache; where that fails there is a warning, and no more."""
    try:
        write_it()
    except (OSError, SafetensorError, RunError) as error:
        warnings.warn(
            f"the cache folder {cache_folder()} cannot be written ({error}); set SPLITVEIL_CACHE",
            DataWarning,
            stacklevel=4,
        )


def _pack(data: Dataset) -> Packed:
    tensors = {
        f"{name}/{key}": tensor
        for name, part in data.parts.items()
        for key, tensor in {"pixels": part.pixels, "y": part.y, **_prefixed(part.hidden)}.items()
    }
    return tensors, {
        "name": data.name,
        "classes": data.classes,
        "hidden_classes": data.hidden_classes,
        "skipped": data.skipped,
        "mirror": data.mirror,
    }


def _prefixed(hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"hidden/{key}": values for key, values in hidden.items()}


def _unpack(packed: Packed) -> Dataset:
    tensors, facts = packed
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

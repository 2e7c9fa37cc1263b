"""celeba: faces with forty binary attributes, and who they show."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from splitveil.data.cache import cached
from splitveil.data.dataset import Dataset
from splitveil.data.duplicates import THRESHOLD
from splitveil.data.images import Picture, check_skipped, decode
from splitveil.data.listing import list_files
from splitveil.data.source import Source
from splitveil.errors import DataError
from splitveil.picture import Box

SIZE = (73, 60)
FOLDER, ATTRIBUTES, IDENTITIES = "img_align_celeba", "list_attr_celeba.txt", "identity_CelebA.txt"
HIDDEN = (
    "Male",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Mouth_Slightly_Open",
    "Wearing_Lipstick",
    "Attractive",
)
_WIDTH, _HEIGHT = 178, 218
_FACE = (29, 48, 29 + 120, 48 + 146)  # the face region of the published size


def load(source: Source, *, target: str = "Smiling", hidden: str | Sequence[str] | None = None) -> Dataset:
    """Face regions of celebrities, 3×73×60, split by person; near duplicates share a part too.

    Args:
        source: Where `img_align_celeba/` and the two lists are. The images on disk are what counts; list rows
            without an image are said in `skipped`.
        target: The attribute to predict, one of the forty.
        hidden: The secrets; the paper's six (Table 2) without the target where none are given.

    Raises:
        DataError: if a file is missing or damaged, an attribute is unknown or used twice, or more than 1 % of
            the images cannot be used.
    """
    names = _hidden_names(target, hidden)
    if len({target, *names}) <= len(names):
        raise DataError(f"target={target!r} and hidden={list(names)} name an attribute twice; name each once")
    folder = source.folder(
        FOLDER,
        ATTRIBUTES,
        IDENTITIES,
        home="get them from the CelebA project of Liu and others (aligned images)",
    )
    listing = list_files(folder / FOLDER, (".jpg", ".png"))
    images = [f"{FOLDER}/{path}" for path in listing.files]
    options = {"target": target, "hidden": names, "size": SIZE, "skipped": listing.skipped}
    build = partial(_build, source, folder, images, [target, *names], listing.skipped)
    return cached(source, folder, [*images, ATTRIBUTES, IDENTITIES], options, build)


def _hidden_names(target: str, hidden: str | Sequence[str] | None) -> tuple[str, ...]:
    if hidden is None:
        return tuple(name for name in HIDDEN if name != target)
    if not all(isinstance(name, str) for name in (target, *(hidden if isinstance(hidden, Sequence) else (hidden,)))):
        raise DataError(f"target={target!r} and hidden={hidden!r} must be names of attributes, such as Smiling")
    return (hidden,) if isinstance(hidden, str) else tuple(hidden)


def face_box(width: float, height: float) -> Box:
    """The face region, scaled from the published 178×218 to an image of another size, in pixels."""
    left, top, right, bottom = _FACE
    return left * width / _WIDTH, top * height / _HEIGHT, right * width / _WIDTH, bottom * height / _HEIGHT


def _build(source: Source, folder: Path, images: list[str], wanted: list[str], left_out: tuple[str, ...]) -> Dataset:
    attributes = read_attributes(folder / ATTRIBUTES, wanted)
    people = _read_identities(folder / IDENTITIES)
    listed = [path for path in images if Path(path).name in attributes and Path(path).name in people]
    decoded = decode(source, folder, [Picture(path, face_box) for path in listed], SIZE)
    unlisted = [f"{path}: not in both lists" for path in sorted(set(images) - set(listed))]
    skipped = [*left_out, *unlisted, *decoded.skipped]
    check_skipped(source, skipped, len(images) + len(left_out))
    names = [Path(listed[row]).name for row in decoded.rows]
    target, *hidden = np.array([attributes[name] for name in names]).T
    return Dataset.from_arrays(
        decoded.pixels,
        target,
        dict(zip(wanted[1:], hidden, strict=True)),
        classes=value_names(wanted[0]),
        hidden_classes={name: value_names(name) for name in wanted[1:]},
        name=source.name,
        groups=[people[name] for name in names],
        near_duplicates=THRESHOLD,
        skipped=[*skipped, *_without_image(attributes, len(listed))],
        mirror=True,
    )


def value_names(attribute: str) -> tuple[str, str]:
    """Names of an attribute's two values, 0 and 1."""
    return f"not {attribute}", attribute


def _without_image(attributes: dict[str, list[int]], images: int) -> list[str]:
    absent = len(attributes) - images
    return [f"{ATTRIBUTES}: {absent} rows have no image"] if absent else []


def read_attributes(path: Path, wanted: Sequence[str]) -> dict[str, list[int]]:
    """For each image the wanted attributes as 0 or 1, from a count, a line of names and rows of -1 and 1.

    Raises:
        DataError: if an attribute is unknown, or a row does not fit.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    names = lines[1].split() if len(lines) > 1 else []
    if unknown := [name for name in wanted if name not in names]:
        raise DataError(f"{path} has no attribute {unknown[0]!r}; choose among {', '.join(names)}")
    columns = [names.index(name) + 1 for name in wanted]
    return dict(_row(path, line.split(), columns, len(names) + 1) for line in lines[2:] if line)


def _row(path: Path, fields: list[str], columns: list[int], count: int) -> tuple[str, list[int]]:
    values = [fields[column] for column in columns] if len(fields) == count else []
    if not values or not set(values) <= {"-1", "1"}:
        raise DataError(f"{path} has a row that is not a file name and {count - 1} times -1 or 1: {fields[:2]}")
    return fields[0], [int(value == "1") for value in values]


def _read_identities(path: Path) -> dict[str, int]:
    """Who is on each image."""
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line]
    if wrong := [row for row in rows if len(row) != 2 or not row[1].isdecimal()]:
        raise DataError(f"{path} has a row that is not a file name and a number: {wrong[0]}")
    return {name: int(person) for name, person in rows}

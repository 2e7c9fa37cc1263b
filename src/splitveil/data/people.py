"""pins and facescrub: photographs of people, in folders named after them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from splitveil.data.cache import cached
from splitveil.data.dataset import Dataset
from splitveil.data.duplicates import THRESHOLD, same_person_groups, signatures
from splitveil.data.facescrub import ANNOTATIONS, pictures_of
from splitveil.data.images import check_skipped, decode
from splitveil.data.listing import list_files
from splitveil.data.source import Source
from splitveil.errors import DataError

SIZE = (50, 50)
GENDERS = ("male", "female")
GENDER_FOLDERS = ("actors", "actresses")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MIN_IMAGES = 10  # fewer can hardly be in every part while near duplicates stay together


def load(source: Source) -> Dataset:
    """Faces, 3×50×50, of people under `actors/<Name>/` (male) and `actresses/<Name>/` (female).

    Target gender, hidden `identity`. Every person is in every part, and near duplicates share a part. Where
    FaceScrub's annotation files lie in the folder, the pictures are the originals and are cropped by them;
    otherwise they are taken as they are. A person with fewer than 10 images is left out and said in `skipped`.

    Args:
        source: Where the two folders are.

    Raises:
        DataError: if the folders are missing, more than 1 % of the files cannot be used, or a person cannot be
            in every part.
    """
    folder = source.folder(*GENDER_FOLDERS, home=_HOMES.get(source.name, "one folder of images a person"))
    listings = {gender: list_files(folder / gender, SUFFIXES) for gender in GENDER_FOLDERS}
    images = [f"{gender}/{path}" for gender, listing in listings.items() for path in listing.files]
    left_out = [f"{gender}/{line}" for gender, listing in listings.items() for line in listing.skipped]
    files = [*images, *(name for name in ANNOTATIONS if (folder / name).exists())]
    options = {"size": SIZE, "skipped": left_out}
    return cached(source, folder, files, options, lambda: _build(source, folder, images, left_out))


_HOMES = {
    "pins": "get it by its name, Pins Face Recognition, and sort the people's folders by gender",
    "facescrub": "get the annotations from the FaceScrub project of Ng and Winkler, and the images they list",
}


def _build(source: Source, folder: Path, images: list[str], left_out: list[str]) -> Dataset:
    if misplaced := [path for path in images if path.count("/") != 2]:
        raise DataError(
            f"{misplaced[0]} in {folder} is not in a person's folder; move it to {GENDER_FOLDERS[0]}/<Name>/"
        )
    pictures, unlisted = pictures_of(source, folder, images)
    decoded = decode(source, folder, pictures, SIZE)
    skipped = [*left_out, *unlisted, *decoded.skipped]
    check_skipped(source, skipped, len(images) + len(left_out))
    people = [_person(pictures[row].file) for row in decoded.rows]
    rows, names, too_few = _frequent(people)
    data = _dataset(source, decoded.pixels[rows], [people[row] for row in rows], names, [*skipped, *too_few])
    _check_everywhere(data)
    return data


def _person(file: str) -> tuple[str, str]:
    """Gender folder and name."""
    gender, name, _ = file.split("/")
    return gender, name


def _frequent(people: Sequence[tuple[str, str]]) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Rows of people with enough images, those people's names, and a line for each of the others."""
    counts = Counter(people)
    names = sorted(name for (_, name), count in counts.items() if count >= MIN_IMAGES)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{twice[0]} is in both {' and '.join(GENDER_FOLDERS)}; keep each person in one of them")
    few = [
        f"{'/'.join(person)}: {count} images are too few to be in every part ({MIN_IMAGES} are needed)"
        for person, count in sorted(counts.items())
        if count < MIN_IMAGES
    ]
    rows = np.array([row for row, person in enumerate(people) if counts[person] >= MIN_IMAGES], np.int64)
    return rows, names, few


def _dataset(
    source: Source,
    pixels: NDArray[np.uint8],
    people: Sequence[tuple[str, str]],
    names: list[str],
    skipped: list[str],
) -> Dataset:
    number = {name: index for index, name in enumerate(names)}
    identity = np.array([number[name] for _, name in people], np.int64)
    return Dataset.from_arrays(
        pixels,
        np.array([GENDER_FOLDERS.index(gender) for gender, _ in people], np.int64),
        {"identity": identity},
        classes=GENDERS,
        hidden_classes={"identity": names},
        name=source.name,
        stratify="identity",
        groups=same_person_groups(signatures(torch.from_numpy(pixels)), identity),
        near_duplicates=THRESHOLD,
        skipped=skipped,
        mirror=True,
    )


def _check_everywhere(data: Dataset) -> None:
    for part_name, part in data.parts.items():
        present = set(part.hidden["identity"].tolist())
        absent = [name for label, name in enumerate(data.hidden_classes["identity"]) if label not in present]
        if absent:
            raise DataError(
                f"{absent[0]} cannot be in the {part_name} part of {data.name}, because too many images are copies "
                f"of each other; add images or remove the person's folder"
            )

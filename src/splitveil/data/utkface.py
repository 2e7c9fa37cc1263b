"""utkface: faces whose file names say age, gender and race."""

import re
from pathlib import Path

import numpy as np

from splitveil.data.cache import cached
from splitveil.data.dataset import Dataset
from splitveil.data.duplicates import THRESHOLD
from splitveil.data.images import Picture, check_skipped, decode
from splitveil.data.listing import Listing, list_files, shown
from splitveil.data.source import Source

SIZE = (50, 50)
GENDERS = ("male", "female")
RACES = ("White", "Black", "Asian", "Indian", "Others")
AGE_GROUPS = ("0-12", "13-19", "20-39", "40-59", "60+")
_AGE_BOUNDS = (13, 20, 40, 60)
_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d")
_HIDDEN_CLASSES = {"race": RACES, "age_group": AGE_GROUPS}


def load(source: Source) -> Dataset:
    """Aligned faces, 3×50×50; target gender, hidden `race` and `age_group`.

    Age groups in years: 0-12, 13-19, 20-39, 40-59, 60 and older. Near duplicates share a part. Files whose
    name lacks a field are skipped.

    Args:
        source: Where the folder of `[age]_[gender]_[race]_[date&time].jpg.chip.jpg` files is.

    Raises:
        DataError: if the folder is missing, or more than 1 % of its files cannot be used.
    """
    folder = source.folder(home="get the aligned and cropped faces from the UTKFace project of Zhang and others")
    listing = list_files(folder, (".jpg",))
    options = {"size": SIZE, "skipped": listing.skipped}
    return cached(source, folder, listing.files, options, lambda: _build(source, folder, listing))


def _build(source: Source, folder: Path, listing: Listing) -> Dataset:
    matches = {path: _NAME.match(Path(path).name) for path in listing.files}
    fields = {path: [int(group) for group in match.groups()] for path, match in matches.items() if match}
    decoded = decode(source, folder, [Picture(path) for path in fields], SIZE)
    malformed = [f"{shown(path)}: the name lacks age, gender or race" for path, match in matches.items() if not match]
    skipped = [*listing.skipped, *malformed, *decoded.skipped]
    check_skipped(source, skipped, len(listing.files) + len(listing.skipped))
    age, gender, race = np.array(list(fields.values()))[decoded.rows].T
    return Dataset.from_arrays(
        decoded.pixels,
        gender,
        {"race": race, "age_group": np.digitize(age, _AGE_BOUNDS)},
        classes=GENDERS,
        hidden_classes=_HIDDEN_CLASSES,
        name=source.name,
        near_duplicates=THRESHOLD,
        skipped=skipped,
        mirror=True,
    )

"""Data sets: images, target labels, named hidden attributes, fixed splits.

To add one: write a module with `load(source, **options) -> Dataset`, and name it in `_LOADERS`.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from splitveil.data import celeba, digit_pairs, folder, people, qmnist, utkface
from splitveil.data.dataset import Dataset, Part
from splitveil.data.listing import DataWarning, left_out
from splitveil.data.source import Progress, Source
from splitveil.data.unlabelled import Unlabelled, load_unlabelled
from splitveil.errors import DataError

__all__ = [
    "NAMES",
    "DataWarning",
    "Dataset",
    "Part",
    "Progress",
    "Unlabelled",
    "left_out",
    "load_data",
    "load_unlabelled",
    "photo_crop",
]

_LOADERS: dict[str, Callable[..., Dataset]] = {
    "digit-pairs": digit_pairs.load,
    "qmnist": qmnist.load,
    "utkface": utkface.load,
    "celeba": celeba.load,
    "pins": people.load,
    "facescrub": people.load,
}
NAMES = tuple(_LOADERS)


def load_data(
    name: str, *, root: str | Path | None = None, progress: Progress | None = None, **options: Any
) -> Dataset:
    """A data set by name, with the splits fixed by its content.

    Files are decoded once and kept in a cache folder (SPLITVEIL_CACHE, else the user's cache folder).

    Args:
        name: One of NAMES, or "folder:PATH" for a user's own images in class folders.
        root: The folder that holds the data sets' folders; the variable SPLITVEIL_DATA where it is not given.
        progress: Called as progress(done, total, what) while files are read for the first time.
        options: What this data set's loader takes: `writers` (qmnist), `target` and `hidden` (celeba), `size`
            and `hidden_csv` (folder:PATH).

    Raises:
        DataError: if the name or an option is unknown, or the files are missing or damaged.
    """
    load = folder.load if name.startswith(folder.PREFIX) else _LOADERS.get(name)
    if load is None:
        raise DataError(f"there is no data set {name!r}; choose {', '.join(NAMES)} or folder:PATH")
    _check_options(name, load, options)
    return load(Source(name, Path(root) if root else None, progress), **options)


def photo_crop(name: str) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of the part of a photo that a data set's images show, as shares of width and height.

    None: the whole photo, or boxes that differ by photo (facescrub), which an edge device has to find by itself.
    """
    return celeba.face_box(1.0, 1.0) if name == "celeba" else None


def _check_options(name: str, load: Callable[..., Dataset], options: dict[str, Any]) -> None:
    known = list(inspect.signature(load).parameters)[1:]
    if unknown := [option for option in options if option not in known]:
        taken = f"its options are {', '.join(known)}" if known else "it takes none"
        raise DataError(f"{name} has no option {unknown[0]!r}; {taken}")

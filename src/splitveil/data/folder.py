"""folder:PATH: a user's own images in class folders, with hidden attributes from a CSV file or none."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from splitveil.data.cache import cached
from splitveil.data.dataset import Dataset
from splitveil.data.duplicates import THRESHOLD
from splitveil.data.hidden_csv import Row, key_of, read_hidden
from splitveil.data.images import Picture, Size, check_skipped, decode
from splitveil.data.listing import DataWarning, Listing, left_out, list_images, shown
from splitveil.data.source import Source
from splitveil.errors import DataError

PREFIX = "folder:"


def load(source: Source, *, size: Size = (64, 64), hidden_csv: str | Path | None = None) -> Dataset:
    """Images under `PATH/<class>/`, resized to 3×H×W; target the class, in the order of the folders' names.

    Near duplicates share a part. Each part gets its share of every class. A file is an image by its content, whatever
    its name.

    Args:
        source: Named "folder:PATH".
        size: (H, W) in pixels.
        hidden_csv: A CSV file, see `read_hidden`, whose paths are relative to PATH; None: no hidden attributes.

    Raises:
        DataError: if there are not two class folders with images, an image has no row in the CSV file, or more
            than 1 % of the images cannot be read.

    Warns:
        DataWarning: something was left out; all of it stands in `skipped`.
    """
    folder = Path(source.name.removeprefix(PREFIX)).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {shown(folder)}; name one that holds a folder of images for each class")
    size = _checked(size)
    table = read_hidden(hidden_csv) if hidden_csv is not None else {}
    listing = list_images(folder, table=Path(hidden_csv).expanduser() if hidden_csv is not None else None)
    named = Source("folder", progress=source.progress)
    options = {
        "size": size, "name": source.name, "hidden": sorted(table.items()),
        "left out": [listing.skipped, listing.ignored],
    }  # fmt: skip
    data = cached(named, folder, listing.files, options, lambda: _build(source, folder, listing, size, table))
    if data.skipped:
        warnings.warn(f"{shown(folder)}: {left_out(data.skipped)}", DataWarning, stacklevel=3)
    return data


def _checked(size: Size) -> Size:
    numbers = tuple(size) if isinstance(size, Sequence) else ()
    if len(numbers) != 2 or not all(type(number) is int and number > 0 for number in numbers):
        raise DataError(f"size={size!r} must be two positive whole numbers (height, width)")
    return numbers[0], numbers[1]


def _build(source: Source, folder: Path, listing: Listing, size: Size, table: dict[str, Row]) -> Dataset:
    paths = listing.files
    if misplaced := [path for path in paths if path.count("/") != 1]:
        raise DataError(f"{shown(misplaced[0])} in {shown(folder)} is not directly in a class folder; move it into one")
    classes = sorted({path.split("/")[0] for path in paths})
    if unclear := [name for name in classes if shown(name) != name]:
        raise DataError(f"the class folder {shown(unclear[0])} has a name that cannot be printed; rename it")
    if len(classes) < 2:
        raise DataError(
            f"{shown(folder)} has images for {len(classes)} classes; put them into a folder for each of two or more"
        )
    if table and (absent := [path for path in paths if key_of(path) not in table]):
        raise DataError(f"{shown(absent[0])} has no row in the CSV file of hidden attributes; every image needs one")
    decoded = decode(source, folder, [Picture(path) for path in paths], size)
    skipped = [*listing.skipped, *decoded.skipped]
    check_skipped(source, skipped, len(paths) + len(listing.skipped))
    kept = [paths[row] for row in decoded.rows]
    hidden, hidden_classes = _encode([table[key_of(path)] for path in kept] if table else [])
    return Dataset.from_arrays(
        decoded.pixels,
        [classes.index(path.split("/")[0]) for path in kept],
        hidden,
        classes=classes,
        hidden_classes=hidden_classes,
        name=shown(source.name),
        near_duplicates=THRESHOLD,
        skipped=[*skipped, *listing.ignored, *_without_image(table, paths)],
    )


def _encode(rows: Sequence[dict[str, str]]) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Strings to numbers, for each attribute in the order of its sorted values."""
    names = {key: sorted({row[key] for row in rows}) for key in (rows[0] if rows else ())}
    return {key: [values.index(row[key]) for row in rows] for key, values in names.items()}, names


def _without_image(table: dict[str, Row], paths: Sequence[str]) -> list[str]:
    """A line for each row of the CSV file that names no image: perhaps one is missing."""
    return [f"{name}: a row without an image" for name in sorted(table.keys() - {key_of(path) for path in paths})]

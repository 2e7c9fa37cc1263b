"""folder:PATH: a user's own images in class folders, with hidden attributes from a CSV file or none."""

import csv
from collections.abc import Sequence
from pathlib import Path

from splitveil.data.cache import File, cached, list_files
from splitveil.data.dataset import Dataset
from splitveil.data.duplicates import THRESHOLD
from splitveil.data.images import SUFFIXES, Picture, Size, check_skipped, decode
from splitveil.data.source import Source
from splitveil.errors import DataError

PREFIX = "folder:"


def load(source: Source, *, size: Size = (64, 64), hidden_csv: str | Path | None = None) -> Dataset:
    """Images under `PATH/<class>/`, resized to 3×H×W; target the class, in the order of the folders' names.

    Near duplicates share a part. Each part gets its share of every class.

    Args:
        source: Named "folder:PATH".
        size: (H, W) in pixels.
        hidden_csv: A CSV file with a column `file` (the path relative to PATH, with /) and one column for each
            hidden attribute, in any strings; None: no hidden attributes.

    Raises:
        DataError: if there are not two class folders with images, an image has no row in the CSV file, or more
            than 1 % of the images cannot be read.
    """
    folder = Path(source.name.removeprefix(PREFIX)).expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name one that holds a folder of images for each class")
    size = _checked(size)
    table = read_hidden(Path(hidden_csv).expanduser()) if hidden_csv is not None else {}
    files = list_files(folder, SUFFIXES)
    named = Source("folder", progress=source.progress)
    options = {"size": size, "name": source.name, "hidden": sorted(table.items())}
    return cached(named, folder, files, options, lambda: _build(source, folder, files, size, table))


def _checked(size: Size) -> Size:
    numbers = tuple(size) if isinstance(size, Sequence) else ()
    if len(numbers) != 2 or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise DataError(f"size={size!r} must be two positive whole numbers (height, width)")
    return numbers[0], numbers[1]


def _build(source: Source, folder: Path, files: list[File], size: Size, table: dict[str, dict[str, str]]) -> Dataset:
    paths = [path for path, _, _ in files]
    if misplaced := [path for path in paths if path.count("/") != 1]:
        raise DataError(f"{misplaced[0]} in {folder} is not directly in a class folder; move it into one")
    classes = sorted({path.split("/")[0] for path in paths})
    if len(classes) < 2:
        raise DataError(
            f"{folder} has images for {len(classes)} classes; put them into a folder for each of two or more"
        )
    if table and (absent := [path for path in paths if path not in table]):
        raise DataError(f"{absent[0]} has no row in the CSV file of hidden attributes; every image needs one")
    decoded = decode(source, folder, [Picture(path) for path in paths], size)
    check_skipped(source, decoded.skipped, len(paths))
    kept = [paths[row] for row in decoded.rows]
    hidden, hidden_classes = _encode([table[path] for path in kept] if table else [])
    return Dataset.from_arrays(
        decoded.pixels,
        [classes.index(path.split("/")[0]) for path in kept],
        hidden,
        classes=classes,
        hidden_classes=hidden_classes,
        name=source.name,
        near_duplicates=THRESHOLD,
        skipped=decoded.skipped,
    )


def _encode(rows: Sequence[dict[str, str]]) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Strings to numbers, for each attribute in the order of its sorted values."""
    names = {key: sorted({row[key] for row in rows}) for key in (rows[0] if rows else ())}
    return {key: [values.index(row[key]) for row in rows] for key, values in names.items()}, names


def read_hidden(path: Path) -> dict[str, dict[str, str]]:
    """Hidden attributes of each file, by its relative path.

    Raises:
        DataError: if there is no such file, no column `file`, no other column, a file has two rows or a value
            is missing.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"hidden_csv={path} cannot be read ({error})") from error
    if "file" not in columns or len(columns) < 2 or len(set(columns)) < len(columns):
        raise DataError(
            f"{path} needs a column file and one for each hidden attribute in its first line, not {columns}"
        )
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        _add_row(table, row, path)
    return table


def _add_row(table: dict[str, dict[str, str]], row: dict[str, str], path: Path) -> None:
    name = row.pop("file")
    if name in table:
        raise DataError(f"{path} has two rows for {name}; keep one")
    if None in row or not all(row.values()):
        raise DataError(f"{path} has an incomplete row for {name}; give every hidden attribute a value")
    table[name] = row

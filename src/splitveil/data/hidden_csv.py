"""Hidden attributes from a CSV file, as spreadsheets and programs write them."""

import csv
import io
import re
import unicodedata
from collections import defaultdict
from decimal import Decimal, InvalidOperation
from pathlib import Path

from splitveil.data.listing import shown
from splitveil.errors import DataError
from splitveil.picture import open_file

Row = dict[str, str]  # attribute to value

_DELIMITERS = ",;\t"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_MISSING = ("nan", "n/a", "#n/a", "<na>", "nat")
"""What programs write where there is no value, in lower case. None and NA may be values, so they are taken as such."""


def read_hidden(path: str | Path) -> dict[str, Row]:
    """Hidden attributes of each file, by its relative path.

    White space around names and values is dropped. Numbers that are equal are one value, however they are written
    (1 and 1.0); it is named as it is written shortest.

    Args:
        path: A file in UTF-8 with a column `file` (a path relative to the images' folder) and one for each attribute,
            separated by commas, semicolons or tabs.

    Raises:
        DataError: if there is no such file, no column `file`, no other column, a file has two rows, a value is
            missing, or two values differ in case alone.
    """
    if not isinstance(path, str | Path):
        raise DataError(f"hidden_csv={path!r} must be the name of a CSV file")
    place = Path(path).expanduser()
    columns, rows = _read(place)
    if "file" not in columns or len(columns) < 2 or len(set(columns)) < len(columns) or "" in columns:
        raise DataError(
            f"{shown(place)} needs a column file and one for each hidden attribute in its first line, each with a name "
            f"of its own, not {columns}"
        )
    table: dict[str, Row] = {}
    for cells in rows:
        _add(table, cells, columns, shown(place))
    for name in columns:
        if name != "file":
            _unify(table, name, shown(place))
    return table


def key_of(path: str) -> str:
    """A path as the table has it: with / between folders, and accents composed, as not all systems write them."""
    return unicodedata.normalize("NFC", path.replace("\\", "/").removeprefix("./"))


def _read(place: Path) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and the rows that are not empty; everything stripped of white space."""
    try:
        with open_file(place) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"hidden_csv={shown(place)} is not in UTF-8 ({error.reason}); save it as CSV UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"hidden_csv={shown(place)} cannot be read ({error}); name a CSV file") from error
    first = re.split("[\r\n]", text.lstrip(), maxsplit=1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        rows = _rows(text, delimiter)
    except csv.Error as error:
        raise DataError(f"hidden_csv={shown(place)} cannot be read as CSV ({error}); repair it") from error
    return (rows[0], rows[1:]) if rows else ([], [])


def _rows(text: str, delimiter: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    stripped = ([unicodedata.normalize("NFC", cell.strip()) for cell in row] for row in reader)
    return [row for row in stripped if any(row)]


def _add(table: dict[str, Row], cells: list[str], columns: list[str], place: str) -> None:
    row = dict(zip(columns, cells, strict=False))
    name = key_of(row.pop("file", ""))
    if not name:
        raise DataError(f"{place} has a row without a file: {cells}; name its image")
    if name in table:
        raise DataError(f"{place} has two rows for {name}; keep one")
    empty = [key for key in columns if key != "file" and row.get(key, "").lower() in ("", *_MISSING)]
    if empty or len(cells) > len(columns):
        what = f"no value of {empty[0]}" if empty else f"{len(cells)} cells for {len(columns)} columns"
        raise DataError(f"{place} has an incomplete row for {name} ({what}); give every hidden attribute one value")
    table[name] = row


def _unify(table: dict[str, Row], column: str, place: str) -> None:
    """Give equal numbers of a column one spelling; raises `DataError` where only the case of letters differs."""
    spellings: dict[object, set[str]] = defaultdict(set)
    for row in table.values():
        spellings[_meaning(row[column])].add(row[column])
    by_case: dict[str, str] = {}
    for value in sorted(min(each, key=lambda text: (len(text), text)) for each in spellings.values()):
        other = by_case.setdefault(value.casefold(), value)
        if other != value:
            raise DataError(f"{place} has the values {other!r} and {value!r} of {column}; write them in one way")
    names = {value: min(each, key=lambda text: (len(text), text)) for value, each in spellings.items()}
    for row in table.values():
        row[column] = names[_meaning(row[column])]


def _meaning(value: str) -> object:
    """What a spelling stands for: a number, exactly, or the text itself."""
    if not _NUMBER.fullmatch(value):
        return value
    try:
        return Decimal(value)
    except InvalidOperation:
        return value

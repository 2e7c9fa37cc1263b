"""Cells and rows: a frozen config, and the file with what was computed from it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from splitveil.errors import ExperimentError, RunError
from splitveil.files import is_there, read_json, write_json
from splitveil.runs import versions

Report = Callable[[float, str], None]


class Cell(Protocol):
    """The config of one cell: a frozen dataclass of JSON values, and a readable label for the name of its file."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def label(self) -> str:
        """Words joined by hyphens."""


@dataclass(frozen=True)
class Place:
    """Where a cell is computed; its numbers must not depend on it but for rounding.

    Attributes:
        runs: folder in which trained models are kept.
        data_root: folder that holds the data sets.
        device: of training, answers and attacks.
    """

    runs: Path
    data_root: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Result:
    """What was computed from a cell.

    Attributes:
        data: digest of the data set.
        numbers: JSON values; estimates as value, low, high.
        seconds: what took how long.
    """

    data: str
    numbers: dict[str, Any]
    seconds: dict[str, Any]


Compute = Callable[[Any, Place, Report], Result]


class Row(BaseModel):
    """What the file of a row holds: the config, the result, and what it depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    experiment: str
    config: dict[str, Any]
    data: str
    versions: dict[str, str]
    device: str
    numbers: dict[str, Any]
    seconds: dict[str, Any]


def config_digest(config: dict[str, Any]) -> str:
    """Eight hex digits that tell configs apart."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def slug(cell: Cell) -> str:
    """The name of the cell's row, readable and unique: its label and its config's digest."""
    return f"{cell.label}-{config_digest(asdict(cell))}"


def row_path(folder: Path, cell: Cell) -> Path:
    """The file of the cell's row."""
    return folder / f"{slug(cell)}.json"


def compute_row(experiment: str, compute: Compute, cell: Cell, place: Place, report: Report) -> Row:
    """The cell's row, computed."""
    result = compute(cell, place, report)
    return Row(
        experiment=experiment, config=asdict(cell), data=result.data, versions=versions(), device=place.device,
        numbers=result.numbers, seconds=result.seconds,
    )  # fmt: skip


def write_row(path: Path, row: Row) -> None:
    """Write a row's file, atomically.

    Raises:
        ExperimentError: there is a file already; a row is never written over.
        RunError: the folder cannot be written, or the disk is full.
    """
    if is_there(path):
        raise ExperimentError(f"{path} has appeared while its cell was computed; it is left alone: look what wrote it")
    write_json(path, row.model_dump(mode="json"))


def read_row(path: Path, experiment: str) -> Row:
    """A row's file.

    Raises:
        ExperimentError: the file is damaged, or is no row of this experiment.
    """
    try:
        row = Row.model_validate(read_json(path))
    except (RunError, ValidationError) as error:
        raise ExperimentError(f"{path} is no row of this version or is damaged; move it away to compute it") from error
    if row.experiment != experiment:
        raise ExperimentError(f"{path} is a row of the experiment {row.experiment!r}, not {experiment!r}; move it away")
    if not _ordered(row.numbers):
        raise ExperimentError(f"{path} holds an interval without its value, so it is damaged; move it away")
    if not path.stem.endswith(f"-{config_digest(row.config)}"):
        raise ExperimentError(f"{path} does not hold the config that its name stands for; move it away")
    return row


def _ordered(numbers: Any) -> bool:
    """Whether every estimate in a row lies within its interval."""
    if isinstance(numbers, list):
        return all(map(_ordered, numbers))
    if not isinstance(numbers, dict):
        return True
    if numbers.keys() == {"value", "low", "high"}:
        return bool(numbers["low"] <= numbers["value"] <= numbers["high"])
    return all(map(_ordered, numbers.values()))


def read_rows(folder: Path, experiment: str) -> tuple[dict[str, Row], list[str]]:
    """All rows in a folder by the names of their files without ".json", and a sentence on each file that is none."""
    rows, complaints = {}, []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith("."):  # what an interrupted write may leave behind
            continue
        try:
            rows[path.stem] = read_row(path, experiment)
        except ExperimentError as error:
            complaints.append(str(error))
    return rows, complaints


def chosen_rows(rows: dict[str, Row], cells: Sequence[Cell]) -> list[Row]:
    """The rows of these cells that are there, in the cells' order."""
    return [rows[slug(cell)] for cell in cells if slug(cell) in rows]

"""Running an experiment: compute the rows that are missing, then make table and plot from rows alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from splitveil.data import Progress
from splitveil.errors import ExperimentError
from splitveil.experiments import ablation, weights
from splitveil.experiments.cells import Cell, Compute, Place, Row, chosen_rows, read_rows, row_path
from splitveil.experiments.plots import ablation_plot
from splitveil.experiments.sweep import Failure, sweep
from splitveil.experiments.tables import ablation_table
from splitveil.experiments.training import Settings
from splitveil.figures import write_figure
from splitveil.files import is_there, write_text


@dataclass(frozen=True)
class Experiment:
    """A list of cells, what computes one, and what shows the rows.

    Attributes:
        summary: one line for people.
        cells: from settings, the most important first.
        compute: a pure function of the cell.
        table: Markdown from rows.
        plot: a figure from rows.
    """

    summary: str
    cells: Callable[[Settings], Sequence[Cell]]
    compute: Compute
    table: Callable[[Sequence[Row]], str]
    plot: Callable[[Sequence[Row]], Figure] | None = None


EXPERIMENTS = {
    "ablation": Experiment(
        "what each ingredient of the paper's recipe buys: accuracy at cuts 2 to 6, the attack at cut 4",
        ablation.cells, ablation.compute, ablation_table, ablation_plot,
    ),
    "weights": Experiment(
        "the search for the ingredients' weights, on validation data alone",
        weights.cells, weights.compute, weights.table,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Reproduction:
    """What `reproduce` did.

    Attributes:
        rows: of the asked settings, data sets computed earlier included.
        wanted: cells that were asked for.
        there: how many of them have a row now.
        failures: cells without a row.
        notes: sentences about files that are no rows.
        table: Markdown, empty without rows.
        files: what was written.
    """

    rows: list[Row]
    wanted: int
    there: int
    failures: list[Failure]
    notes: list[str]
    table: str
    files: list[Path]


def reproduce(
    name: str,
    settings: Settings,
    out: Path,
    place: Place,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Compute what is missing in ``out/rows``, then write ``out/table.md`` and ``out/plot.svg`` from the rows.

    Args:
        name: of the experiment.
        settings: which version of it.
        out: the folder of the results.
        place: where cells are computed.
        jobs: processes at once; the number of cores where not given.
        progress: called as (done, in all, text).

    Raises:
        ExperimentError: there is no such experiment, or it has no such data set.
        RunError: a folder cannot be written.
    """
    experiment = find(name)
    cells, folder = experiment.cells(settings), out / "rows"
    failures = sweep(name, experiment.compute, cells, folder, place, jobs=jobs, progress=progress)
    found, notes = read_rows(folder, name)
    there = chosen_rows(found, cells)
    failed = {failure.cell for failure in failures}
    for cell in cells:
        path = row_path(folder, cell)
        if path.stem not in found and path.stem not in failed and is_there(path):
            failures.append(Failure(path.stem, "its file is no row, see above", True))
    # What was computed earlier with the same settings is shown too, so that a restricted call hides nothing.
    everything = {row_path(folder, cell): cell for cell in (*experiment.cells(replace(settings, data=())), *cells)}
    rows = chosen_rows(found, list(everything.values()))
    table = experiment.table(rows) if rows else ""
    return Reproduction(rows, len(cells), len(there), failures, notes, table, _write(experiment, out, rows, table))


def find(name: str) -> Experiment:
    """The experiment of this name; raises `ExperimentError` where there is none."""
    if name not in EXPERIMENTS:
        raise ExperimentError(f"there is no experiment {name!r}; choose {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def _write(experiment: Experiment, out: Path, rows: list[Any], table: str) -> list[Path]:
    files = []
    if rows:
        write_text(out / "table.md", table)
        files.append(out / "table.md")
    if rows and experiment.plot:
        write_figure(out / "plot.svg", experiment.plot(rows))
        files.append(out / "plot.svg")
    return files

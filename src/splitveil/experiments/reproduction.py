"""Running an experiment: compute the rows that are missing, then make table, plot and page from rows alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from splitveil.data import Progress
from splitveil.errors import ExperimentError
from splitveil.experiments import ablation, costs, excess, grids, pictures, points, signal, tradeoffs, tuning, weights
from splitveil.experiments.cells import Cell, Compute, Place, Row, chosen_rows, read_rows, row_path
from splitveil.experiments.plots import ablation_plot
from splitveil.experiments.sweep import Failure, Sweep, sweep
from splitveil.experiments.tables import ablation_table
from splitveil.experiments.training import Settings
from splitveil.figures import write_figure
from splitveil.files import check_writable, is_there, write_text
from splitveil.report import results_page


@dataclass(frozen=True)
class Experiment:
    """A list of cells, what computes one, and what shows the rows.

    Attributes:
        summary: one line for people.
        cells: from settings, the most important first.
        compute: a pure function of the cell.
        table: Markdown from rows.
        plot: a figure from rows.
        rows: the folder of the rows, which experiments of the same kind of cell share; its own name where empty.
        paper: whether it is a figure or statement of the paper, and so belongs to "all".
        more: further figures from rows, by the names of their files without ".svg".
    """

    summary: str
    cells: Callable[[Settings], Sequence[Cell]]
    compute: Compute
    table: Callable[[Sequence[Row]], str]
    plot: Callable[[Sequence[Row]], Figure] | None = None
    rows: str = ""
    paper: bool = True
    more: Mapping[str, Callable[[Sequence[Row]], Figure]] = field(default_factory=dict)


EXPERIMENTS = {
    "fig2": Experiment(
        "figure 2: cumulative preserved signal content per layer",
        signal.cells, signal.compute, signal.table, signal.plot,
    ),
    "cost": Experiment(
        "section 4.3: bytes and edge compute, counted and timed",
        costs.cells, costs.compute, costs.table, costs.plot,
    ),
    "fig4": Experiment(
        "figure 4: target and attack error against m' at cut 4",
        grids.tradeoff, points.compute, tradeoffs.kept_table, tradeoffs.kept_plot, "points",
    ),
    "fig5": Experiment(
        "figure 5: ours against pruning at cut 4",
        grids.pruning, points.compute, tradeoffs.pruning_table, tradeoffs.pruning_plot, "points",
    ),
    "fig6": Experiment(
        "figure 6: ours against adversarial training at cut 4",
        grids.adversarial, points.compute, tradeoffs.adversarial_table, tradeoffs.adversarial_plot, "points",
    ),
    "fig7": Experiment(
        "figure 7: CelebA's six hidden attributes, m' = 1",
        grids.attributes, points.compute, tradeoffs.attributes_table, tradeoffs.attributes_plot, "points",
    ),
    "fig3": Experiment(
        "figure 3: attack against the cut: none, distortion-free, at most 1 point drop",
        grids.cuts, points.compute, tradeoffs.cuts_table, tradeoffs.cuts_plot, "points",
    ),
    "baselines": Experiment(
        "every baseline at its whole tuning grid, beside ours, at cut 4",
        grids.baselines, points.compute, tradeoffs.frontier_table, tradeoffs.frontier_plot, "points",
    ),
    "frontier": Experiment(
        "our obfuscators and every baseline at every cut: target error against excess leakage, and the goal",
        grids.frontier, points.compute, excess.table, excess.plot, "points", paper=False,
        more={"cuts": excess.cuts_plot},
    ),
    "reconstruction": Experiment(
        "images that a trained decoder recovers from the messages at cut 4",
        pictures.cells, pictures.compute, pictures.table, pictures.plot,
    ),
    "ablation": Experiment(
        "what each ingredient of the paper's recipe buys: accuracy at cuts 2 to 6, the attack at cut 4",
        ablation.cells, ablation.compute, ablation_table, ablation_plot, paper=False,
    ),
    "weights": Experiment(
        "the search for the ingredients' weights, on validation data alone",
        weights.cells, weights.compute, weights.table, paper=False,
    ),
    "tuning": Experiment(
        "what each choice in the tuning of distilled and codebook buys, on validation data alone",
        tuning.cells, tuning.compute, tuning.table, tuning.plot, paper=False,
    ),
}  # fmt: skip
PAPER = tuple(name for name, experiment in EXPERIMENTS.items() if experiment.paper)


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
    sweeper: Sweep | None = None,
) -> Reproduction:
    """Compute what is missing, then write ``out/NAME/table.md``, ``plot.svg`` and ``page.html`` from the rows.

    Args:
        name: of the experiment.
        settings: which version of it.
        out: the folder of all results; rows lie in ``out/ROWS/rows``, see `Experiment`.
        place: where cells are computed.
        jobs: cells at once; the number of cores where not given.
        progress: called as (done, in all, text).
        sweeper: what computes the cells; local processes where not given.

    Raises:
        ExperimentError: there is no such experiment, it has no such data set, or its rows are of different data.
        RunError: a folder cannot be written.
    """
    experiment = find(name)
    kind = experiment.rows or name
    cells, folder = experiment.cells(settings), out / kind / "rows"
    for place_to_write in (folder, out / name):
        check_writable(place_to_write)
    failures = (sweeper or sweep)(kind, experiment.compute, cells, folder, place, jobs=jobs, progress=progress)
    found, notes = read_rows(folder, kind)
    there = chosen_rows(found, cells)
    failed = {failure.cell for failure in failures}
    for cell in cells:
        path = row_path(folder, cell)
        if path.stem not in found and path.stem not in failed and is_there(path):
            failures.append(Failure(path.stem, "its file is no row, see above", True))
    # What was computed earlier with the same settings is shown too, so that a restricted call hides nothing.
    everything = {row_path(folder, cell): cell for cell in (*experiment.cells(replace(settings, data=())), *cells)}
    rows = chosen_rows(found, list(everything.values()))
    _check_same_data(rows, folder)
    table = experiment.table(rows) if rows else ""
    files = _write(name, out / name, rows, table, place.runs / "pictures")
    return Reproduction(rows, len(cells), len(there), failures, notes, table, files)


def overlooked(name: str, settings: Settings, out: Path) -> str | None:
    """A sentence where cells that are missing have rows of the other precision, which would not be shown."""
    experiment = find(name)
    other = "float32" if settings.precision == "bfloat16" else "bfloat16"
    folder = out / (experiment.rows or name) / "rows"
    pairs = zip(experiment.cells(settings), experiment.cells(replace(settings, precision=other)), strict=True)
    count = sum(not is_there(row_path(folder, cell)) and is_there(row_path(folder, twin)) for cell, twin in pairs)
    if not count:
        return None
    return f"{count} cells of {name} have rows of {other} training in {folder}; --precision {other} takes those"


def _check_same_data(rows: Sequence[Row], folder: Path) -> None:
    """Raises `ExperimentError` where rows of one data set are of different images or labels."""
    known: dict[str, str] = {}
    for row in rows:
        name = row.config["data"]
        if known.setdefault(name, row.data) != row.data:
            raise ExperimentError(
                f"{folder} holds rows of two data sets named {name!r} (digests {known[name][:12]}… and "
                f"{row.data[:12]}…), which do not compare; move the older ones away"
            )


def find(name: str) -> Experiment:
    """The experiment of this name; raises `ExperimentError` where there is none."""
    if name not in EXPERIMENTS:
        raise ExperimentError(f"there is no experiment {name!r}; choose {', '.join(EXPERIMENTS)} or all")
    return EXPERIMENTS[name]


def rows_of(name: str, settings: Settings, out: Path) -> list[Row]:
    """The rows of an experiment that are there; nothing is computed."""
    experiment = find(name)
    kind = experiment.rows or name
    return chosen_rows(read_rows(out / kind / "rows", kind)[0], experiment.cells(settings))


def show(name: str, settings: Settings, out: Path, runs: Path) -> list[Path]:
    """Make table, plot and page of an experiment from the rows that are there; nothing is computed.

    Args:
        name: of the experiment.
        settings: which version of it.
        out: the folder of all results.
        runs: where trained models, and pictures, are kept.

    Returns:
        What was written; nothing without rows.
    """
    rows = rows_of(name, settings, out)
    return _write(name, out / name, rows, find(name).table(rows) if rows else "", runs / "pictures")


def _write(name: str, out: Path, rows: Sequence[Row], table: str, pictures: Path) -> list[Path]:
    if not rows:
        return []
    experiment = EXPERIMENTS[name]
    files = [out / "table.md"]
    write_text(files[0], table)
    figure = experiment.plot(rows) if experiment.plot else None
    if figure:
        files.append(out / "plot.svg")
        write_figure(files[-1], figure)
    for other, draw in experiment.more.items():
        files.append(out / f"{other}.svg")
        write_figure(files[-1], draw(rows))
    files.append(out / "page.html")
    shown = [pictures / row.numbers["picture"] for row in rows if "picture" in row.numbers]
    there = [path.read_bytes() for path in shown if is_there(path)]
    write_text(files[-1], results_page(f"{name}: {experiment.summary}", table, figure, there, _facts(rows)))
    return files


def _facts(rows: Sequence[Row]) -> dict[str, Any]:
    """What the numbers of a page depend on."""
    return {
        "rows": len(rows), "data": {row.config["data"]: row.data for row in rows},
        "versions": [dict(each) for each in {tuple(row.versions.items()) for row in rows}],
        "devices": sorted({row.device for row in rows}),
    }  # fmt: skip

"""``splitveil reproduce``: experiments as commands that may be stopped and go on."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from splitveil.cli.options import AsJson, DataRoot, Quiet
from splitveil.cli.output import MISTAKE, going_on, note, print_json, print_table, progress_bar


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The experiment; all are listed without.")] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="A data set, instead of all; may be given again.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Of training.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of rows, table, plot; else results/NAME.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder in which trained models are kept.")] = Path("runs"),
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Cells at once; else one per core.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small version that only shows that it works.")] = False,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option("--precision", help="Of training; auto: bfloat16 where the processor is made for it."),
    ] = "auto",
    device: Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, …")] = "cpu",
    data_root: DataRoot = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compute the rows of an experiment that are missing, and make its table and plot from the rows."""
    from splitveil import experiments
    from splitveil.train import fastest_precision

    if name is None:
        _list(as_json)
        return
    experiments.find(name)
    exact = fastest_precision(device) if precision == "auto" else precision
    settings = experiments.Settings(data=tuple(data or ()), epochs=epochs, precision=exact, quick=quick)
    # Quick numbers are nobody's results, and go where nobody takes them for some.
    folder = out or (runs / "quick" / name if quick else Path("results") / name)
    place = experiments.Place(runs, data_root, device)
    with going_on("with the cells that are missing"), progress_bar(quiet) as progress:
        done = experiments.reproduce(name, settings, folder, place, jobs=jobs, progress=progress)
    _show(name, done, as_json)


def _list(as_json: bool) -> None:
    from splitveil.experiments import EXPERIMENTS

    if as_json:
        print_json({"experiments": {name: one.summary for name, one in EXPERIMENTS.items()}})
        return
    print_table("experiments", ["name", "what"], [[name, one.summary] for name, one in EXPERIMENTS.items()])


def _show(name: str, done: Any, as_json: bool) -> None:
    for sentence in done.notes:
        note(sentence)
    for failure in done.failures:
        typer.echo(f"splitveil: the cell {failure.cell} failed: {failure.why}", err=True)
    if as_json:
        print_json({
            "experiment": name, "wanted": done.wanted, "there": done.there, "files": [str(path) for path in done.files],
            "failed": {failure.cell: failure.why for failure in done.failures},
            "rows": [row.model_dump(mode="json") for row in done.rows],
        })  # fmt: skip
    else:
        typer.echo(done.table)
        typer.echo(f"{done.there} of {done.wanted} cells are there; written: {', '.join(map(str, done.files)) or '–'}")
    if done.failures:
        raise typer.Exit(MISTAKE if all(failure.mistake for failure in done.failures) else 1)

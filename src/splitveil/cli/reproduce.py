"""``splitveil reproduce``: experiments as commands that may be stopped and go on."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from splitveil.cli.options import AsJson, DataRoot, Quiet
from splitveil.cli.output import MISTAKE, going_on, note, print_json, print_table, progress_bar


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The experiment, or all of the paper's; listed without.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="A data set, instead of all; may be given again.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Of training.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of all results; else results.")] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder in which trained models are kept.")] = Path("runs"),
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Cells at once; else one per core.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Compute the cells on a Ray cluster (the extra ray).")] = False,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Of a running cluster; else one is started here.")
    ] = None,
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
    """Compute the rows of an experiment that are missing, and make its table, plot and page from the rows."""
    from splitveil import experiments
    from splitveil.train import fastest_precision

    if name is None:
        _list(as_json)
        return
    names = experiments.PAPER if name == "all" else (name,)
    for each in names:
        experiments.find(each)
    if ray_address and not ray:
        raise typer.BadParameter("--ray-address belongs to --ray; give both")
    exact = fastest_precision(device) if precision == "auto" else precision
    settings = experiments.Settings(data=tuple(data or ()), epochs=epochs, precision=exact, quick=quick)
    # Quick numbers are nobody's results, and go where nobody takes them for some.
    folder = out or (runs / "quick" if quick else Path("results"))
    place = experiments.Place(runs, data_root, device)
    more: dict[str, Any] = {"sweeper": partial(experiments.sweep_on_ray, address=ray_address)} if ray else {}
    for each in names:
        if sentence := experiments.overlooked(each, settings, folder):
            note(sentence)
    with going_on("with the cells that are missing"), progress_bar(quiet) as progress:
        done = {
            each: experiments.reproduce(each, settings, folder, place, jobs=jobs, progress=progress, **more)
            for each in names
        }
    _show(done, as_json)


def _list(as_json: bool) -> None:
    from splitveil.experiments import EXPERIMENTS

    if as_json:
        print_json({"experiments": {name: one.summary for name, one in EXPERIMENTS.items()}})
        return
    print_table("experiments", ["name", "what"], [[name, one.summary] for name, one in EXPERIMENTS.items()])


def _show(done: dict[str, Any], as_json: bool) -> None:
    notes = list(dict.fromkeys(sentence for each in done.values() for sentence in each.notes))
    failures = {failure.cell: failure for each in done.values() for failure in each.failures}
    for sentence in notes:
        note(sentence)
    for failure in failures.values():
        typer.echo(f"splitveil: the cell {failure.cell} failed: {failure.why}", err=True)
    if as_json:
        objects = [_object(name, each) for name, each in done.items()]
        print_json(objects[0] if len(objects) == 1 else {"experiments": objects})
    for name, each in done.items() if not as_json else ():
        typer.echo(each.table)
        files = ", ".join(map(str, each.files)) or "–"
        typer.echo(f"{name}: {each.there} of {each.wanted} cells are there; written: {files}")
    if failures:
        raise typer.Exit(MISTAKE if all(failure.mistake for failure in failures.values()) else 1)


def _object(name: str, done: Any) -> dict[str, Any]:
    return {
        "experiment": name, "wanted": done.wanted, "there": done.there, "files": [str(path) for path in done.files],
        "failed": {failure.cell: failure.why for failure in done.failures},
        "rows": [row.model_dump(mode="json") for row in done.rows],
    }  # fmt: skip

"""``splitveil train``: a run's folder with a trained model in it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from splitveil.cli.options import AsJson, DataOptions, DataRoot, Quiet, read_options
from splitveil.cli.output import going_on, print_json, print_table, progress_bar


def train(
    data: Annotated[str, typer.Option("--data", help="A data set's name, or folder:PATH.")],
    out: Annotated[Path, typer.Option("--out", help="The run's folder; an interrupted run goes on in it.")],
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the training part.")] = 50,
    seed: Annotated[int, typer.Option("--seed", help="Of the first weights and the order of the samples.")] = 0,
    recipe: Annotated[
        Literal["paper", "plain"],
        typer.Option("--recipe", help="plain: on the answer alone; paper: so that it stands the obfuscation."),
    ] = "paper",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the recipe, such as removal=0.3."),
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option("--precision", help="Of products; auto: bfloat16 where the processor is made for it."),
    ] = "auto",
    device: Annotated[str, typer.Option("--device", help="Where to train: cpu, cuda, …")] = "cpu",
    option: DataOptions = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train the paper's network (Table 1) on a data set's target; hidden attributes are not touched."""
    from splitveil.data import left_out, load_data
    from splitveil.runs import train_run
    from splitveil.train import Recipe, fastest_precision

    # All that can be wrong with the options shows before the data is read, which may take minutes.
    own = {"epochs": epochs, "seed": seed, "precision": fastest_precision(device) if precision == "auto" else precision}
    changed = read_options(setting, "--set")
    if both := sorted(own.keys() & changed):
        raise typer.BadParameter(f"--set takes no {both[0]}, which has an option of its own: --{both[0]}")
    settings = Recipe.paper(**own, **changed) if recipe == "paper" else Recipe.from_mapping({**own, **changed})
    options = read_options(option)
    with going_on("after the last whole epoch"), progress_bar(quiet) as progress:
        loaded = load_data(data, root=data_root, progress=progress, **options)
        history = train_run(out, loaded, settings, source=data, options=options, device=device, progress=progress)
    result = {
        "run": str(out), "data": loaded.name, "recipe": recipe, "settings": asdict(settings), "epochs": len(history),
        "loss": history[-1].loss, "validation_accuracy": history[-1].val_accuracy,
        "skipped": list(loaded.skipped),
    }  # fmt: skip
    if as_json:
        print_json(result)
        return
    shown = {key: value for key, value in result.items() if key != "settings"} | {
        "recipe": f"{recipe}, changed by --set" if changed else recipe,
        "settings": ", ".join(f"{name} {value}" for name, value in asdict(settings).items()),
        "loss": f"{history[-1].loss:.4f}", "validation_accuracy": f"{history[-1].val_accuracy:.1%}",
        "skipped": left_out(loaded.skipped) or "none",
    }  # fmt: skip
    print_table("trained", ["fact", "value"], list(shown.items()))

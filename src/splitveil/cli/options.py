"""Options that several commands share."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

DataRoot = Annotated[
    Path | None, typer.Option("--data-root", envvar="SPLITVEIL_DATA", help="The folder that holds the data sets.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A folder that 'splitveil train' or 'splitveil obfuscate' has written.")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the code of a run's model (pt2 or function) though it was made elsewhere.")
]
ReferenceRun = Annotated[
    Path | None,
    typer.Option("--reference", metavar="RUN", help="A plain run on the same data, to measure the drop against."),
]
DataOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="An option of the data set, such as hidden_csv=labels.csv or writers=50; may be given again.",
    ),
]
Operator = Literal["dense", "patch"]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run's folder, a file of torch.export, or package.module:function.")
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="HxW", help="Of the model's images, where it does not say.")
]


def read_size(text: str | None) -> tuple[int, int] | None:
    """Height and width of ``--size``."""
    if text is None:
        return None
    if (found := re.fullmatch(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})", text, re.ASCII)) is None:
        raise typer.BadParameter(f"--size takes height and width in pixels, such as 224x224, not {text!r}")
    return int(found[1]), int(found[2])


def read_options(given: list[str] | None, flag: str = "--option") -> dict[str, Any]:
    """NAME=VALUE pairs of ``flag``; a value is read as JSON where it is JSON, and is text otherwise."""
    options: dict[str, Any] = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{flag} takes NAME=VALUE, not {pair!r}")
        if name in options:
            raise typer.BadParameter(f"{flag} {name} is given twice")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options

"""Options that several commands share."""

import json
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
DataOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="An option of the data set, such as hidden_csv=labels.csv or writers=50; may be given again.",
    ),
]
Operator = Literal["dense", "patch"]


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

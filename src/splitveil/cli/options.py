"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DataRoot = Annotated[
    Path | None, typer.Option("--data-root", envvar="SPLITVEIL_DATA", help="The folder that holds the data sets.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that 'splitveil train' has written.")]
Operator = Literal["dense", "patch"]

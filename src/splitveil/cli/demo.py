"""``splitveil demo``: the whole story on embedded data, in minutes."""

from pathlib import Path
from typing import Annotated

import typer

from splitveil.cli.options import AsJson, Quiet
from splitveil.cli.output import print_json, print_table, progress_bar


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the run, the rows and the report.")] = Path(
        "runs/demo"
    ),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train on pairs of digits, cut, answer from encoded messages, attack them, and write a report."""
    from splitveil.demo import run_demo

    with progress_bar(quiet) as progress:
        result = run_demo(out, progress=progress)
    if as_json:
        print_json(result)
        return
    rows = [
        [r["name"], f"{r['target']['value']:.1%}", f"{r['attack']['value']:.1%}", round(r["message_bytes"])]
        for r in result["rows"]
    ]
    print_table("digit pairs, cut 4", ["sent", "left digit (wanted)", "right digit (attack)", "bytes"], rows)
    for sentence in result["sentences"]:
        typer.echo(sentence)
    typer.echo(f"report: {result['report']}")

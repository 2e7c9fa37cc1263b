"""``splitveil budget``: what may still be told of a subject, and how much at all; runs without torch."""

from pathlib import Path
from typing import Annotated, Any

import typer

from splitveil.cli.options import AsJson, Quiet
from splitveil.cli.output import note, print_json, print_table


def budget(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The ledger that 'splitveil infer --budget' debits.")],
    subject: Annotated[str | None, typer.Option("--subject", metavar="NAME", help="Show what is left of it.")] = None,
    bits: Annotated[
        float | None, typer.Option("--bits", metavar="BITS", help="Begin a budget, or change its limit, to so many.")
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            "--window",
            metavar="SECONDS",
            help="With --bits: debits count no longer than that. If not given: as before; forever in a new one.",
        ),
    ] = None,
    forever: Annotated[
        bool, typer.Option("--forever", help="With --bits: debits count forever, whatever the budget said.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show how many bits may be told of each subject, or decide it."""
    from splitveil.budget import Budget
    from splitveil.errors import BudgetError
    from splitveil.files import is_there

    del quiet  # there is nothing to wait for
    if forever and (bits is None or window is not None):
        raise BudgetError("--forever goes with --bits and without --window")
    if bits is not None and window is None and not forever and is_there(file):
        window = Budget(file).limits.window
    ledger = Budget(file, limit_bits=bits, window=window, change=bits is not None)
    limits = ledger.limits
    if ledger.begun:
        note(f"began the budget {file}; nothing that was told before counts in it")
    found: dict[str, Any] = {"budget": str(file), "limit_bits": limits.bits, "window_seconds": limits.window}
    if subject is not None:
        found |= {"subject": subject, "spent_bits": ledger.spent(subject), "left_bits": ledger.left(subject)}
    if as_json:
        print_json(found)
        return
    shown = [
        [name.replace("_", " "), "forever" if value is None else value if isinstance(value, str) else f"{value:.6g}"]
        for name, value in found.items()
    ]
    print_table(f"what may be told of each subject: {limits}", ["fact", "value"], shown)

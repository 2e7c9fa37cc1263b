"""What commands do alike with a run that an obfuscator was fitted in: its cut and settings stand in the run."""

from collections.abc import Mapping
from typing import Any

import typer


def check_options(run: Any, given: Mapping[str, object]) -> None:
    """Refuse options that the run has answered already.

    Args:
        run: an opened run.
        given: options by their flags; None where the user has not said them.
    """
    if run.fitted is None:
        return
    for flag, value in given.items():
        same = flag == "--split" and value in (run.fitted.cut, [run.fitted.cut])
        if value is not None and value is not False and not same:
            raise typer.BadParameter(
                f"{run.folder} has an obfuscator ({run.fitted.method}, at {run.fitted.cut}), which settles {flag}; "
                "leave that out, or name the run of the training"
            )

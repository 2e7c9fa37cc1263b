"""What commands check alike of runs: an obfuscator that was fitted in one, and the reference beside it."""

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


def same_data(run: Any, reference: Any) -> Any:
    """The run that drops are measured against, seen to be trained on the same data."""
    from splitveil.errors import ProfileError

    if reference.manifest.data.digest != run.manifest.data.digest:
        raise ProfileError(
            f"the reference {reference.folder} was trained on other data than {run.folder} "
            f"({reference.manifest.data.name}, digest {reference.manifest.data.digest[:12]}…); train it on the same "
            "data"
        )
    return reference

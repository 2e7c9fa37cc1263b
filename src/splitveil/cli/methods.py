"""Obfuscators by their names on the command line, and the options that each takes."""

from typing import Annotated, Literal

import typer

# Spelt out here, since the command line explains itself without torch.
Fit = Literal["top", "covariance-aware", "server-aware", "distilled", "quantised", "codebook"]
Sent = Literal[Fit, "free"]
Attacked = Literal[Sent, "none", "bounded"]
Messages = Annotated[
    int | None, typer.Option("--messages", min=2, help="Different messages at most (quantised and codebook).")
]
FITTED = ("covariance-aware", "server-aware", "distilled", "quantised", "codebook")
_TAKES = {
    "--m": ("top", "covariance-aware", "server-aware", "distilled", "quantised"),
    "--messages": ("quantised", "codebook"),
    "--epsilon": ("bounded",),
    "--width": ("distilled", "codebook"),
}


def check_method(
    method: Attacked, *, m: int | None, messages: int | None, epsilon: float | None = None, width: int | None = None
) -> None:  # fmt: skip
    """Refuse options that belong to other methods, and ask for those that are missing, before any long work."""
    for name, given in (("--m", m), ("--messages", messages), ("--epsilon", epsilon), ("--width", width)):
        owners = _TAKES[name]
        if given is not None and method not in owners:
            raise typer.BadParameter(f"--method {method} takes no {name}; it belongs to {', '.join(owners)}")
        if given is None and method in owners and name != "--width":
            raise typer.BadParameter(f"--method {method} needs {name}")

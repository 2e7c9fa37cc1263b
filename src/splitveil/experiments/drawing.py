"""What the plots of points have in common: panels, curves with intervals, reference lines, one legend outside."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from splitveil.experiments.cells import Row
from splitveil.experiments.comparisons import pairs_of
from splitveil.experiments.tables import Estimate

# Okabe and Ito's colours and black, told apart by most colour-blind readers; markers tell them apart without colour.
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000")
MARKERS = "osD^vP*Xdph<>"
GREY = "#57606a"
STYLES = {
    "distilled": ("#0072b2", "o"), "codebook": ("#d55e00", "D"), "server-aware": ("#009e73", "s"),
    "covariance-aware": ("#56b4e9", "^"), "quantised": ("#e69f00", "v"), "device": ("#cc79a7", "*"),
    "adversarial": ("#8250df", "P"), "pruning": ("#953800", "h"), "pca": ("#9a6700", "<"), "random": ("#d4a72c", ">"),
    "noise": ("#0a3069", "p"), "gaussian": ("#a40e26", "8"), "bottleneck": ("#1b7c83", "d"), "blur": ("#bf3989", "x"),
    "leace": ("#116329", "+"),
}  # fmt: skip
"""Colour and marker of each defence, the same in every plot; no two share either."""
NEW = (GREY, ".")
"""Of a defence that has no style yet."""
_LINES: dict[str, Any] = {"prior": ":", "label": (0, (1, 2)), "logits": "-.", "raw": "--"}

Panel = tuple[Axes, tuple[str, str]]


def panels(rows: Sequence[Row], caption: str, y: str) -> tuple[Figure, list[Panel]]:
    """A figure with a panel per data set, two in a line, and a caption below.

    Args:
        rows: of points.
        caption: what the reader must know.
        y: label of the vertical axes.
    """
    pairs = pairs_of(rows)
    columns = min(2, len(pairs))
    lines = -(-len(pairs) // columns)
    figure = Figure(figsize=(4.2 * columns + 2.6, 3.6 * lines + 0.6), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for place in grid.flat[len(pairs) :]:
        place.set_axis_off()
    for index, (axes, (data, hidden)) in enumerate(zip(grid.flat, pairs, strict=False)):
        axes.set_title(f"{data}: {hidden}", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(visible=True, color="#d0d7de", linewidth=0.4)
        if index % columns == 0:
            axes.set_ylabel(y)
    figure.supxlabel(caption, fontsize=8)
    return figure, list(zip(grid.flat, pairs, strict=False))


def legend(figure: Figure, axes: Sequence[Axes]) -> Figure:
    """One legend, outside to the right, of what any of the axes shows."""
    handles: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = sorted(handles, key=lambda label: not isinstance(handles[label], ErrorbarContainer))  # curves first
    figure.legend([handles[label] for label in labels], labels, fontsize=8, loc="outside right center")
    return figure


def bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of error bars, below and above."""
    return [[one["value"] - one["low"] for one in estimates], [one["high"] - one["value"] for one in estimates]]


def curve(
    axes: Axes, x: Sequence[float], y: Sequence[Estimate], colour: str, marker: str, label: str,
    across: Sequence[Estimate] | None = None, **style: Any,
) -> None:  # fmt: skip
    """A line through estimates with their intervals, and with those of x where ``across`` gives them."""
    settings: dict[str, Any] = {"markersize": 5, "capsize": 2, "linewidth": 1.2, "elinewidth": 0.6, **style}
    axes.errorbar(
        x, [one["value"] for one in y], yerr=bars(y), xerr=bars(across) if across else None, label=label,
        color=colour, marker=marker, **settings,
    )  # fmt: skip


def references(axes: Axes, lines: dict[str, Estimate], of: str, colour: str) -> None:
    """Reference lines across the axes, in the axes' own unit; the prior is the same for every training.

    Args:
        axes: where.
        lines: by name, see `lines_of`.
        of: what training they belong to, for the legend.
        colour: of all but the prior.
    """
    for name, one in lines.items():
        shared = name == "prior"
        axes.axhline(
            one["value"], color=GREY if shared else colour, linestyle=_LINES[name], linewidth=0.9, zorder=1,
            label=name if shared else f"{name}, {of}",
        )  # fmt: skip

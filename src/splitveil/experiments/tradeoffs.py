"""Figures 4 to 6 and the frontier of all defences: plots and tables from rows of points."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from splitveil.experiments.attributes import attributes_plot, attributes_table
from splitveil.experiments.cells import Row
from splitveil.experiments.comparisons import (
    by_setting,
    error_of,
    lines_of,
    lines_table,
    matched_table,
    pairs_of,
    points_table,
    several_table,
)
from splitveil.experiments.depth import cuts_plot, cuts_table
from splitveil.experiments.drawing import COLOURS, GREY, NEW, STYLES, curve, legend, panels, references
from splitveil.experiments.frontier import OURS, OURS_PLAIN, curves

__all__ = [
    "adversarial_plot", "adversarial_table", "attributes_plot", "attributes_table", "cuts_plot", "cuts_table",
    "frontier_plot", "frontier_table", "kept_plot", "kept_table", "pruning_plot", "pruning_table",
]  # fmt: skip

BOTH = (OURS, OURS_PLAIN)
_OTHERS = (
    "pruning", "adversarial", "device", "noise", "gaussian", "bottleneck", "random", "pca", "blur", "leace",
)  # fmt: skip
_CAPTION = (
    "Ours, blue: top components on the paper's training; its reference attacks in blue. All else on plain training;\n"
    "its reference attacks in grey. Bars: 95 % interval of one seed, or the range of several seeds about their mean."
)


def kept_plot(rows: Sequence[Row]) -> Figure:
    """Figure 4: the target's and the attack's error against m' at cut 4, a panel per data set."""
    figure, found = panels(rows, f"Components sent, m'. {_CAPTION}", "error, %")
    for axes, (data, hidden) in found:
        its = curves(rows, data, hidden)
        ticks: set[int] = set()
        for index, name in enumerate(name for name in BOTH if name in its):
            line = sorted(by_setting(its[name], hidden), key=lambda one: one[0]["m"])
            ticks |= {one[0]["m"] for one in line}
            m = [1.05**index * one[0]["m"] for one in line]  # aside, so that intervals do not hide each other
            colour = (COLOURS[0], GREY)[index]
            curve(axes, m, [error_of(one[2]) for one in line], colour, "s", f"{name}: attack")
            curve(
                axes, m, [error_of(one[1]) for one in line], colour, "o", f"{name}: target", markerfacecolor="none",
            )  # fmt: skip
        _both_references(axes, rows, data, hidden)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(ticks), [str(m) for m in sorted(ticks)])
    return legend(figure, [axes for axes, _ in found])


def frontier_plot(rows: Sequence[Row], names: Sequence[str] = _OTHERS) -> Figure:
    """Figures 5 and 6, and all defences: attack error against target error, up and left is better.

    Args:
        rows: of points.
        names: defences to show, of those that the rows hold; ours is always shown, and the answer on the device.
    """
    figure, found = panels(rows, f"Target error, %. Up and to the left is better. {_CAPTION}", "attack error, %")
    for axes, (data, hidden) in found:
        for name, seeds in curves(rows, data, hidden).items():
            if name not in (*BOTH, *names, "device"):
                continue
            its = sorted(by_setting(seeds, hidden), key=lambda one: -one[3])
            target, attack = [error_of(one[1]) for one in its], [error_of(one[2]) for one in its]
            curve(axes, [one["value"] for one in target], attack, *_style(name), name, across=target)
        _both_references(axes, rows, data, hidden)
    return legend(figure, [axes for axes, _ in found])


def _style(name: str) -> tuple[str, str]:
    """Colour and marker, the same in every plot."""
    if name in BOTH:
        return (COLOURS[0], GREY)[BOTH.index(name)], "os"[BOTH.index(name)]
    return STYLES.get(name, NEW)


def _both_references(axes: Axes, rows: Sequence[Row], data: str, hidden: str) -> None:
    for training, colour in (("paper", COLOURS[0]), ("plain", GREY)):
        lines = lines_of(rows, data, hidden, training=training)
        references(axes, {name: error_of(one) for name, one in lines.items()}, f"{training} training", colour)


def kept_table(rows: Sequence[Row]) -> str:
    """Figure 4's page."""
    parts = [points_table(rows, BOTH), *_references_part(rows)]
    if several := several_table(rows):
        parts += [
            "## Several messages of one subject",
            "Attack accuracy where the adversary knows that so many messages come from one person, and sums their "
            "evidence. `raw` and `logits`: the same attack on the undefended model's feature and logits.",
            several,
        ]
    return page("The tradeoff at cut 4", *parts)


def pruning_plot(rows: Sequence[Row]) -> Figure:
    """Figure 5."""
    return frontier_plot(rows, ("pruning",))


def pruning_table(rows: Sequence[Row]) -> str:
    """Figure 5's page."""
    return _compared("Ours and pruning", rows, "pruning")


def adversarial_plot(rows: Sequence[Row]) -> Figure:
    """Figure 6."""
    return frontier_plot(rows, ("adversarial",))


def adversarial_table(rows: Sequence[Row]) -> str:
    """Figure 6's page."""
    return _compared("Ours and adversarial training", rows, "adversarial")


def frontier_table(rows: Sequence[Row]) -> str:
    """The page of all defences."""
    return _compared("All defences", rows, *_OTHERS)


def _compared(title: str, rows: Sequence[Row], *names: str) -> str:
    plain = {row.config["data"] for row in rows if row.config["training"] == "plain"}
    equal = [
        f"{data}, attack on {hidden}:\n\n{matched_table(rows, data, hidden)}"
        for data, hidden in pairs_of(rows)
        if data in plain
    ]
    how = (
        "Each defence at the setting, chosen on validation, whose strongest attack is weakest within the permitted "
        "drop against the best plainly trained, undefended model; the numbers are from test. `less ours`: its attack "
        "less ours on the same seeds and samples; p corrected by Holm."
    )
    parts: Any = [points_table(rows, (*BOTH, *names, "device")), *_references_part(rows), "## At equal validation drop"]
    return page(title, *parts, how, *equal)


def _references_part(rows: Sequence[Row]) -> list[str]:
    return ["## Reference attacks on the undefended model", "Accuracies.", lines_table(rows)]


def page(title: str, *parts: str) -> str:
    """A Markdown page that says how to read its intervals."""
    how = "In %. One seed: the estimate and its 95 % interval. Several: their mean, the smallest and the largest."
    return "\n\n".join([f"# {title}", how, *parts]) + "\n"

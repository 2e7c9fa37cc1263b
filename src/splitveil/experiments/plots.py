"""Rows to plots."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from splitveil.experiments.ablation import VARIANTS, variants_of
from splitveil.experiments.cells import Row
from splitveil.experiments.tables import Estimate, at_cut, attack_at, summary

_COLOURS = dict(zip(VARIANTS, ("#57606a", "#0969da", "#1a7f37", "#9a6700", "#cf222e"), strict=True))
_DASHES = {"prior": ":", "label": (0, (1, 1)), "logits": "-.", "raw": "--"}


def ablation_plot(rows: Sequence[Row]) -> Figure:
    """A figure with a column per data set: test accuracy above, the attack below, both against m'."""
    names = list(dict.fromkeys(row.config["data"] for row in rows))
    figure = Figure(figsize=(4.2 * len(names) + 1.8, 7.5), layout="constrained")
    grid = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        by_variant = variants_of(rows, name)
        config = next(iter(by_variant.values()))[0].config
        _accuracy(grid[0, column], by_variant, config["kept"])
        _attack(grid[1, column], by_variant, config["kept"])
        grid[0, column].set_title(f"{name}: test accuracy, cut {config['attacked']}", fontsize=10)
        grid[1, column].set_title(f"{name}: attack on {config['hidden']}", fontsize=10)
        grid[1, column].set_xlabel("components sent, m'")
    for row_of_axes in grid:
        row_of_axes[0].set_ylabel("%")
        row_of_axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _accuracy(axes: Axes, by_variant: dict[str, list[Row]], kept: Sequence[int]) -> None:
    _curves(axes, by_variant, kept, lambda row, m: at_cut(row, m, "test"))
    for variant, rows in by_variant.items():
        level = summary([row.numbers["undefended"]["test"] for row in rows])["value"]
        label = f"{variant}, undefended"
        axes.axhline(100 * level, color=_COLOURS[variant], linestyle=":", linewidth=1, label=label)


def _attack(axes: Axes, by_variant: dict[str, list[Row]], kept: Sequence[int]) -> None:
    _curves(axes, by_variant, kept, attack_at)
    variant = "plain" if "plain" in by_variant else next(iter(by_variant))
    attacks = [row.numbers["attack"] for row in by_variant[variant]]
    for name, dashes in _DASHES.items():
        level = summary([one[name] if name == "prior" else one[name]["accuracy"] for one in attacks])["value"]
        axes.axhline(100 * level, color="#57606a", linestyle=dashes, linewidth=1, label=f"{name} ({variant})")


def _curves(
    axes: Axes,
    by_variant: dict[str, list[Row]],
    kept: Sequence[int],
    of: Callable[[Row, int], Estimate | None],
) -> None:
    ticks = sorted(kept)
    for index, (variant, rows) in enumerate(by_variant.items()):
        found = {m: summary([one for row in rows if (one := of(row, m))]) for m in ticks if of(rows[0], m)}
        aside = 1.05 ** (index - (len(by_variant) - 1) / 2)  # so that intervals do not hide each other
        y = [100 * one["value"] for one in found.values()]
        below = [100 * (one["value"] - one["low"]) for one in found.values()]
        above = [100 * (one["high"] - one["value"]) for one in found.values()]
        style = {"color": _COLOURS[variant], "marker": "o", "markersize": 3, "capsize": 2, "linewidth": 1.2}
        axes.errorbar([aside * m for m in found], y, yerr=[below, above], label=variant, **style)  # type: ignore[arg-type]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(m) for m in ticks])

"""The profile's plot: what each cut costs in right answers, against the components sent."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from splitveil.files import write_with
from splitveil.profile import Interval, Profile, Row

_STYLES = {"float32": "-", "int8": "--", "int4": ":", "index": "-."}
_COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#57606a")


def profile_figure(profile: Profile) -> Figure:
    """Drop against m' at every cut, with intervals; without labels, the share that the uncut model answers otherwise.

    The second panel has the same numbers against the bytes of a frame, which the eye should not compare across cuts in
    components. The legend says what each cut costs on the edge, from its cheapest to its dearest row. "bounded" rows
    are drawn hollow, at their mean number of components; integer codings as thin broken lines without intervals; finite
    messages at their number of digits.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    by_components, by_bytes = figure.subplots(1, 2, sharey=True)
    cuts: dict[tuple[str, str], list[Row]] = {}
    for row in profile.rows:
        cuts.setdefault((row.layer, row.operator), []).append(row)
    for index, rows in enumerate(cuts.values()):
        colour = _COLOURS[index % len(_COLOURS)]
        aside = 1.04 ** (index - (len(cuts) - 1) / 2)  # so that the intervals of two cuts do not hide each other
        _curve(by_components, rows, [aside * row.mean_components for row in rows], colour)
        _curve(by_bytes, rows, [row.bytes_mean for row in rows], colour)
    _name(by_components, by_bytes, profile)
    return figure


def write_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as SVG, whole or not at all, the same bytes for the same numbers; raises `RunError`."""
    with mpl.rc_context({"svg.hashsalt": "splitveil"}):
        write_with(Path(path), lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}))


def _curve(axes: Axes, rows: list[Row], x: list[float], colour: str) -> None:
    """Fixed m' as a line with intervals, in integers as a thin line, bounded distortion as hollow marks."""
    lines = {
        coding: [
            (place, _loss(row)) for place, row in zip(x, rows, strict=True) if row.fixed_length and row.coding == coding
        ]
        for coding in _STYLES
    }
    main, *others = [coding for coding in lines if lines[coding]] or ["float32"]
    fixed = lines[main]
    loose = [(place, _loss(row)) for place, row in zip(x, rows, strict=True) if not row.fixed_length]
    costs = [row.edge_macs / 1e6 for row in rows if row.fixed_length]
    what = rows[0].operator if rows[0].obfuscator is None else rows[0].method
    label = f"{rows[0].place}, {what}: {min(costs):.3g} to {max(costs):.3g}M" if costs else rows[0].place
    below, above = [y.value - y.low for _, y in fixed], [y.high - y.value for _, y in fixed]
    axes.errorbar(
        [place for place, _ in fixed], [y.value for _, y in fixed], yerr=[below, above],
        label=label, color=colour, marker="o", markersize=4, capsize=2, linewidth=1.2,
        linestyle=_STYLES[main],
    )  # fmt: skip
    for coding in others:
        places, losses = zip(*lines[coding], strict=True)
        axes.plot(places, [y.value for y in losses], color=colour, linestyle=_STYLES[coding], linewidth=0.9)
    axes.plot(
        [place for place, _ in loose], [y.value for _, y in loose], color=colour, marker="D", markersize=4,
        markerfacecolor="none", linestyle="none",
    )  # fmt: skip


def _loss(row: Row) -> Interval:
    """Points of drop, or of disagreement where there are no labels."""
    if row.drop is not None:
        return Interval(value=100 * row.drop.value, low=100 * row.drop.low, high=100 * row.drop.high)
    same = row.agreement
    return Interval(value=100 * (1 - same.value), low=100 * (1 - same.high), high=100 * (1 - same.low))


def _name(by_components: Axes, by_bytes: Axes, profile: Profile) -> None:
    against = "its own uncut model" if profile.reference.own else "the plainly trained model"
    loss = f"drop against {against}, points" if profile.data.labelled else "answers other than the uncut model's, %"
    by_components.set_ylabel(f"{loss} ({100 * profile.confidence:g} % intervals)")
    by_components.set_xlabel("components sent, m' (maps at a convolution's patch operator)")
    by_bytes.set_xlabel("bytes per query")
    by_components.set_xscale("log", base=2)
    by_bytes.set_xscale("log")
    for axes in (by_components, by_bytes):
        axes.set_yscale("symlog", linthresh=1)  # a point matters, and so do forty
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.axhline(0, color="#57606a", linewidth=0.8)
        axes.grid(visible=True, color="#d0d7de", linewidth=0.5)
    by_bytes.legend(
        title="multiply-accumulates on the edge\n(dashed: int8, dotted: int4;\nhollow: bounded distortion)",
        fontsize=8, title_fontsize=8,
        loc="center left", bbox_to_anchor=(1, 0.5),
    )  # fmt: skip

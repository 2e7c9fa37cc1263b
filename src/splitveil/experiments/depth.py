"""Figure 3: the attack against the cut, undefended, distortion-free, and within 1 point of target accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from splitveil.experiments.cells import Row
from splitveil.experiments.comparisons import in_percent, line_bits, lines_of, pairs_of, setting_text, shown
from splitveil.experiments.drawing import COLOURS, curve, legend, panels, references
from splitveil.experiments.frontier import point_of, rows_of, undefended
from splitveil.experiments.paired import Bits
from splitveil.experiments.tables import Estimate, markdown, percent, summary

DROP = 0.01
CONVOLUTIONS = (1, 2, 3)
NONE, FREE, TOP, BOUNDED = "none", "free", "top", "bounded"
_STYLES = {NONE: (COLOURS[6], "X"), FREE: (COLOURS[5], "s"), TOP: (COLOURS[0], "o"), BOUNDED: (COLOURS[4], "D")}


@dataclass(frozen=True, eq=False)
class AtCut:
    """One seed of one defence at one cut, at its chosen setting.

    Attributes:
        attack: which test secrets the strongest attack guesses, (n,).
        accuracy: the attack's, with its interval.
        drop: on validation, against the best plainly trained model; None where nothing is dropped by construction.
        setting: what was chosen.
        components: how many the message has, None where that depends on the query.
    """

    attack: Bits
    accuracy: Estimate
    drop: float | None
    setting: dict[str, Any]
    components: int | None

    @property
    def within(self) -> bool:
        """Whether the drop is at most 1 point."""
        return self.drop is None or self.drop <= DROP + 1e-12


@dataclass(frozen=True)
class Curve:
    """What a line of figure 3 shows.

    Attributes:
        defence: "none", "free", "top" or "bounded".
        operator: at convolutions, "patch" or "dense"; fully connected cuts have the dense one and belong to both.
    """

    defence: str
    operator: str

    @property
    def label(self) -> str:
        """For people."""
        words = {NONE: "undefended", FREE: "distortion-free", TOP: "top m' within 1 point", BOUNDED: "ε within 1 point"}
        return words[self.defence] + ("" if self.defence == NONE else f", {self.operator}")


CURVES = (
    Curve(NONE, "dense"), Curve(FREE, "patch"), Curve(TOP, "patch"), Curve(TOP, "dense"), Curve(BOUNDED, "patch"),
    Curve(BOUNDED, "dense"),
)  # fmt: skip
"""Distortion-free on a convolution's dense operator is missing: it has no null space, so nothing is removed."""

Cuts = dict[int, dict[int, AtCut]]
"""By cut and seed."""


def cuts_of(rows: Sequence[Row], data: str, hidden: str) -> dict[Curve, Cuts]:
    """Figure 3's lines of one data set, on the paper's training; lines without any row are left out.

    So are settings that nothing can choose, since no row tells what drops are measured against.

    Raises:
        ExperimentError: the rows are not of one training budget.
    """
    its = [row for row in rows_of(rows, data) if row.config["training"] == "paper"]
    cuts = sorted({row.config["cut"] for row in its})
    found = {}
    for line in CURVES:
        by_cut = {cut: _at(rows, its, data, hidden, line, cut) for cut in cuts}
        if any(by_cut.values()):
            found[line] = {cut: seeds for cut, seeds in by_cut.items() if seeds}
    return found


def _at(rows: Sequence[Row], its: Sequence[Row], data: str, hidden: str, line: Curve, cut: int) -> dict[int, AtCut]:
    if line.defence == NONE:
        raw = line_bits(its, data, hidden, "raw", cut)
        known = {row.config["seed"]: row.numbers for row in its if row.config["cut"] == cut}
        return {
            seed: AtCut(bits, known[seed]["lines"][hidden]["raw"]["accuracy"], None, {}, None)
            for seed, bits in raw.items()
        }
    wanted = (cut, line.defence, line.operator if cut in CONVOLUTIONS else "dense")
    same = [row for row in its if tuple(row.config[key] for key in ("cut", "defence", "operator")) == wanted]
    return {row.config["seed"]: one for row in same if (one := _taken(row, hidden, rows, data))}


def _taken(row: Row, hidden: str, rows: Sequence[Row], data: str) -> AtCut | None:
    """The row's setting for figure 3: as its cell chose it, or else the fewest components within 1 point."""
    entries = [one for one in row.numbers["points"] if hidden in one["leaks"]]
    if not entries:
        return None
    if row.config["defence"] == FREE:
        one, drop = entries[0], None
    elif row.config["drop"] is not None:
        one, drop = entries[0], next(its["drop"] for its in row.numbers["targets"] if its["taken"])
    else:
        best = best_plain(rows, data, row.config["seed"])
        if best is None:
            return None
        drops = [(best - its["target"]["val"]["value"], its) for its in entries]
        good = [pair for pair in drops if pair[0] <= DROP + 1e-12]
        drop, one = min(good or drops, key=lambda pair: pair[1]["setting"]["m"] if good else pair[0])
    point = point_of(one, hidden, row.numbers["n_test"])
    # A bounded message's length depends on the query.
    components = one["components"] if one.get("fixed_length", True) else None
    return AtCut(point.attack, one["leaks"][hidden]["accuracy"], drop, one["setting"], components)


def best_plain(rows: Sequence[Row], data: str, seed: int) -> float | None:
    """Validation accuracy of the best plainly trained model: as rows of the seed that chose a setting had it, which
    trained it in the same place, or else from plain rows.

    None where there is neither.
    """
    its = rows_of(rows, data)
    for row in its:
        for one in row.numbers.get("targets", ()):
            if row.config["seed"] == seed and one["drop"] is not None:
                return float(one["val"]["value"] + one["drop"])
    return undefended(rows, data)[0] if any(row.config["training"] == "plain" for row in its) else None


def bits_of(seeds: dict[int, AtCut], *, within: bool = True) -> dict[int, Bits]:
    """Right guesses by seed, of the seeds within 1 point alone where asked."""
    return {seed: one.attack for seed, one in seeds.items() if one.within or not within}


def kept_shares(rows: Sequence[Row], data: str, hidden: str) -> dict[int, list[float]]:
    """Share m'/rank of the components that are kept within 1 point, by cut, of each seed that has such a setting.

    The rank is the number of components that distortion-free obfuscation sends; at convolutions both count filters of
    the patch operator. Cuts where either is missing are left out.
    """
    found = cuts_of(rows, data, hidden)
    top, free = found.get(Curve(TOP, "patch"), {}), found.get(Curve(FREE, "patch"), {})
    shares = {
        cut: [
            one.components / free[cut][seed].components  # type: ignore[operator]
            for seed, one in seeds.items()
            if one.within and one.components and seed in free.get(cut, {})
        ]
        for cut, seeds in top.items()
    }
    return {cut: its for cut, its in shares.items() if its}


def cuts_plot(rows: Sequence[Row]) -> Figure:
    """Figure 3: attack accuracy against the cut, a panel per data set; hollow where no setting is within 1 point."""
    caption = (
        "Cut. The strongest attack on the paper's training; fewer attacks at the convolutions, cuts 1 to 3. Solid:\n"
        "their patch operator; dashed: their dense one, where distortion-free removes nothing. Hollow: a seed has no\n"
        "setting within 1 point, its least bad one is shown. Bars: 95 % interval of one seed, or the range of several\n"
        "seeds about their mean."
    )
    figure, found = panels(rows, caption, "attack accuracy, %")
    for axes, (data, hidden) in found:
        lines = cuts_of(rows, data, hidden)
        for index, (line, cuts) in enumerate(lines.items()):
            _draw(axes, line, cuts, 0.07 * (index - (len(lines) - 1) / 2))
        ticks = sorted({cut for cuts in lines.values() for cut in cuts})
        if ticks:
            known = lines_of(rows, data, hidden, ticks[-1])
            kept = {name: in_percent(known[name]) for name in ("prior", "logits")}
            references(axes, kept, f"cut {ticks[-1]}", COLOURS[3])
        axes.set_xticks(ticks)
    return legend(figure, [axes for axes, _ in found])


def _draw(axes: Axes, line: Curve, cuts: Cuts, aside: float) -> None:
    colour, marker = _STYLES[line.defence]
    its = [in_percent(summary([one.accuracy for one in seeds.values()])) for seeds in cuts.values()]
    dashes = "--" if line.operator == "dense" and line.defence != NONE else "-"
    x = [cut + aside for cut in cuts]
    curve(axes, x, its, colour, marker, line.label, linestyle=dashes)
    hollow = [index for index, seeds in enumerate(cuts.values()) if not all(one.within for one in seeds.values())]
    axes.plot(
        [x[index] for index in hollow], [its[index]["value"] for index in hollow], color=colour, marker=marker,
        markersize=5, markerfacecolor="white", linestyle="none", zorder=3,
    )  # fmt: skip


def cuts_table(rows: Sequence[Row]) -> str:
    """Figure 3's page."""
    lines = [
        [f"{data}, {hidden}", line.label, str(cut), *_cells(seeds)]
        for data, hidden in pairs_of(rows)
        for line, cuts in cuts_of(rows, data, hidden).items()
        for cut, seeds in cuts.items()
    ]
    heads = ["data, hidden", "defence", "cut", "attack accuracy", "seeds", "setting", "drop", "within 1 point"]
    how = (
        "In %. One seed: the estimate and its 95 % interval. Several: their mean, the smallest and the largest. The "
        "setting is chosen on validation: the strongest within 1 point of the best plainly trained model, of those "
        "that the seed's own machine trained, or else the one that drops least. At convolutions a distortion-free "
        "dense operator is missing: it has no null space, so it sends the feature as it is. Convolutional cuts meet "
        "fewer attacks and one seed."
    )
    return f"# The attack against the cut\n\n{how}\n\n{markdown(heads, lines)}\n"


def _cells(seeds: dict[int, AtCut]) -> list[str]:
    its = list(seeds.values())
    drops = [one.drop for one in its if one.drop is not None]
    settings = list(dict.fromkeys(setting_text(one.setting) for one in its))
    return [
        shown(in_percent(summary([one.accuracy for one in its]))), str(len(its)), " or ".join(settings),
        percent(fmean(drops)) if drops else "–",
        f"{sum(one.within for one in its)} of {len(its)}" if drops else "–",
    ]  # fmt: skip

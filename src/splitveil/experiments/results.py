"""The page of results: what ran, and each claim of the paper beside its verdict, made from rows alone."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from splitveil.errors import ExperimentError
from splitveil.experiments.areas import area
from splitveil.experiments.cells import Row
from splitveil.experiments.comparisons import pairs_of, points_of
from splitveil.experiments.depth import CONVOLUTIONS
from splitveil.experiments.excess import goal_parts
from splitveil.experiments.frontier import DROPS, OURS, Seeds, at_equal_drop, curves, undefended
from splitveil.experiments.goals import DEFAULTS
from splitveil.experiments.tables import markdown, percent
from splitveil.experiments.verdicts import CLAIMS, Claim, Verdict

_TITLES = {
    "fig2": "Figure 2: signal content by layer",
    "fig3": "Figure 3: the attack against the cut",
    "fig4": "Figure 4: both errors against the components sent",
    "fig5": "Figure 5: ours and pruning",
    "fig6": "Figure 6: ours and adversarial training",
    "fig7": "Figure 7: one component, six hidden attributes",
    "baselines": "Every baseline",
    "cost": "Section 4.3: bytes and edge compute",
}
_OF_POINTS = ("fig3", "fig4", "fig5", "fig6", "fig7", "baselines", "frontier")
_HOW = (
    "Made from the rows in `results/` by `splitveil reproduce`; no number is written by hand. Accuracies and drops are "
    "in %, differences in points, each with its 95 % interval: a bootstrap over the test samples, the same resamples "
    "for all, and over the seeds where there are several. Of one seed an interval speaks of that one model; over two "
    "or three it is too short where seeds differ more than samples. Attacks and settings are chosen on validation and "
    "scored once on test. A part of a claim *holds* where its whole interval says so, and else *does not hold*, which "
    "may mean that the opposite is true or that the test images cannot tell; the numbers say which. Counts and costs "
    "have no interval. Intervals and verdicts are not corrected for their number; p-values are, by data set. The rule "
    "of each verdict is the docstring of its judge in `splitveil.experiments.verdicts`."
)


def summary_page(rows_by_experiment: Mapping[str, Sequence[Row]]) -> str:
    """The Markdown of ``docs/results.md``.

    Args:
        rows_by_experiment: the rows of each experiment by its name, "fig2" to "fig7", "baselines", "cost" and
            "frontier"; those without rows may be missing, and are said to be not measured.
    """
    points = _distinct(row for name in _OF_POINTS for row in rows_by_experiment.get(name, ()))
    verdicts = [(claim, _judged(claim, rows_by_experiment.get(claim.figure, ()))) for claim in CLAIMS]
    sections = [_section(name, verdicts, bool(rows_by_experiment.get(name))) for name in _TITLES]
    parts = ["# Results", _HOW, *_frontier(rows_by_experiment.get("frontier", ()))]
    parts += [_verdicts_part(verdicts), *_ran(rows_by_experiment, points)]
    parts += [*_strongest(points), *_areas(rows_by_experiment.get("baselines", ())), *sections]
    return "\n\n".join(parts) + "\n"


def _frontier(rows: Sequence[Row]) -> list[str]:
    """The goal of this library, once it has been measured anywhere."""
    if not any(row.config["defence"] in DEFAULTS for row in rows):
        return []
    picture = "![Target error against excess leakage at cut 4](../results/frontier/plot.svg)"
    more = "[Every cut](../results/frontier/cuts.svg), [all numbers](../results/frontier/table.md)"
    return [*goal_parts(rows), picture, more]


def _judged(claim: Claim, rows: Sequence[Row]) -> Verdict:
    if not rows:
        return Verdict("not measured", ())
    try:
        return claim.judge(rows)
    except ExperimentError:  # a sweep under way may lack the rows that the others are measured against
        return Verdict("not measured", ())


def _distinct(rows: Iterable[Row]) -> list[Row]:
    """Each row once: figures share them."""
    return list({json.dumps([row.experiment, row.config], sort_keys=True): row for row in rows}.values())


def _verdicts_part(verdicts: Sequence[tuple[Claim, Verdict]]) -> str:
    lines = [
        [_TITLES[claim.figure].split(":")[0], claim.text, f"**{verdict.word}**", _counted(verdict)]
        for claim, verdict in verdicts
    ]
    heads = ["where", "claim", "verdict here", "parts that hold / do not / are not measured"]
    return "## The paper's claims\n\n" + markdown(heads, lines)


def _counted(verdict: Verdict) -> str:
    return " / ".join(str(sum(part.holds is word for part in verdict.parts)) for word in (True, False, None))


def _ran(rows_by_experiment: Mapping[str, Sequence[Row]], points: Sequence[Row]) -> list[str]:
    lines = [
        line
        for name, _ in pairs_of(points)
        for line in _ran_on(name, [row for row in points if row.config["data"] == name])
    ]
    everything = _distinct(row for rows in rows_by_experiment.values() for row in rows)
    hours = sum(_seconds(row.seconds) for row in everything) / 3600
    devices = " and ".join(sorted({row.device for row in everything}))
    heads = [
        "data",
        "cuts",
        "rows",
        "seeds, paper's recipe",
        "seeds, plain",
        "epochs",
        "precision",
        "hidden",
        "attacks",
    ]
    took = (
        f"The {len(everything)} rows took {hours:.1f} hours on {devices or 'nothing'}, summed over rows, so that those "
        "which ran side by side count each; models that were trained before do not count."
    )
    images = ", ".join({row.config["data"]: f"{row.config['data']} {row.numbers['n_test']}" for row in points}.values())
    place = (
        "All rows of one data set, training and seed are of one model. Others may come from machines of another kind, "
        "on which one seed gives different models. Some defences have seed 0 alone, some seed 2."
    )
    told = [markdown(heads, lines), f"Test images: {images}. {place}"] if lines else []
    return ["## What ran", *told, took]


def _ran_on(name: str, rows: Sequence[Row]) -> list[list[str]]:
    """A line for all cuts that ran alike."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for cut in sorted({row.config["cut"] for row in rows}):
        its = [row for row in rows if row.config["cut"] == cut]
        alike.setdefault(_facts(its), []).extend(its)
    return [
        [name, _values("cut", its), str(len(its)), *facts] for facts, its in alike.items()
    ]  # fmt: skip


def _facts(rows: Sequence[Row]) -> tuple[str, ...]:
    own = [row for row in rows if row.config["training"] == "paper"]
    others = [row for row in rows if row.config["training"] == "plain"]
    lists = [dict.fromkeys(each for row in rows for each in row.config[key]) for key in ("hidden", "attacks")]
    return (
        _values("seed", own), _values("seed", others), _values("epochs", rows), _values("precision", rows),
        *map(", ".join, lists),
    )  # fmt: skip


def _values(key: str, rows: Sequence[Row]) -> str:
    return ", ".join(map(str, sorted({row.config[key] for row in rows}))) or "–"


def _seconds(value: Any) -> float:
    if isinstance(value, Mapping):
        return sum(map(_seconds, value.values()))
    return float(value) if isinstance(value, int | float) else 0.0


def _strongest(points: Sequence[Row]) -> list[str]:
    """How often each adversary was the best on validation, over all messages and attributes of a data set."""
    alone: dict[str, Counter[str]] = {}
    tied: dict[str, Counter[str]] = {}
    cases: Counter[str] = Counter()
    for row in points:
        if row.config["cut"] in CONVOLUTIONS:  # fewer attacks are mounted there
            continue
        data = row.config["data"]
        for leak in (leak for one in row.numbers["points"] for leak in one["leaks"].values()):
            found = leak["validation"]
            best = [name for name in found if found[name] == max(found.values())]
            cases[data] += 1
            (alone if len(best) == 1 else tied).setdefault(data, Counter()).update(best)
    names = sorted({name for counts in (*alone.values(), *tied.values()) for name in counts})
    if not names:
        return []
    lines = []
    for data, count in cases.items():
        sole, shared = alone.get(data, Counter[str]()), tied.get(data, Counter[str]())
        first = f"**{sole.most_common(1)[0][0]}**" if sole else "–"
        lines.append([data, str(count), first, *(f"{sole[name]} / {shared[name]}" for name in names)])
    how = (
        "How often each was the best on validation, alone / with others that were right equally often, over all "
        "defences, settings and hidden attributes at cuts 4 to 6, where the whole suite is mounted. *Strongest*: the "
        "best alone most often."
    )
    return ["## The strongest adversary", how, markdown(["data", "cases", "strongest", *names], lines)]


def _areas(rows: Sequence[Row]) -> list[str]:
    """Our curve and each baseline's at cut 4: the area between them, and the gap at the smallest common drop."""
    lines = [
        [f"{data}, {hidden}", *_between(found, name, undefended(rows, data)[0])]
        for data, hidden in pairs_of(rows)
        if OURS in (found := curves(rows, data, hidden))
        for name in found
        if name != OURS
    ]
    if not lines:
        return []
    how = (
        "At cut 4, above 0 ours hides more. *Area*: attack error over target error, ours less theirs, over the target "
        "errors that both reach; the mean gap is the area over the width. *Gap*: their attack's accuracy less ours at "
        f"the smallest drop on validation that both keep, of {', '.join(map(percent, DROPS))}; *target* is how much "
        "more often our answers are right there on test, where drops may differ from those on validation."
    )
    heads = ["data, hidden", "against", "area, points²", "width, points", "common seeds", "gap", "target", "drop"]
    return ["## Our curve and each baseline's", how, markdown(heads, lines)]


def _between(found: Mapping[str, Seeds], name: str, best: float) -> list[str]:
    ours, theirs = found[OURS], found[name]
    if not (common := ours.keys() & theirs.keys()):
        return [name, "no common seed", "–", "0", "–", "–", "–"]
    between, at = area(ours, theirs), at_equal_drop(ours, theirs, best, DROPS)
    space = ["no common range", "–"] if between is None else [points_of(between.area, 1e4), percent(between.width)]
    gap = ["–", "–", "none"] if at is None else [points_of(at.attack), points_of(at.target), percent(at.permitted)]
    return [name, *space, str(len(common)), *gap]


def _section(name: str, verdicts: Sequence[tuple[Claim, Verdict]], there: bool) -> str:
    parts = [f"## {_TITLES[name]}"]
    for claim, verdict in verdicts:
        if claim.figure == name:
            parts.append(f"**{claim.text}** Verdict: **{verdict.word}**.")
            parts += ["\n".join(f"- {line}" for line in verdict.lines)] if verdict.lines else []
    if there:
        parts += [f"![{_TITLES[name]}](../results/{name}/plot.svg)", f"[All numbers](../results/{name}/table.md)"]
    return "\n\n".join(parts)

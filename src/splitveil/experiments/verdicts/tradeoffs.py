"""Figures 4 to 6, and the comparison with every baseline."""

import itertools
from collections.abc import Callable, Sequence

from splitveil.experiments.areas import area
from splitveil.experiments.cells import Row
from splitveil.experiments.comparisons import pairs_of, points_of
from splitveil.experiments.frontier import DROPS, OURS, OURS_PLAIN, Point, Seeds, at_equal_drop, curves, undefended
from splitveil.experiments.paired import gap
from splitveil.experiments.tables import percent
from splitveil.experiments.verdicts.verdict import Part, Verdict, together


def both_errors(rows: Sequence[Row]) -> Verdict:
    """Figure 4, by data set, ours on the paper's training, accuracies of target and attack against m'.

    Holds if from the smallest to the largest m' both accuracies rise, their paired differences above 0 with the whole
    95 % interval, and no step between neighbours falls with its whole interval.
    """
    return together(_both_errors(rows, data, hidden) for data, hidden in pairs_of(rows))


def _both_errors(rows: Sequence[Row], data: str, hidden: str) -> Part:
    by_m: dict[int, dict[int, Point]] = {}
    for seed, points in curves(rows, data, hidden).get(OURS, {}).items():
        for one in points:
            by_m.setdefault(one.setting["m"], {})[seed] = one
    if len(by_m) < 2:
        return Part(data, "fewer than two numbers of components", None)
    sent = sorted(by_m)
    holds, texts = True, []
    for label in ("target", "attack"):
        line = [{seed: getattr(one, label) for seed, one in by_m[m].items()} for m in sent]
        rise = gap(line[-1], line[0])
        steps = [gap(later, earlier) for earlier, later in itertools.pairwise(line)]
        if rise is None or None in steps:
            return Part(data, "no common seed", None)
        back = any(step is not None and step.interval[1] < 0 for step in steps)
        holds = holds and rise.interval[0] > 0 and not back
        texts.append(f"{label} accuracy by {points_of(rise)}{', with a fall between' if back else ''}")
    return Part(data, f"from m'={sent[0]} to {sent[-1]} {' and '.join(texts)} points", holds)


def beats(name: str) -> Callable[[Sequence[Row]], Verdict]:
    """Figures 5 and 6: a judge of our method against another defence, see `Claim.judge`."""

    def judge(rows: Sequence[Row]) -> Verdict:
        """By data set; the claim speaks of most cases, so it holds if it does in more than half of those measured.

        A data set holds if the interval of the area between the two curves of attack error against target error lies
        above 0. Where the curves share no range of target errors (or too little for an interval), or one is a single
        point: if at the smallest permitted validation drop (0, 0.5, 1, 2, 5 points) that both reach, the other's attack
        is better than ours with the whole paired interval. Where they share no drop either, it is not measured.
        """
        return together((_better(rows, OURS, name, *pair) for pair in pairs_of(rows)), most=True)

    return judge


def beats_every_baseline(rows: Sequence[Row]) -> Verdict:
    """By data set and baseline, with the rule of figures 5 and 6; holds only if it does in every part.

    Since every part must hold, the many comparisons need no correction.
    """
    return together(
        _better(rows, OURS, name, data, hidden)
        for data, hidden in pairs_of(rows)
        for name in curves(rows, data, hidden)
        if name not in (OURS, OURS_PLAIN)
    )


def strongest_of_prior_work(rows: Sequence[Row]) -> Verdict:
    """By data set, adversarial training against learned noise and the bottleneck, with the rule of figures 5 and 6.

    The paper says "generally", so more than half of the measured parts are enough.
    """
    parts = (
        _better(rows, "adversarial", name, data, hidden)
        for data, hidden in pairs_of(rows)
        for name in ("bottleneck", "noise")
    )
    return together(parts, most=True)


def _better(rows: Sequence[Row], first: str, second: str, data: str, hidden: str) -> Part:
    found = curves(rows, data, hidden)
    what = f"against {second}"
    if first not in found or second not in found:
        return Part(data, f"{what}, of which there are no rows", None)
    between = area(found[first], found[second])
    if between is None:
        return _at_equal_drop(rows, found[first], found[second], what, data)
    text = f"{what} an area of {points_of(between.area, 1e4)} points² over {percent(between.width)} points"
    return Part(data, text, between.area.interval[0] > 0)


def _at_equal_drop(rows: Sequence[Row], first: Seeds, second: Seeds, what: str, data: str) -> Part:
    if not first.keys() & second.keys():
        return Part(data, f"{what}, whose rows are of other seeds", None)
    at = at_equal_drop(first, second, undefended(rows, data)[0], DROPS)
    if at is None:
        return Part(data, f"{what} no common target error, and no permitted drop that both reach", None)
    text = (
        f"{what} no common range; within a drop of {percent(at.permitted)} on validation its attack gains "
        f"{points_of(at.attack)} points, our target {points_of(at.target)}"
    )
    return Part(data, text, at.attack.interval[0] > 0)

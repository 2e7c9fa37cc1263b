"""Figure 3: the attack against the cut."""

import itertools
from collections.abc import Sequence
from statistics import fmean

from splitveil.experiments.cells import Row
from splitveil.experiments.comparisons import pairs_of, points_of
from splitveil.experiments.depth import (
    BOUNDED,
    CONVOLUTIONS,
    FREE,
    NONE,
    TOP,
    AtCut,
    Curve,
    Cuts,
    bits_of,
    cuts_of,
    kept_shares,
)
from splitveil.experiments.paired import gap
from splitveil.experiments.tables import percent
from splitveil.experiments.verdicts.verdict import Part, Verdict, together

_RAW, _FREE = Curve(NONE, "dense"), Curve(FREE, "patch")


def with_depth(rows: Sequence[Row]) -> Verdict:
    """By data set and line of figure 3 (undefended, distortion-free, fixed m' and ε within 1 point, each operator).

    Holds if the attack at the first cut is better than at the last with the whole paired interval, over the seeds that
    both have, and no step between neighbouring cuts rises with its whole interval. Cuts without a setting within 1
    point are left out. Cuts 1 to 3 meet fewer attacks than 4 to 6, so a fall from them is if anything understated, and
    a rise to the first of the others says nothing and is not counted.
    """
    return together(
        _with_depth(cuts, data, line.label)
        for data, hidden in pairs_of(rows)
        for line, cuts in cuts_of(rows, data, hidden).items()
    )


def _with_depth(cuts: Cuts, data: str, what: str) -> Part:
    line = {cut: its for cut, seeds in cuts.items() if (its := bits_of(seeds))}
    if len(line) < 2:
        return Part(data, f"{what} at fewer than two cuts", None)
    first, last = min(line), max(line)
    fall = gap(line[first], line[last])
    if fall is None:
        return Part(data, f"{what} without a common seed", None)
    steps = [
        (later, gap(line[later], line[earlier])) for earlier, later in itertools.pairwise(line)
        if (earlier in CONVOLUTIONS) == (later in CONVOLUTIONS)
    ]  # fmt: skip
    rises = [str(cut) for cut, step in steps if step is not None and step.interval[0] > 0]
    text = f"{what} by {points_of(fall)} points from cut {first} to {last}"
    text += f", with a rise to cut {', '.join(rises)}" if rises else ""
    return Part(data, text, fall.interval[0] > 0 and not rises)


def free_hides(rows: Sequence[Row]) -> Verdict:
    """By data set and cut: holds if the attack on distortion-free messages is worse than on the raw feature.

    With the whole paired interval. Fully connected cuts and the convolutions' patch operator are measured; on their
    dense operator it is the identity, since a zero-padded convolution with more outputs than inputs has no null space,
    so the claim cannot hold there.
    """
    parts: list[Part] = []
    for data, hidden in pairs_of(rows):
        found = cuts_of(rows, data, hidden)
        raw = found.get(_RAW, {})
        parts += [
            _lower(raw.get(cut, {}), its, data, _place(cut, "patch")) for cut, its in found.get(_FREE, {}).items()
        ]
        if cuts := [str(cut) for cut in raw if cut in CONVOLUTIONS]:
            parts.append(Part(data, f"cut {', '.join(cuts)}, dense: the identity, nothing is removed", False))
    return together(parts)


def bounded_hides_more(rows: Sequence[Row]) -> Verdict:
    """By data set, cut, operator and kind of bound (fixed m', ε): holds if the attack is worse than on distortion-free.

    With the whole paired interval, at the setting chosen on validation within 1 point of the best plainly trained
    model, over the seeds that have one; where none has, it is not measured. On a convolution's dense operator
    distortion-free is the raw feature.
    """
    parts: list[Part] = []
    for data, hidden in pairs_of(rows):
        found = cuts_of(rows, data, hidden)
        for defence, operator in itertools.product((TOP, BOUNDED), ("patch", "dense")):
            for cut, its in found.get(Curve(defence, operator), {}).items():
                if operator == "dense" and cut not in CONVOLUTIONS:
                    continue  # it has been judged with the patch operator's line, which shares it
                other = found.get(_RAW if operator == "dense" else _FREE, {}).get(cut, {})
                kind = "m'" if defence == TOP else "ε"
                parts.append(_lower(other, its, data, f"{_place(cut, operator)}, {kind}"))
    return together(parts)


def _place(cut: int, operator: str) -> str:
    return f"cut {cut}, {operator}" if cut in CONVOLUTIONS else f"cut {cut}"


def _lower(before: dict[int, AtCut], after: dict[int, AtCut], data: str, what: str) -> Part:
    within = bits_of(after)
    if not within:
        return Part(data, f"{what}: no setting within 1 point", None)
    fall = gap(bits_of(before), within)
    if fall is None:
        return Part(data, f"{what}: nothing to compare with", None)
    some = "" if len(within) == len(after) else f" ({len(within)} of {len(after)} seeds)"
    return Part(data, f"{what}: by {points_of(fall)} points{some}", fall.interval[0] > 0)


def keeps_more_with_depth(rows: Sequence[Row]) -> Verdict:
    """By data set: m'/rank within 1 point, the share of the components that is kept, against the cut.

    Holds if the share, a mean over the seeds, is larger at the last cut than at the first and falls between no two
    neighbours. m' is the smallest of the measured settings within 1 point on validation; the rank is what
    distortion-free sends; at convolutions both count the patch operator's filters. It is a choice on validation, not
    an estimate, so no interval decides: the seeds' range stands beside. Every cut so hides at equal target accuracy,
    while the paper speaks of equal obfuscation.
    """
    return together(_keeps(rows, data, hidden) for data, hidden in pairs_of(rows))


def _keeps(rows: Sequence[Row], data: str, hidden: str) -> Part:
    shares = kept_shares(rows, data, hidden)
    if len(shares) < 2:
        return Part(data, "m' and rank are known at fewer than two cuts", None)
    line = [fmean(its) for its in shares.values()]
    texts = [f"{_range(its)} % at cut {cut}" for cut, its in shares.items()]
    steady = all(later >= earlier for earlier, later in itertools.pairwise(line))
    return Part(data, f"kept {', '.join(texts)}", steady and line[-1] > line[0])


def _range(shares: Sequence[float]) -> str:
    mean = percent(fmean(shares))
    return mean if min(shares) == max(shares) else f"{mean} ({percent(min(shares))} to {percent(max(shares))})"

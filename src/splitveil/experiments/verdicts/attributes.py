"""Figure 7: several hidden attributes, of which adversarial training was told one."""

from collections.abc import Mapping, Sequence

from splitveil.experiments.attributes import Figure7, every_setting, figure7
from splitveil.experiments.cells import Row
from splitveil.experiments.comparisons import line_bits, lines_of, points_of
from splitveil.experiments.frontier import Point
from splitveil.experiments.paired import Bits, estimate, gap, means
from splitveil.experiments.tables import percent, summary
from splitveil.experiments.verdicts.verdict import Part, Verdict, together
from splitveil.statistics import Estimate

CORRELATED = ("High_Cheekbones", "Mouth_Slightly_Open")  # with smiling, as the paper says
MARGIN = 0.01


def hides_the_uncorrelated(rows: Sequence[Row]) -> Verdict:
    """By attribute that the paper does not except: holds if one component hides it as far as the answer allows.

    That is: the upper limit of the paired interval of the attack's excess over the attack on the same model's logits
    is at most 1 point. No message from which the answer follows can be asked for more. The advantage over the prior
    stands beside: what the answer itself tells of the attribute.
    """
    found = figure7(rows)
    return together(
        _hidden(rows, found, name, found.ours[name], "paper") for name in found.hidden if name not in CORRELATED
    )


def leaves_the_correlated(rows: Sequence[Row]) -> Verdict:
    """By attribute that the paper excepts: holds if the attack beats the prior by more than 1 point, whole interval."""
    found = figure7(rows)
    parts: list[Part] = []
    for name in (name for name in found.hidden if name in CORRELATED):
        if not found.ours[name]:
            parts.append(Part(name, "no rows", None))
            continue
        text, advantage = _advantage(rows, found, name, found.ours[name])
        parts.append(Part(name, text, advantage.interval[0] > MARGIN))
    return together(parts)


def blind_to_the_rest(rows: Sequence[Row]) -> Verdict:
    """Adversarial training before a fresh, strongest adversary, at the setting that figure 7 shows.

    For the attribute it was told: holds if it is hidden, by the rule for ours (excess over the plain model's logits,
    upper limit at most 1 point). For each other: holds if it is not hidden, the excess's lower limit above 1 point.
    """
    found = figure7(rows)
    parts: list[Part] = []
    for name in found.hidden:
        _, text, hidden = _hidden(rows, found, name, found.theirs[name], "plain")
        if name == found.told:
            least = [
                min(its, key=lambda one: one.attack_validation) for its in every_setting(rows, found).values() if its
            ]  # fmt: skip
            best = estimate(means([one.attack for one in least])) if least else None
            parts.append(Part(name, text if best is None else f"{text}, {percent(best)} % at its best setting", hidden))
        else:
            excess = _excess(rows, found, name, found.theirs[name], "plain")
            parts.append(Part(name, text, None if excess is None else excess.interval[0] > MARGIN))
    return together(parts)


def beats_adversarial(rows: Sequence[Row]) -> Verdict:
    """Ours with one component against adversarial training at the setting that figure 7 shows.

    Holds for the target if ours answers more often right, for an attribute if its attack is worse; each with the
    whole paired interval.
    """
    found = figure7(rows)
    ours, theirs = found.ours[found.told], found.theirs[found.told]
    better = gap({s: p.target for s, p in ours.items()}, {s: p.target for s, p in theirs.items()})
    parts = [_difference("target", better)]
    for name in found.hidden:
        parts.append(_difference(name, gap(_attacks(found.theirs[name]), _attacks(found.ours[name]))))
    return together(parts)


def _difference(name: str, better: Estimate | None) -> Part:
    if better is None:
        return Part(name, "no rows", None)
    return Part(name, f"better by {points_of(better)} points", better.interval[0] > 0)


def _hidden(rows: Sequence[Row], found: Figure7, name: str, points: Mapping[int, Point], training: str) -> Part:
    excess = _excess(rows, found, name, points, training)
    if excess is None:
        return Part(name, "no rows", None)
    text, _ = _advantage(rows, found, name, points)
    return Part(name, f"{text}, over the logits by {points_of(excess)}", excess.interval[1] <= MARGIN)


def _excess(
    rows: Sequence[Row], found: Figure7, name: str, points: Mapping[int, Point], training: str
) -> Estimate | None:
    return gap(_attacks(points), line_bits(rows, found.data, name, "logits", training=training))


def _attacks(points: Mapping[int, Point]) -> dict[int, Bits]:
    return {seed: one.attack for seed, one in points.items()}


def _advantage(rows: Sequence[Row], found: Figure7, name: str, points: Mapping[int, Point]) -> tuple[str, Estimate]:
    """The attack in words beside raw and prior, and its advantage over the prior: one seed's interval, or the range."""
    lines = lines_of(rows, found.data, name, training="plain")
    attack = estimate(means([one.attack for one in points.values()]))
    above = Estimate(**summary([one.numbers["leaks"][name]["advantage"] for one in points.values()]))
    raw = f" for {percent(lines['raw']['value'])} % raw" if lines else ""
    return f"{percent(attack)} %{raw}, over the prior by {points_of(above)}", above

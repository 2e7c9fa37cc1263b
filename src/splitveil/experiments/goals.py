"""The goal of this library, judged by data set and cut: what is lost, what leaks in excess, and how far it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitveil.experiments.cells import Row
from splitveil.experiments.comparisons import pairs_of
from splitveil.experiments.frontier import Point, Seeds, choose, curves, undefended
from splitveil.experiments.paired import Bits, difference, gap
from splitveil.statistics import Estimate

DROP = 0.01
EXCESS = 0.01
MOST = 16
"""Coefficients at most; finite messages may be of any number."""
SAME = 1.01
"""Edge computes that differ by at most this factor are equal."""
DEFAULTS = ("distilled", "codebook")
"""What the goal is judged on, fixed before any test score was seen: one for real numbers, one for finite messages."""
OTHERS = ("server-aware", "covariance-aware", "quantised")
_DEVICE = "device"
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Reach:
    """How one defence stands to the goal at one cut; shares of 1.

    Attributes:
        data, hidden, cut, defence: which one.
        finite: whether its messages are of a finite number; their attack is then held to the label line, that of real
            numbers to the logits line.
        points: the setting of each seed, chosen on validation: of those within the drop the one whose attack is
            weakest, or the most accurate one where there is none; of equals the one that sends least.
        within: how many seeds have a setting within the drop on validation.
        drop: on test, against the best on validation of the plainly trained models.
        own: on test, against the undefended model of the same seed.
        excess: of the attack, over the line that it is held to.
        ahead: how many more answers are right than of the answer on the device at equal edge compute, over common
            seeds; None where that was not measured.
        even: by seed with heads, how many times our edge compute the cheapest head takes that is at least as accurate
            on validation; None where no measured head is.
    """

    data: str
    hidden: str
    cut: int
    defence: str
    finite: bool
    points: Mapping[int, Point]
    within: int
    drop: Estimate
    own: Estimate
    excess: Estimate
    ahead: Estimate | None
    even: Mapping[int, float | None]

    @property
    def missed(self) -> tuple[float, float]:
        """By how much the estimates of drop and excess are above the goal; 0 where they are not."""
        return _over(self.drop, DROP), _over(self.excess, EXCESS)

    @property
    def word(self) -> str:
        """The verdict: "reached" where both intervals end within the goal."""
        if not any(self.missed):
            surely = not (_over(self.drop.interval[1], DROP) or _over(self.excess.interval[1], EXCESS))
            return "reached" if surely else "point estimate only"
        named = zip(("drop", "excess"), self.missed, strict=True)
        return "missed by " + " and ".join(f"{100 * by:.2f} ({name})" for name, by in named if by)

    @property
    def ahead_word(self) -> str:
        """Whether the answer beats the answer on the device, which is what a cut is worth making for."""
        if self.ahead is None:
            return "not measured"
        if self.ahead <= 0:
            return "no"
        return "yes" if self.ahead.interval[0] > 0 else "point estimate only"


def _over(value: float, limit: float) -> float:
    return max(0.0, float(value) - limit) if value > limit + _ROUNDING else 0.0


def reaches(rows: Sequence[Row], names: Sequence[str]) -> list[Reach]:
    """Every one of these defences at every data set and cut that has rows of it, and of a plainly trained model.

    Raises:
        ExperimentError: the rows are not of one training budget.
    """
    found = []
    for data, hidden in pairs_of(rows):
        its = [row for row in rows if row.config["data"] == data]
        if not any(row.config["training"] == "plain" for row in its):
            continue
        plain = undefended(its, data)
        for cut in cuts_of(its):
            by_defence = curves(its, data, hidden, cut)
            device = by_defence.get(_DEVICE, {})
            found += [
                one for name in names if (one := _reach((data, hidden, cut, name), by_defence, plain, device))
            ]  # fmt: skip
    return found


def cuts_of(rows: Sequence[Row]) -> list[int]:
    """The cuts that rows have, in the order of the goal: 4 to 6 first, then those at convolutions."""
    return sorted({row.config["cut"] for row in rows}, key=lambda cut: (cut < 4, cut if cut >= 4 else -cut))


def _reach(
    of: tuple[str, str, int, str], by_defence: Mapping[str, Seeds], plain: tuple[float, Bits], device: Seeds
) -> Reach | None:
    best, right = plain
    seeds = {
        seed: allowed
        for seed, points in by_defence.get(of[-1], {}).items()
        if (allowed := [one for one in points if _allowed(one)])
    }
    if not seeds:
        return None
    within = {seed: choose(points, best, DROP) for seed, points in seeds.items()}
    taken = {seed: within[seed] or max(reversed(points), key=_accuracy) for seed, points in seeds.items()}
    finite = messages_of(next(iter(taken.values()))) is not None
    line = "label" if finite else "logits"
    return Reach(
        *of, finite, taken, sum(one is not None for one in within.values()),
        drop=_mean(right.astype(float) - one.target for one in taken.values()),
        own=_mean(one.beside["undefended"].astype(float) - one.target for one in taken.values()),
        excess=_mean(one.attack.astype(float) - one.beside[line] for one in taken.values()),
        ahead=_ahead(taken, device), even=_even(taken, device),
    )  # fmt: skip


def _allowed(one: Point) -> bool:
    return messages_of(one) is not None or one.numbers["components"] <= MOST


def _accuracy(one: Point) -> float:
    return one.target_validation


def _mean(values: Any) -> Estimate:
    return difference(list(values))


def messages_of(one: Point) -> int | None:
    """How many different messages a setting has; None of real numbers."""
    return one.numbers.get("messages")


def _ahead(taken: Mapping[int, Point], device: Seeds) -> Estimate | None:
    """Ours less the most accurate on validation of the heads that cost the edge no more."""
    theirs = {
        seed: max(heads, key=_accuracy).target
        for seed, one in taken.items()
        if (heads := [head for head in device.get(seed, ()) if _macs(head) <= SAME * _macs(one)])
    }
    return gap({seed: one.target for seed, one in taken.items()}, theirs)


def _even(taken: Mapping[int, Point], device: Seeds) -> dict[int, float | None]:
    """Heads are few, and the next larger one may be far better: `_ahead` alone would hide that."""
    return {
        seed: min(
            (_macs(head) / _macs(one) for head in device[seed] if _accuracy(head) >= _accuracy(one)), default=None
        )
        for seed, one in taken.items()
        if device.get(seed)
    }


def _macs(one: Point) -> int:
    return int(one.numbers["edge_macs"])


@dataclass(frozen=True, eq=False)
class Fewest:
    """The smallest number of messages of one defence at one cut that keeps the drop on validation.

    Attributes:
        data, hidden, cut, defence: which one.
        messages: M; of those that the most seeds keep the drop with, the smallest. None: no seed does with any.
        most: the most messages that were tried.
        seeds: how many seeds keep the drop, and how many there are.
        points: the setting, by the seeds that do.
    """

    data: str
    hidden: str
    cut: int
    defence: str
    messages: int | None
    most: int
    seeds: tuple[int, int]
    points: Mapping[int, Point]


def fewest(rows: Sequence[Row], names: Sequence[str]) -> list[Fewest]:
    """The smallest M of each of these defences, data sets and cuts, where it sends finite messages."""
    found = []
    for data, hidden in pairs_of(rows):
        its = [row for row in rows if row.config["data"] == data]
        if not any(row.config["training"] == "plain" for row in its):
            continue
        best, _ = undefended(its, data)
        for cut in cuts_of(its):
            for name, seeds in curves(its, data, hidden, cut).items():
                if name in names and (one := _fewest((data, hidden, cut, name), seeds, best)):
                    found.append(one)
    return found


def _fewest(of: tuple[str, str, int, str], seeds: Seeds, best: float) -> Fewest | None:
    kept: dict[int, dict[int, Point]] = {}  # by what was asked for: some codewords may be unused, in one seed or other
    tried = {seed: [one for one in points if messages_of(one) is not None] for seed, points in seeds.items()}
    most = max((one.setting["messages"] for points in tried.values() for one in points), default=None)
    if most is None:
        return None
    for seed, points in tried.items():
        for one in points:
            if choose([one], best, DROP):
                kept.setdefault(one.setting["messages"], {})[seed] = one
    if not kept:
        return Fewest(*of, None, most, (0, len(seeds)), {})
    points_of = kept[min(kept, key=lambda asked: (-len(kept[asked]), asked))]
    messages = max(one.numbers["messages"] for one in points_of.values())
    return Fewest(*of, messages, most, (len(points_of), len(seeds)), points_of)

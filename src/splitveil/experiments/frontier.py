"""Defences at one cut as sets of points, and compared at equal target accuracy, matched on validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitveil.errors import ExperimentError
from splitveil.experiments.cells import Row
from splitveil.experiments.paired import Bits, difference, estimate, gap, means, p_value
from splitveil.measure.scores import unpack
from splitveil.statistics import Estimate, holm

OURS = "ours"
OURS_PLAIN = "ours, plain training"
DROPS = (0.0, 0.005, 0.01, 0.02, 0.05)
_OWN = {("top", "paper"): OURS, ("top", "plain"): OURS_PLAIN}
_AT_CUTS = ("free", "bounded")  # figure 3's, of which a row may hold one chosen setting only


@dataclass(frozen=True, eq=False)
class Point:
    """A defence at one setting: what chooses it (validation), and what is reported of it (test).

    Attributes:
        setting: the defence's settings.
        target_validation, attack_validation: accuracy of the answers, and of the strongest attack, shares of 1.
        target, attack: which of the n test samples are answered and guessed right, (n,).
        numbers: the row's own entry.
        beside: what stands beside it in the row, which of the n test samples are answered right by its "undefended"
            model, and guessed right by the reference attacks "label", "logits" and "raw".
        lines: the row's own entries of these attacks.
    """

    setting: dict[str, Any]
    target_validation: float
    attack_validation: float
    target: Bits
    attack: Bits
    numbers: dict[str, Any]
    beside: Mapping[str, Bits] = field(default_factory=dict)
    lines: Mapping[str, Any] = field(default_factory=dict)


Seeds = Mapping[int, Sequence[Point]]
"""A defence's points by the seed of its model."""


def rows_of(rows: Sequence[Row], data: str) -> list[Row]:
    """The rows of one data set.

    Raises:
        ExperimentError: they cannot stand in one comparison: they are not of the same epochs and precision, or the
            models that one training gave differ, as they do where processors or versions of torch differ.
    """
    found = [row for row in rows if row.config["data"] == data]
    budgets = sorted({(row.config["epochs"], row.config["precision"]) for row in found})
    if len(budgets) > 1:
        named = " and ".join(f"{epochs} epochs in {precision}" for epochs, precision in budgets)
        raise ExperimentError(f"rows of {data} were trained for {named}; compare rows of one training budget")
    models: dict[tuple[str, int], dict[str, list[str]]] = {}
    for row in found:
        config, answers = row.config, row.numbers["undefended"]["right"]
        same = models.setdefault((config["training"], config["seed"]), {})
        same.setdefault(answers, []).append(f"{config['defence']} at cut {config['cut']}")
    for (training, seed), same in models.items():
        if len(same) > 1:
            few, *others = sorted(same.values(), key=len)
            raise ExperimentError(
                f"rows of {data}, {training} training, seed {seed}, stand on models that answer differently, so they "
                f"were computed in unlike places and do not compare; move those of one away: {', '.join(few)} (the "
                f"other {sum(map(len, others))} rows are of another model)"
            )
    return found


def curves(rows: Sequence[Row], data: str, hidden: str, cut: int = 4, operator: str = "dense") -> dict[str, Seeds]:
    """All points of all defences of one data set, cut, operator and hidden attribute; ours first.

    Ours is the top components on the paper's training, and beside it on plain training. Every other defence counts on
    plain training only, which its own authors assume.

    Raises:
        ExperimentError: the rows are not of one training budget.
    """
    found: dict[str, dict[int, list[Point]]] = {}
    for row in rows_of(rows, data):
        name = _name(row.config)
        if name is None or (row.config["cut"], row.config["operator"]) != (cut, operator):
            continue
        entries = [one for one in row.numbers["points"] if hidden in one["leaks"]]
        more = {"beside": _beside(row.numbers, hidden), "lines": row.numbers["lines"][hidden]} if entries else {}
        points = [replace(point_of(one, hidden, row.numbers["n_test"]), **more) for one in entries]
        if points:
            found.setdefault(name, {}).setdefault(row.config["seed"], []).extend(points)
    return dict(sorted(found.items(), key=lambda item: (item[0] != OURS, item[0] != OURS_PLAIN)))


def _name(config: dict[str, Any]) -> str | None:
    defence, training = config["defence"], config["training"]
    if defence == "top":
        return _OWN[defence, training]
    return str(defence) if training == "plain" and defence not in _AT_CUTS else None


def point_of(one: dict[str, Any], hidden: str, n: int) -> Point:
    """A row's entry as a point, for one hidden attribute and n test samples."""
    leak, target = one["leaks"][hidden], one["target"]
    return Point(
        one["setting"], target["val"]["value"], leak["validation"][leak["best"]],
        unpack(target["right"], n), unpack(leak["right"], n), one,
    )  # fmt: skip


def _beside(numbers: dict[str, Any], hidden: str) -> dict[str, Bits]:
    packed = {name: line["right"] for name, line in numbers["lines"][hidden].items()}
    packed["undefended"] = numbers["undefended"]["right"]
    return {name: unpack(right, numbers["n_test"]) for name, right in packed.items()}


def undefended(rows: Sequence[Row], data: str) -> tuple[float, Bits]:
    """The plainly trained, undefended model that drops are measured against: the best on validation.

    Returns:
        its validation accuracy, and which test samples it answers right.

    Raises:
        ExperimentError: no row of this data set is trained plainly, or the rows are not of one training budget.
    """
    plain = [row.numbers for row in rows_of(rows, data) if row.config["training"] == "plain"]
    if not plain:
        raise ExperimentError(f"no row of {data} is trained plainly: run one, drops are measured against it")
    best = max(plain, key=lambda numbers: numbers["undefended"]["val"]["value"])
    return best["undefended"]["val"]["value"], unpack(best["undefended"]["right"], best["n_test"])


def choose(points: Sequence[Point], best: float, drop: float) -> Point | None:
    """Of the settings whose validation drop is at most ``drop``, the one whose strongest attack is weakest.

    Settings come from the weakest to the strongest privacy; of equals the last one counts, which sends least.
    """
    good = [one for one in reversed(points) if best - one.target_validation <= drop + 1e-12]
    return min(good, key=lambda one: one.attack_validation, default=None)


@dataclass(frozen=True)
class Match:
    """A defence at one permitted drop; shares of 1.

    Attributes:
        defence: its name.
        permitted: the drop permitted on validation.
        settings: what was chosen, by seed.
        missing: seeds none of whose settings is within the drop; the numbers are of the others.
        drop: of the target's test accuracy, against the plain undefended model.
        attack: test accuracy of the strongest attack.
        difference: its attack less ours on the same seeds; above 0, ours hides more. None of ours itself, and where
            no seed is common.
        p: two-sided p-value of the difference, by the bootstrap, corrected by Holm over all comparisons of the same
            call with ours; the same settings at several permitted drops are one comparison.
    """

    defence: str
    permitted: float
    settings: dict[int, dict[str, Any]]
    missing: tuple[int, ...]
    drop: Estimate
    attack: Estimate
    difference: Estimate | None = None
    p: float | None = None


def matched(
    by_defence: Mapping[str, Seeds], plain: tuple[float, Bits], drops: Sequence[float] = DROPS
) -> dict[str, list[Match | None]]:
    """Every defence at every permitted drop; None where no setting of any seed qualifies: nothing is extrapolated.

    Each seed's setting is chosen on validation. A seed without one is left out and named in ``missing``: leaving out
    the whole drop would hide what the other seeds reach, and taking its least bad setting would break the permission.
    Differences run over the seeds that both have. Intervals are bootstraps over the test samples and over the seeds:
    the same resample of samples for all, so that differences are paired.

    Args:
        by_defence: as `curves` gives.
        plain: as `undefended` gives.
        drops: permitted on validation, as shares.
    """
    ours = by_defence.get(OURS, {})
    pairs = {
        (name, drop): _pair(seeds, ours, plain[0], drop) for name, seeds in by_defence.items() for drop in drops
    }  # fmt: skip
    distinct = {pair.key: pair for (name, _), pair in pairs.items() if name != OURS and pair.gaps}
    corrected = dict(zip(distinct, holm([p_value(pair.gaps) for pair in distinct.values()]), strict=True))
    return {
        name: [_match(name, seeds, pairs[name, drop], plain[1], drop, corrected) for drop in drops]
        for name, seeds in by_defence.items()
    }


def chosen(seeds: Seeds, best: float, drop: float) -> dict[int, Point]:
    """`choose` for every seed; seeds without a setting within the drop are left out."""
    return {seed: one for seed, points in seeds.items() if (one := choose(points, best, drop))}


@dataclass(frozen=True, eq=False)
class _Pair:
    """What a defence and ours chose at one permitted drop, by seed."""

    its: dict[int, Point]
    own: dict[int, Point]

    @property
    def gaps(self) -> list[NDArray[np.float64]]:
        return [one.attack.astype(float) - self.own[seed].attack for seed, one in self.its.items() if seed in self.own]

    @property
    def key(self) -> tuple[int, ...]:
        """The same for the same comparison."""
        return tuple(id(one) for seed in self.its if seed in self.own for one in (self.its[seed], self.own[seed]))


def _pair(seeds: Seeds, ours: Seeds, best: float, drop: float) -> _Pair:
    return _Pair(chosen(seeds, best, drop), chosen(ours, best, drop))


def _match(
    name: str, seeds: Seeds, pair: _Pair, right: Bits, drop: float, corrected: Mapping[tuple[int, ...], float]
) -> Match | None:
    its = pair.its
    if not its:
        return None
    match = Match(
        name, drop, {seed: one.setting for seed, one in its.items()}, tuple(seed for seed in seeds if seed not in its),
        difference([right.astype(float) - one.target for one in its.values()]),
        estimate(means([one.attack for one in its.values()])),
    )  # fmt: skip
    if name == OURS or not pair.gaps:
        return match
    return replace(match, difference=difference(pair.gaps), p=corrected[pair.key])


@dataclass(frozen=True)
class AtDrop:
    """Two defences at the smallest drop on validation that both keep, over the seeds where both do.

    Attributes:
        permitted: the drop.
        attack: second's attack less first's, test accuracies, paired.
        target: first's answers less second's, test accuracies, paired: what it may owe to a drop of its own.
    """

    permitted: float
    attack: Estimate
    target: Estimate


def at_equal_drop(first: Seeds, second: Seeds, best: float, drops: Sequence[float]) -> AtDrop | None:
    """Compared at the smallest permitted drop that both reach on a common seed; None where there is none."""
    for drop in drops:
        ours, theirs = (chosen(its, best, drop) for its in (first, second))
        attack = gap(*({seed: one.attack for seed, one in its.items()} for its in (theirs, ours)))
        target = gap(*({seed: one.target for seed, one in its.items()} for its in (ours, theirs)))
        if attack is not None and target is not None:
            return AtDrop(drop, attack, target)
    return None

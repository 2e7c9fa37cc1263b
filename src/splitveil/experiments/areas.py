"""The area between two curves of attack error against target error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitveil.experiments.frontier import Point, Seeds
from splitveil.experiments.paired import estimate, over_seeds, resamples
from splitveil.statistics import Estimate, Floats, isotonic

_WITHOUT = 0.025


@dataclass(frozen=True)
class Area:
    """Area between two curves of attack error against target error; above 0, ours hides more at equal target error.

    Attributes:
        area: share times share, mean over the common seeds.
        width: of the common range of target errors, a share; the area over it is the mean gap.
        seeds: how many are common.
    """

    area: Estimate
    width: float
    seeds: int


def area(ours: Seeds, theirs: Seeds) -> Area | None:
    """Area between our curve and theirs over the target errors that both reach, with linear interpolation.

    Points dominated on validation are removed; coordinates are from test. There a curve that rises on validation may
    turn back by noise: both coordinates are made non-decreasing by isotonic regression in validation's order, which
    keeps the area continuous in the points. The interval is a bootstrap over test samples (the same resample for all
    points of both) and over the common seeds. Nearly vertical curves share a narrow range and so a small area, however
    far apart: read the width too.

    Returns:
        None where the curves have no common seed or range, or one of them has fewer than two points left; and where
        more than one resample in forty has no common range, since their areas of 0 would then be the interval's end.
    """
    common = [seed for seed in ours if seed in theirs]
    pairs = [(_envelope(ours[seed]), _envelope(theirs[seed])) for seed in common]
    if not pairs or any(len(curve) < 2 for pair in pairs for curve in pair):
        return None
    weights = resamples(len(pairs[0][0][0].target))
    found = [_between(_coordinates(own, weights), _coordinates(their, weights)) for own, their in pairs]
    if any(width[0] <= 0 or np.mean(width[1:] <= 0) > _WITHOUT for _, width in found):
        return None
    areas = over_seeds(np.stack([gap for gap, _ in found]))
    return Area(estimate(areas), float(np.mean([width[0] for _, width in found])), len(common))


def _envelope(points: Sequence[Point]) -> list[Point]:
    """Points that no other dominates on validation, by rising target error (and so by rising attack error)."""
    kept: list[Point] = []
    for one in sorted(points, key=lambda one: (-one.target_validation, one.attack_validation)):
        if not kept or one.attack_validation < kept[-1].attack_validation:
            kept.append(one)
    return kept


def _coordinates(points: Sequence[Point], weights: Floats) -> tuple[Floats, Floats]:
    """Target and attack errors of the points, each (R, points), non-decreasing."""
    n = weights.shape[1]
    x = weights @ ~np.stack([one.target for one in points], axis=1) / n
    y = weights @ ~np.stack([one.attack for one in points], axis=1) / n
    return isotonic(x), isotonic(y)


def _between(ours: tuple[Floats, Floats], theirs: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    low = np.maximum(ours[0][:, 0], theirs[0][:, 0])
    high = np.minimum(ours[0][:, -1], theirs[0][:, -1])
    return _under(*ours, low, high) - _under(*theirs, low, high), high - low


def _under(x: Floats, y: Floats, low: Floats, high: Floats) -> Floats:
    """Area under each row's line through (x, y), from low to high; 0 where high is not above low."""
    left, right = np.maximum(x[:, :-1], low[:, None]), np.minimum(x[:, 1:], high[:, None])
    run = np.diff(x, axis=1)
    slope = np.divide(np.diff(y, axis=1), run, out=np.zeros_like(run), where=run > 0)
    middle = y[:, :-1] + slope * ((left + right) / 2 - x[:, :-1])
    return np.asarray((np.maximum(right - left, 0) * middle).sum(1))

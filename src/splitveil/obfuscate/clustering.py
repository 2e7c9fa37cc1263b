"""Clusters of answers: few distributions that stand for many, at the least KL divergence."""

import torch
from torch import Tensor

_ROUNDS = 50
_STARTS = 4
_BINS = 512


def clusters(answers: Tensor, count: int, seed: int) -> Tensor:
    """A cluster for each answer, such that Σ KL(answer ‖ mean of its cluster) is small.

    For two classes the optimum is a partition into intervals, and it is found exactly (over 512 quantiles, where there
    are more different answers); for more classes it is Lloyd's algorithm in KL, the best of four starts (Banerjee,
    Merugu, Dhillon and Ghosh 2005).

    Args:
        answers: probabilities (N, classes).
        count: clusters at most.
        seed: of the starts.

    Returns:
        (N,), 0 to the number of clusters − 1, none of them empty.
    """
    answers = answers.double()
    found = _intervals(answers[:, 1], count) if answers.shape[1] == 2 else _lloyd(answers, count, seed)
    numbered: Tensor = torch.unique(found, return_inverse=True)[1]
    return numbered


def _intervals(p: Tensor, count: int) -> Tensor:
    """The best partition of numbers in [0, 1] into intervals, by dynamic programming over sorted bins."""
    different, place = torch.unique(p, return_inverse=True)
    if len(different) > _BINS:
        place = p.argsort().argsort() * _BINS // len(p)
    size = torch.bincount(place).double()
    total = torch.zeros(len(size), dtype=torch.float64).index_add(0, place, p)
    sizes, sums = (torch.cat([x.new_zeros(1), x.cumsum(0)]) for x in (size, total))
    # Cost of one interval from bin i up to, not including, j: its size times the entropy of its mean.
    weight = (sizes[None, :] - sizes[:, None]).clamp(min=0)
    mean = ((sums[None, :] - sums[:, None]) / weight.clamp(min=1)).clamp(0, 1)
    cost = weight * (torch.special.entr(mean) + torch.special.entr(1 - mean))
    cost = torch.where(torch.ones_like(cost).triu(1).bool(), cost, torch.inf)
    best, cuts = cost[0], []
    for _ in range(min(count, len(size)) - 1):
        value, cut = (best[:, None] + cost).min(0)
        better = value < best
        cuts.append(torch.where(better, cut, -1))
        best = torch.where(better, value, best)
    marks, end = torch.zeros(len(size) + 1, dtype=torch.long), len(size)
    for cut in reversed(cuts):
        if (at := int(cut[end])) > 0:
            marks[at], end = 1, at
    return marks.cumsum(0)[place]


def _lloyd(answers: Tensor, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    results = [_once(answers, min(count, len(answers)), generator) for _ in range(_STARTS)]
    return min(results, key=lambda result: result[0])[1]


def _once(answers: Tensor, count: int, generator: torch.Generator) -> tuple[float, Tensor]:
    entropy = torch.special.entr(answers).sum(1)
    chosen = torch.randint(len(answers), (1,), generator=generator)
    while len(chosen) < count:  # as k-means++: what is far from all chosen is likely to be next
        nearest = _divergences(answers, entropy, answers[chosen]).min(1).values.clamp(min=0)
        if not float(nearest.sum()):
            break
        chosen = torch.cat([chosen, torch.multinomial(nearest, 1, generator=generator)])
    centres = answers[chosen]
    for _ in range(_ROUNDS):
        member = _divergences(answers, entropy, centres).argmin(1)
        sizes = torch.bincount(member, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add(0, member, answers)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
    costs, member = _divergences(answers, entropy, centres).min(1)
    return float(costs.sum()), member


def _divergences(answers: Tensor, entropy: Tensor, centres: Tensor) -> Tensor:
    """KL(answer ‖ centre), (N, centres); a centre's zeros are taken as tiny."""
    return -entropy[:, None] - answers @ centres.clamp(min=1e-12).log().mT

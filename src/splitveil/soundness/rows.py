"""Whether each row of a batch is answered by itself: alone, among any others, in any order, and each time alike."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT = 1e-6
"""Share of the answers' range by which a row may differ between two runs of equal length. The same products are added
in the same order then, and on a processor not a bit differs."""
ROUNDING = 1e-4
"""The same between batches of different lengths: other kernels add in another order, which changes some 1e-6 of the
range, and 1e-5 in deep networks; what mixes rows changes percents."""

Run = Callable[[Tensor], Tensor]
"""Answers (B, …) of inputs (B, …)."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What a half is tried on.

    Attributes:
        batch: inputs (B, …), at least three.
        swapped: the same, with other rows beside the first, the middle and the last one.
    """

    batch: Tensor
    swapped: Tensor

    @classmethod
    def of(cls, batch: Tensor, others: Tensor) -> "Rows":
        """A batch (B, …), and others (N, …) that its rows are tried among, too."""
        kept = probes(len(batch))
        free = [row for row in range(len(batch)) if row not in kept]
        swapped = batch.clone()
        swapped[free] = others[torch.arange(len(free)) % len(others)].to(batch)
        return cls(batch, swapped)


@dataclass(frozen=True, eq=False)
class Dependence:
    """A row whose answer depends on more than itself.

    Attributes:
        when: how it was noticed.
        size: of the difference, as a share of the range of the answers.
        one, other: two inputs (B, …) and (B', …) that tell the answers apart.
        rows: where the row is in each.
    """

    when: str
    size: float
    one: Tensor
    other: Tensor
    rows: tuple[int, int]


def probes(count: int) -> tuple[int, ...]:
    """The rows that are looked at: the first, the middle and the last, as some operations go one way only."""
    return tuple(dict.fromkeys((0, count // 2, count - 1)))


def check_rows(run: Run, rows: Rows) -> tuple[Rows, Dependence | None]:
    """What is answered to both batches, and the first dependence that is found, or None.

    Args:
        run: of half a model or a graph; it must not change what it is given.
        rows: what it is tried on.
    """
    answers = Rows(run(rows.batch), run(rows.swapped))
    return answers, _dependence(run, rows, answers.batch, answers.swapped)


def _dependence(run: Run, rows: Rows, answers: Tensor, among: Tensor) -> Dependence | None:
    batch, kept = rows.batch, probes(len(rows.batch))
    again, turned = run(batch), run(batch.flip(0)).flip(0)
    for row in range(len(batch)):
        if (size := _apart(answers, answers[row], again[row])) > EXACT:
            return Dependence("from one call to the next", size, batch, batch, (row, row))
    for row in kept:
        alone = run(batch[row : row + 1])
        if (size := _apart(answers, answers[row], alone[0])) > ROUNDING:
            return Dependence("between alone and among others", size, batch, batch[row : row + 1], (row, 0))
    for row in kept:
        if (size := _apart(answers, answers[row], among[row])) > EXACT:
            return Dependence("with the others in its batch", size, batch, rows.swapped, (row, row))
    for row in range(len(batch)):
        if (size := _apart(answers, answers[row], turned[row])) > ROUNDING:
            there = len(batch) - 1 - row
            return Dependence("with the order of the batch", size, batch, batch.flip(0), (row, there))
    return None


def _apart(answers: Tensor, one: Tensor, other: Tensor) -> float:
    """How far two answers to one row lie apart, as a share of the range of all answers."""
    return apart(one, other, span(answers))


def span(values: Tensor) -> float:
    """The range of all finite numbers; their size where they are all equal."""
    finite = values[values.isfinite()].double()
    if not finite.numel():
        return 1.0
    return float(finite.max() - finite.min()) or float(finite.abs().max()) or 1.0


def apart(one: Tensor, other: Tensor, scale: float) -> float:
    """The largest difference of two tensors, as a share; infinite where only one of them has a number."""
    if one.shape != other.shape:
        return float("inf")
    a, b = one.double(), other.double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, torch.zeros_like(a), (a - b).abs()).nan_to_num(nan=float("inf"))
    return float(gap.max()) / scale if gap.numel() else 0.0


def share_of(gap: float) -> str:
    """A difference, as a share of a range, in words."""
    if gap >= 1e9:  # one of the two is no number at all
        return "all"
    return f"{gap:.1%}" if gap >= 1e-3 else f"{gap:.0e}"

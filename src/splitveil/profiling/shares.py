"""Shares of the samples with their intervals."""

from torch import Tensor

from splitveil.profile import Interval
from splitveil.statistics import drop_upper_limit, proportion

CONFIDENCE = 0.95


def share(found: Tensor) -> Interval:
    """The share of samples (N,) that are true, with Wilson's interval."""
    return Interval.model_validate(proportion(found.numpy()).as_row())


def drop(n: int, lost: int, gained: int) -> Interval:
    """By how much the share of right answers falls, with what the tests of `choose` exclude on either side."""
    tail = (1 - CONFIDENCE) / 2
    low, high = -drop_upper_limit(n, gained, lost, tail), drop_upper_limit(n, lost, gained, tail)
    return Interval(value=(lost - gained) / n, low=low, high=high)

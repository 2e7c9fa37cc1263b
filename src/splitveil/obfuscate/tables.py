"""Finite messages: numbers of a few values each, which decode by looking up tables and adding."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from splitveil.errors import OperatorError, ShapeError
from splitveil.message import Message


class Tables(ABC):
    """What obfuscators share whose messages are digits d_1 … d_G, and decode to Σ_g table_g[d_g].

    Attributes:
        table: the rows of all digits, one digit's after the other's, (Σ levels, n).
        levels: values of each digit.
        feature_shape: shape of one feature, n numbers.
        name: of the method.
    """

    table: Tensor
    levels: tuple[int, ...]
    feature_shape: tuple[int, ...]
    name: str

    @property
    def message(self) -> Message:
        """Whole numbers, of which there are finitely many."""
        return Message((len(self.levels),), dtype="int64", levels=self.levels)

    @abstractmethod
    def encode(self, z: Tensor) -> Tensor:
        """Digits (B, G), int64, of features (B, *feature)."""

    def decode(self, message: Tensor) -> Tensor:
        """Features z' (B, *feature) of digits (B, G)."""
        return look_up(self.table.to(message.device), self.levels, message).reshape(len(message), *self.feature_shape)

    def _check_table(self) -> None:
        n = math.prod(self.feature_shape)
        if not self.levels or min(self.levels) < 1 or tuple(self.table.shape) != (sum(self.levels), n):
            raise ShapeError(
                f"a table of the shape {tuple(self.table.shape)} has no rows of {n} numbers for digits of "
                f"{list(self.levels)} values"
            )

    def finish(self, message: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002 (the interface's)
        """Never offered; raises `OperatorError`."""
        raise OperatorError("these messages carry a feature; decode one and run the server on it")


def look_up(table: Tensor, levels: Sequence[int], digits: Tensor) -> Tensor:
    """Sums (B, n) of one row of the table for each digit (B, G)."""
    starts = torch.tensor([0, *levels[:-1]], device=digits.device).cumsum(0)
    rows = table[digits.long() + starts]
    return rows.sum(1)

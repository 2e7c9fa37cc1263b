"""The interface of every obfuscator, and the public facts about its messages; free of torch at run time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Message:
    """What is known in public about an obfuscator's messages.

    Attributes:
        shape: shape of one message; axis 0 counts the components, of which the first m' are sent.
        carries: what a message decodes to, the ``feature`` or the ``pre-activation`` of the server's first layer.
        fixed_length: whether every message has all components; otherwise its length tells something too.
        dtype: type of one coefficient.
        levels: of a finite message, how many values each of its numbers takes, from 0 on; None where they are real.
        random: whether the same feature may give different messages; an adversary then trains on several of each.
    """

    shape: tuple[int, ...]
    carries: Literal["feature", "pre-activation"] = "feature"
    fixed_length: bool = True
    dtype: str = "float32"
    levels: tuple[int, ...] | None = None
    random: bool = False

    @property
    def distinct(self) -> int | None:
        """How many different messages there are, where that is finite."""
        return None if self.levels is None else math.prod(self.levels)


class Obfuscator(Protocol):
    """What every defence offers: ours, and the baselines."""

    @property
    def name(self) -> str:
        """Short name for tables and the command line."""
        ...

    @property
    def message(self) -> Message:
        """Public facts about the messages."""
        ...

    def encode(self, z: Tensor) -> Tensor:
        """Messages (B, *message.shape) of features (B, *feature)."""
        ...

    def decode(self, message: Tensor) -> Tensor:
        """Features z' (B, *feature); raises `OperatorError` where the message has none."""
        ...

    def finish(self, message: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the server's first layers without bias; only where the message carries them."""
        ...

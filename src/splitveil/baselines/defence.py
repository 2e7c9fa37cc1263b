"""The interface of every baseline: fitted to a plainly trained model, it gives a split model and an obfuscator."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from splitveil.data import Dataset
from splitveil.errors import BaselineError
from splitveil.message import Obfuscator
from splitveil.split import SplitModel
from splitveil.train import Progress, Recipe


@dataclass(frozen=True, eq=False)
class Undefended:
    """What every defence starts from, and the budget that it has.

    Attributes:
        model: plainly trained with ``recipe``, in evaluation mode; a defence works on a copy and leaves it unchanged.
        at: the cut, see `SplitModel`.
        data: with which it was trained.
        recipe: of the plain training; a defence that trains a network of its own has the same epochs, seed and
            precision.
        hidden: the one attribute that a supervised defence is told; others must not read any.
        progress: called as (done, in all, text).
    """

    model: nn.Module
    at: int | str
    data: Dataset
    recipe: Recipe
    hidden: str | None = None
    progress: Progress | None = None

    @property
    def secret(self) -> str:
        """The attribute to hide; raises `BaselineError` where none is named or the data has none of this name."""
        if self.hidden is None:
            raise BaselineError("a supervised defence must be told which hidden attribute to hide; name one")
        if self.hidden not in self.data.hidden_classes:
            known = ", ".join(self.data.hidden_classes) or "none"
            raise BaselineError(f"{self.data.name} has no hidden attribute {self.hidden!r}; it has: {known}")
        return self.hidden


@dataclass(frozen=True, eq=False)
class Defended:
    """A fitted defence.

    Attributes:
        split: the model whose halves run; its own copy where the defence has changed it.
        veil: what obfuscates at the cut; `Identity` where the defence is in the model's weights.
        facts: what fitting has found or chosen, in JSON values.
    """

    split: SplitModel
    veil: Obfuscator
    facts: dict[str, Any] = field(default_factory=dict)


class Defence(Protocol):
    """A baseline at one setting: a frozen dataclass of JSON values, so that a result can name it.

    To add one: write such a class in a file of its own, and its grid of settings into `BASELINES`.
    """

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    @property
    def supervised(self) -> bool:
        """Whether it is told a hidden attribute."""
        ...

    def fit(self, undefended: Undefended) -> Defended:
        """Fit to the training part, choose on validation, leave the test part alone."""
        ...

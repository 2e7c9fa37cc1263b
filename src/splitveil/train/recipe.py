"""How to train: the settings, and the recipes that have a name."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, get_args

from splitveil.errors import RecipeError
from splitveil.train.precision import Precision

_MOST = 2**32 - 1  # seeds beyond would not fit into torch's generator
_PAPER = {"removal": 0.5, "decov": 0.001, "variational": 0.1}


@dataclass(frozen=True)
class Recipe:
    """How to train (paper sections 4.3 and 5.1; batch size, mirror images and weights are ours: the paper has none).

    `Recipe()` is plain training; `Recipe.paper()` adds the paper's three ingredients at the weights that
    ``splitveil reproduce weights`` found best on validation data. Zero switches an ingredient off.

    Attributes:
        epochs: passes over the training part.
        seed: of the order of the samples, and of whatever is random in a step.
        batch_size: samples per step.
        learning_rate: of Adam; divided by 10 after 40 % and after 80 % of the epochs.
        flip: mirror half of the images where the data set allows it (`Dataset.mirror`: faces, not digits).
        precision: "float32", or "bfloat16" for the products of a step: about twice as fast where the processor has
            instructions for it, as fast as float32 where not. Weights, optimiser and evaluation stay in float32.
        removal: share of each batch from which signal content is removed, at one layer per step.
        decov: weight of the DeCov penalty at cuts 2 to 6 in turn.
        variational: weight of the pull of the features towards N(0, I) at cuts 2 to 6 in turn.

    Raises:
        RecipeError: a value is impossible.
    """

    epochs: int = 50
    seed: int = 0
    batch_size: int = 128
    learning_rate: float = 1e-3
    flip: bool = True
    precision: Precision = "float32"
    removal: float = 0.0
    decov: float = 0.0
    variational: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("seed", 0), ("batch_size", 2)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= _MOST:  # True is no number of epochs
                raise RecipeError(f"{name} must be a whole number from {least} to {_MOST}, not {value!r}")
        if not (_is_number(self.learning_rate) and 0 < self.learning_rate < float("inf")):
            raise RecipeError(f"learning_rate must be a positive number, not {self.learning_rate!r}")
        if type(self.flip) is not bool:
            raise RecipeError(f"flip must be True or False, not {self.flip!r}")
        if self.precision not in get_args(Precision):
            raise RecipeError(f"precision must be float32 or bfloat16, not {self.precision!r}")
        if not (_is_number(self.removal) and 0 <= self.removal <= 1):
            raise RecipeError(f"removal must be a share from 0 to 1, not {self.removal!r}")
        for name in ("decov", "variational"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value < float("inf")):
                raise RecipeError(f"{name} must be a number of at least 0, not {value!r}")

    @classmethod
    def paper(cls, **settings: Any) -> Self:
        """The paper's recipe; settings override its weights; raises `RecipeError` as `from_mapping` does."""
        return cls.from_mapping({**_PAPER, **settings})

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> Self:
        """A recipe from named settings; raises `RecipeError` on a name that is not a setting."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise RecipeError(f"a recipe has no setting {unknown[0]!r}; it has: {', '.join(known)}")
        return cls(**settings)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)

"""What a claim is, and how the verdicts of its parts become one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from splitveil.experiments.cells import Row

Word = Literal["holds", "holds in part", "does not hold here", "not measured"]
_GROUPS: tuple[tuple[str, bool | None], ...] = (("holds", True), ("does not hold", False), ("not measured", None))


class Part(NamedTuple):
    """A claim on a part of the rows.

    Attributes:
        about: the data set, or what else the parts are listed by.
        text: the numbers in words.
        holds: None where it is not measured.
    """

    about: str
    text: str
    holds: bool | None


@dataclass(frozen=True)
class Verdict:
    """What the rows say of a claim.

    Attributes:
        word: the verdict.
        parts: what it is made of.
    """

    word: Word
    parts: tuple[Part, ...]

    @property
    def lines(self) -> list[str]:
        """The numbers, a line for each data set or what else the parts are listed by."""
        return [f"{about}: {_line([one for one in self.parts if one.about == about])}" for about in self._abouts]

    @property
    def sentence(self) -> str:
        """The numbers, in one."""
        return " ".join(self.lines) or "No rows."

    @property
    def _abouts(self) -> list[str]:
        return list(dict.fromkeys(one.about for one in self.parts))


@dataclass(frozen=True)
class Claim:
    """One statement of the paper.

    Attributes:
        figure: the experiment whose rows decide.
        text: what it says, in our words.
        judge: the rows' verdict; its docstring states the rule.
    """

    figure: str
    text: str
    judge: Callable[[Sequence[Row]], Verdict]


def together(parts: Iterable[Part], *, most: bool = False) -> Verdict:
    """Holds where it does in every part that is measured, in part where in some.

    Args:
        parts: of the claim.
        most: the claim speaks of most cases, so that more than half of the measured parts are enough.
    """
    found = tuple(parts)
    known = [one.holds for one in found if one.holds is not None]
    word: Word = "not measured"
    if known:
        enough = sum(known) > len(known) / 2 if most else all(known)
        word = "holds" if enough else "holds in part" if any(known) else "does not hold here"
    return Verdict(word, found)


def _line(parts: list[Part]) -> str:
    texts = [(word, [one.text for one in parts if one.holds is holds]) for word, holds in _GROUPS]
    return " ".join(f"{word}: {'; '.join(its)}." for word, its in texts if its)

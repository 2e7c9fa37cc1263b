"""Which secrets an adversary can learn, and what is to be said of those that it can hardly learn."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from splitveil.data import Dataset
from splitveil.errors import AttackError
from splitveil.obfuscate import PrivacyWarning

RARE = 10
"""Training samples of a value below which an attack says little: on the raw feature of digit-pairs, the better of two
attacks found one digit among ten in 7 to 61 % of its messages from up to 3 samples, in 74 to 79 % from 10, and in
89 to 98 % from 50."""


@dataclass(frozen=True, eq=False)
class Secret:
    """A hidden attribute as an adversary can learn it: of the other parts those samples whose value occurs in training.

    An adversary that has never seen a value cannot name it, whatever is sent: such samples would read as privacy. The
    estimates are therefore of the values that it knows.

    Attributes:
        values: by part, (samples that count,).
        rows: by part, which samples these are; None for all of them.
        n_values: how many values have a name.
    """

    values: dict[str, Tensor]
    rows: dict[str, Tensor | None]
    n_values: int

    @classmethod
    def of(cls, data: Dataset, hidden: str) -> "Secret":
        """The secret of a data set; raises `AttackError` where there is none, or none that can be learnt."""
        if hidden not in data.hidden_classes:
            known = ", ".join(data.hidden_classes) or "none"
            raise AttackError(f"{data.name} has no hidden attribute {hidden!r}; it has: {known}")
        learnt = torch.unique(data.train.hidden[hidden])
        values: dict[str, Tensor] = {}
        rows: dict[str, Tensor | None] = {}
        for name, part in data.parts.items():
            known_here = torch.isin(part.hidden[hidden], learnt)
            if not known_here.any():
                raise AttackError(
                    f"no value of {hidden!r} in the {name} part of {data.name} occurs in training, so no adversary "
                    "could name one; split so that each value is in every part, not by groups of the secret itself"
                )
            rows[name] = None if known_here.all() else known_here.nonzero().squeeze(1)
            values[name] = part.hidden[hidden][known_here]
            if len(torch.unique(values[name])) < 2:
                less = "" if rows[name] is None else " once values that do not occur in training are left out"
                raise AttackError(
                    f"the hidden attribute {hidden!r} is constant in the {name} part{less}, so there is no secret"
                )
        return cls(values, rows, len(data.hidden_classes[hidden]))


def warn_of_secret(data: Dataset, hidden: str) -> None:
    """Say what a reader of the estimates has to know of the secret: a `PrivacyWarning` for each such thing."""
    secret = Secret.of(data, hidden)
    for sentence in (_unknown(data, hidden, secret), _rare(hidden, secret), _answered(data, hidden)):
        if sentence:
            warnings.warn(sentence, PrivacyWarning, stacklevel=4)


def _unknown(data: Dataset, hidden: str, secret: Secret) -> str:
    rows = secret.rows["test"]
    if rows is None:
        return ""
    return (
        f"{len(data.test) - len(rows)} of the {len(data.test)} test samples have values of {hidden!r} that do not "
        f"occur in training; no adversary could name them, so the estimates are of the other {len(rows)}"
    )


def _rare(hidden: str, secret: Secret) -> str:
    counts = secret.values["train"].bincount(minlength=secret.n_values)
    rare = (counts > 0) & (counts < RARE)
    share = float(rare[secret.values["test"]].double().mean())
    if not rare.any():
        return ""
    return (
        f"{int(rare.sum())} of the {int((counts > 0).sum())} values of {hidden!r}, {share:.0%} of the test samples, "
        f"have fewer than {RARE} training samples; an adversary with more would find out more than is estimated here"
    )


def _answered(data: Dataset, hidden: str) -> str:
    """Whether the secret follows from the target, so that the right answer itself tells it."""
    pairs = torch.cat([torch.stack([part.y, part.hidden[hidden]]) for part in data.parts.values()], dim=1)
    pairs = torch.unique(pairs, dim=1)
    if pairs.shape[1] > len(torch.unique(pairs[0])):
        return ""
    return f"{hidden!r} follows from the target, so whoever learns the right answer knows it, whatever is sent"

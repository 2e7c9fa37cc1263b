"""Scoring one attack on the test part: accuracy and its relatives, each with an interval."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from splitveil.attack import Guess, View
from splitveil.errors import AttackError
from splitveil.statistics import Bootstrap, Estimate, Floats, balanced_accuracy, leaked_bits, macro_auc, proportion

Right = NDArray[np.bool_]
ESTIMATES = ("accuracy", "balanced", "auc", "bits")


@dataclass(frozen=True, eq=False)
class AttackScore:
    """How well the best attack of a suite does on the test part; every estimate with its 95 % interval.

    Each estimate is of the attack that did best by it on validation: where most people share one value, the one that
    is right most often may be one that always names this value, while another tells far more.

    Attributes:
        best: the attack that was right most often on validation.
        best_by: the attack that did best there by each other estimate.
        accuracy: share of secrets guessed.
        balanced: mean of that share over the secret's values.
        auc: area under the one-against-rest curve, mean over the secret's values.
        bits: leaked bits, H(secret) − cross-entropy of the attack; in expectation a lower bound on what a perfect
            adversary gets; negative where the attack knows less than the prior.
        correct: which test secrets were guessed, (N,).
        validation: accuracy of each attack on validation.
        several: accuracy from several messages of one subject, by their number; see `from_several`.
    """

    best: str
    best_by: dict[str, str]
    accuracy: Estimate
    balanced: Estimate
    auc: Estimate
    bits: Estimate
    correct: Right
    validation: dict[str, float]
    several: dict[int, Estimate] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """For JSON; which secrets were guessed is packed, eight to a byte."""
        return {
            "best": self.best, "best_by": self.best_by,
            **{name: getattr(self, name).as_row() for name in ESTIMATES},
            "right": pack(self.correct), "validation": self.validation,
            "several": {str(count): found.as_row() for count, found in self.several.items()},
        }  # fmt: skip

    @classmethod
    def from_row(cls, row: dict[str, Any], n: int) -> "AttackScore":
        """What `as_row` has given for n test samples."""
        estimates = {name: Estimate(**row[name]) for name in ESTIMATES}
        several = {int(count): Estimate(**found) for count, found in row["several"].items()}
        return cls(
            best=row["best"], best_by=row["best_by"], **estimates, correct=unpack(row["right"], n),
            validation=row["validation"], several=several,
        )  # fmt: skip


def pack(right: Right) -> str:
    """Which samples are right, eight to a byte, in hex digits."""
    return np.packbits(right).tobytes().hex()


def unpack(packed: str, n: int) -> Right:
    """What `pack` has made of n samples."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8), count=n).astype(bool)


def guessed(name: str, guess: Guess, view: View) -> Floats:
    """Log-probabilities (N, values) of an attack; raises `AttackError` where they are not finite."""
    log_probabilities = guess(view).double().numpy()
    if not np.isfinite(log_probabilities).all():
        raise AttackError(f"the attack {name!r} gave log-probabilities that are not finite; make it give finite ones")
    return np.asarray(log_probabilities)


def ranks(log_probabilities: Floats, secret: Tensor) -> dict[str, tuple[float, float]]:
    """How good an attack is on validation, by each of `ESTIMATES`; of equals the one with the least cross-entropy."""
    truth = secret.numpy()
    correct = log_probabilities.argmax(1) == truth
    once = np.ones((1, len(truth)))
    told = float(log_probabilities[np.arange(len(truth)), truth].mean())
    balanced, auc = balanced_accuracy(correct, truth)(once), macro_auc(log_probabilities, truth)(once)
    return {
        "accuracy": (float(correct.mean()), told), "balanced": (float(balanced[0]), told),
        "auc": (float(auc[0]), told), "bits": (told, told),
    }  # fmt: skip


def score(
    chosen: dict[str, tuple[str, Guess]],
    test: View,
    secret: Tensor,
    *,
    validation: dict[str, float],
    train_secret: Tensor,
    several: Sequence[int] = (),
) -> AttackScore:
    """Score the chosen attacks, one by each of `ESTIMATES`; raises `AttackError` where one's numbers are not finite."""
    truth = secret.numpy()
    known = {name: guessed(name, guess, test) for name, guess in dict(chosen.values()).items()}
    accuracy, balanced, auc, bits = (known[chosen[by][0]] for by in ESTIMATES)
    correct = accuracy.argmax(1) == truth
    boot = Bootstrap(len(truth))
    counts = np.bincount(train_secret.numpy(), minlength=accuracy.shape[1]) + 1.0
    gains = accuracy - np.log(counts / counts.sum())
    return AttackScore(
        best=chosen["accuracy"][0],
        best_by={by: name for by, (name, _) in chosen.items() if by != "accuracy"},
        accuracy=proportion(correct),
        balanced=boot.score(balanced_accuracy(balanced.argmax(1) == truth, truth)),
        auc=boot.score(macro_auc(auc, truth)),
        bits=boot.score(leaked_bits(bits, truth)),
        correct=correct,
        validation=validation,
        several={count: from_several(gains, truth, count) for count in several},
    )


def from_several(gains: NDArray[Any], truth: NDArray[Any], count: int) -> Estimate:
    """Accuracy where an adversary knows that ``count`` messages come from one subject, and sums their evidence.

    The subject is drawn evenly, so the sum of log p(subject | message) − log p(subject) decides. Each subject's test
    messages are dealt into groups; what is left over is not used.

    Args:
        gains: log p(subject | message) − log p(subject), (N, subjects).
        truth: the subject of each message, (N,).
        count: messages per group.

    Raises:
        AttackError: no subject has so many test messages.
    """
    generator = np.random.default_rng(0)
    right = []
    for subject in np.unique(truth):
        rows = generator.permutation(np.flatnonzero(truth == subject))
        groups = rows[: len(rows) // count * count].reshape(-1, count)
        right += [gains[group].sum(0).argmax() == subject for group in groups]
    if not right:
        raise AttackError(f"no subject has {count} messages in the test part; ask for fewer at once")
    return proportion(np.array(right))

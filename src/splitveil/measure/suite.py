"""Mounting a suite of attacks: all are fitted, the best on validation counts, and is scored once."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from splitveil.attack import FINITE, Attack, Guess, Job, View, fit_all
from splitveil.data import Dataset
from splitveil.errors import AttackError
from splitveil.measure.scores import ESTIMATES, AttackScore, guessed, ranks, score
from splitveil.measure.secrets import Secret
from splitveil.train import Progress

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Question:
    """One secret, and what was sent about it.

    Attributes:
        views: by part, of the images whose secret can be learnt (see `Secret`); train may hold several messages of each
            image, one pass after the other.
        secrets: by part, (images,).
        n_values: how many values the secret has.
        seed: of the attacks.
        several: numbers of messages of one subject, where the secret is the subject.
    """

    views: dict[str, View]
    secrets: dict[str, Tensor]
    n_values: int
    seed: int = 0
    several: tuple[int, ...] = ()

    @classmethod
    def about(
        cls, hidden: str, views: dict[str, View], data: Dataset, seed: int, several: Sequence[int] = ()
    ) -> "Question":
        """The question for a hidden attribute of a data set; raises `AttackError` where it cannot be learnt."""
        secret = Secret.of(data, hidden)
        asked = {name: view if (rows := secret.rows[name]) is None else view.at(rows) for name, view in views.items()}
        return cls(asked, secret.values, secret.n_values, seed, tuple(several))

    @property
    def job(self) -> Job:
        """What an attack is fitted to."""
        train, secret = self.views["train"], self.secrets["train"]
        return Job(
            train, secret.repeat(len(train) // len(secret)), self.views["val"], self.secrets["val"],
            self.n_values, self.seed,
        )  # fmt: skip


def best_attack(
    views: dict[str, View],
    data: Dataset,
    *,
    hidden: str,
    attacks: Sequence[Attack],
    seed: int = 0,
    progress: Progress | None = None,
    what: str = "messages",
) -> AttackScore:
    """Fit every attack on the views of train, choose on val, score the chosen one on test. See `leakage`."""
    question = Question.about(hidden, views, data, seed)
    return best_attacks([question], attacks=attacks, progress=progress, what=what)[0]


def best_attacks(
    questions: Sequence[Question],
    *,
    attacks: Sequence[Attack],
    progress: Progress | None = None,
    what: str = "messages",
) -> list[AttackScore]:
    """`best_attack` for many questions; attacks that can are trained on all of them together.

    For each score the best on validation counts, and of equals the one with the least cross-entropy there. Finite
    messages meet those of `splitveil.attack.FINITE`, too.

    Raises:
        AttackError: no attack was given, or one gave log-probabilities that are not finite.
    """
    if not attacks:
        raise AttackError("no attack was given; without an adversary nothing is measured")
    jobs = [question.job for question in questions]
    champions: list[dict[str, _Champion]] = [{} for _ in jobs]
    validation: list[dict[str, float]] = [{} for _ in jobs]
    mounted = _mounted(attacks, jobs)
    for index, (attack, places) in enumerate(mounted):
        if progress:
            progress(index, len(mounted), f"{attack.name} on the {what}")
        for place, guess in zip(places, fit_all(attack, [jobs[place] for place in places]), strict=True):
            job = jobs[place]
            rank = ranks(guessed(attack.name, guess, job.val), job.val_secret)
            validation[place][attack.name] = rank["accuracy"][0]
            held = champions[place]
            better = [by for by in ESTIMATES if by not in held or rank[by] > held[by].rank]
            held.update({by: _Champion(attack.name, guess, rank[by]) for by in better})
    if progress:
        progress(len(mounted), len(mounted), f"attacks on the {what}")
    return [
        score(
            {by: (one.name, one.guess) for by, one in held.items()}, question.views["test"], question.secrets["test"],
            validation=found, train_secret=question.secrets["train"], several=question.several,
        )
        for question, held, found in zip(questions, champions, validation, strict=True)
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Champion:
    """The attack that is best by one score so far."""

    name: str
    guess: Guess
    rank: tuple[float, float]


def _mounted(attacks: Sequence[Attack], jobs: Sequence[Job]) -> list[tuple[Attack, Sequence[int]]]:
    """Each attack with the jobs it is fitted to: those given with all, those of `FINITE` with finite messages."""
    finite = [place for place, job in enumerate(jobs) if job.train.levels is not None]
    named = {attack.name for attack in attacks}
    more = [attack for attack in FINITE if finite and attack.name not in named]
    return [*((attack, range(len(jobs))) for attack in attacks), *((attack, finite) for attack in more)]

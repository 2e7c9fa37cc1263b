"""Honest numbers: what the answer is worth, and what an adversary learns from what was sent."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splitveil.attack import ATTACKS, Attack, Public, View
from splitveil.data import Dataset, Part
from splitveil.errors import AttackError
from splitveil.exchange import Client, Server
from splitveil.message import Obfuscator
from splitveil.obfuscate import Identity
from splitveil.split import SplitModel
from splitveil.statistics import Bootstrap, Estimate, balanced_accuracy, entropy_bits, macro_auc, proportion
from splitveil.train import Progress, predict

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class AttackScore:
    """How well the best attack of a suite does on the test part; every estimate with its 95 % interval.

    Attributes:
        best: the attack that did best on validation; only this one was scored on test.
        accuracy: share of secrets guessed.
        balanced: mean of that share over the secret's values.
        auc: area under the one-against-rest curve, mean over the secret's values.
        bits: leaked bits, H(secret) − cross-entropy of the attack; in expectation a lower bound on what a perfect
            adversary gets; negative where the attack knows less than the prior.
        correct: which test secrets were guessed, (N,).
        validation: accuracy of each attack on validation.
    """

    best: str
    accuracy: Estimate
    balanced: Estimate
    auc: Estimate
    bits: Estimate
    correct: np.ndarray[Any, np.dtype[np.bool_]]
    validation: dict[str, float]


@dataclass(frozen=True, eq=False)
class References:
    """What stands beside every attack: the same suite with the same budget on other inputs (one cut, one secret).

    Attributes:
        prior: accuracy of always guessing the most frequent value of the training part.
        label: the attack on the predicted label alone.
        logits: the attack on the server's logits alone.
        raw: the attack on the feature as it is.
        undefended: target accuracy of the model without obfuscation.
    """

    prior: Estimate
    label: AttackScore
    logits: AttackScore
    raw: AttackScore
    undefended: Estimate


@dataclass(frozen=True, eq=False)
class Leakage:
    """What one obfuscator leaks of one hidden attribute, beside its reference lines; numbers are shares of 1.

    Attributes:
        attack: test accuracy of the strongest attack.
        best: that attack's name, chosen on validation.
        prior, label, logits, raw: reference lines, see `References`.
        excess: attack − logits, with a paired interval; may be negative.
        excess_over_label: attack − label, with a paired interval.
        advantage: attack − prior, with a paired interval.
        balanced, auc, bits: see `AttackScore`.
        target: accuracy of the answer from the messages.
        undefended: accuracy of the model without obfuscation.
        message_bytes: mean bytes of one frame on the test part.
        validation: accuracy of each attack on validation.
    """

    attack: Estimate
    best: str
    prior: Estimate
    label: Estimate
    logits: Estimate
    raw: Estimate
    excess: Estimate
    excess_over_label: Estimate
    advantage: Estimate
    balanced: Estimate
    auc: Estimate
    bits: Estimate
    target: Estimate
    undefended: Estimate
    message_bytes: float
    validation: dict[str, float]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the attack's accuracy."""
        return self.attack.interval

    def as_row(self) -> dict[str, Any]:
        """For JSON; estimates become value, low, high."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def leakage(
    split: SplitModel,
    veil: Obfuscator,
    data: Dataset,
    *,
    hidden: str,
    attacks: Sequence[Attack] = ATTACKS,
    seed: int = 0,
    references: References | None = None,
    progress: Progress | None = None,
) -> Leakage:
    """Mount every attack on what the obfuscator sends, and score the best one.

    Messages travel as bytes before an attack sees them. Attacks are trained on messages of the training part, the
    best is chosen on validation, and that one is scored once on test.

    Args:
        split: the trained model, cut.
        veil: what obfuscates at the cut.
        data: with the hidden attribute.
        hidden: the attribute to guess.
        attacks: the suite.
        seed: of the attacks.
        references: from `reference_lines` with the same arguments; computed here where not given.
        progress: called as (attacks done, attacks in all, text).

    Raises:
        AttackError: the data has no such attribute, or no attack was given.
    """
    view(split, veil, data.test, rows=slice(0, 1))  # what does not fit together shows before the long work
    if references is None:
        references = reference_lines(split, data, hidden=hidden, attacks=attacks, seed=seed, progress=progress)
    messages = {name: view(split, veil, data.parts[name]) for name in PARTS}
    views = {name: seen for name, (seen, _, _) in messages.items()}
    score = best_attack(views, data, hidden=hidden, attacks=attacks, seed=seed, progress=progress, what="messages")
    _, answers, sizes = messages["test"]
    boot = Bootstrap(len(data.test))
    majority = _majority_correct(data, hidden)
    return Leakage(
        attack=score.accuracy, best=score.best,
        prior=references.prior, label=references.label.accuracy, logits=references.logits.accuracy,
        raw=references.raw.accuracy,
        excess=boot.mean(_difference(score.correct, references.logits.correct)),
        excess_over_label=boot.mean(_difference(score.correct, references.label.correct)),
        advantage=boot.mean(_difference(score.correct, majority)),
        balanced=score.balanced, auc=score.auc, bits=score.bits,
        target=proportion((answers.argmax(1) == data.test.y).numpy()), undefended=references.undefended,
        message_bytes=float(sizes.float().mean()), validation=score.validation,
    )  # fmt: skip


def reference_lines(
    split: SplitModel,
    data: Dataset,
    *,
    hidden: str,
    attacks: Sequence[Attack] = ATTACKS,
    seed: int = 0,
    progress: Progress | None = None,
) -> References:
    """The reference lines of one cut and one secret; the same for every obfuscator there. See `leakage`."""
    _check(data, hidden, attacks)
    features = {name: predict(split.client, data.parts[name]) for name in PARTS}
    logits = {name: _server_logits(split, z) for name, z in features.items()}
    labels = {name: torch.nn.functional.one_hot(y.argmax(1), y.shape[1]).float() for name, y in logits.items()}
    raw = Public(split, Identity(tuple(features["train"].shape[1:])))
    answer = Public(split, None)

    def attacked(what: str, sent: dict[str, Tensor], public: Public) -> AttackScore:
        views = {name: _whole(x, public) for name, x in sent.items()}
        return best_attack(views, data, hidden=hidden, attacks=attacks, seed=seed, progress=progress, what=what)

    return References(
        prior=proportion(_majority_correct(data, hidden)),
        label=attacked("predicted label", labels, answer),
        logits=attacked("logits", logits, answer),
        raw=attacked("raw feature", features, raw),
        undefended=proportion((logits["test"].argmax(1) == data.test.y).numpy()),
    )


def view(
    split: SplitModel, veil: Obfuscator, part: Part, *, rows: slice = slice(None), batch_size: int = 512
) -> tuple[View, Tensor, Tensor]:
    """What crosses the wire for a part or some rows of it: a view, the server's logits (N, K), bytes per frame (N,)."""
    client, server = Client(split, veil), Server(split, veil)
    sent, kept, answers, sizes = [], [], [], []
    for batch in torch.split(torch.arange(len(part))[rows], batch_size):
        frames = client.send(part.images(batch).to(split.device))
        messages, lengths = server.read(frames)
        sent.append(messages)
        kept.append(lengths)
        answers.append(server.answer(frames).cpu())
        sizes += [len(frame) for frame in frames]
    return View(torch.cat(sent), torch.cat(kept), Public(split, veil)), torch.cat(answers), torch.tensor(sizes)


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
    _check(data, hidden, attacks)
    secrets = {name: data.parts[name].hidden[hidden] for name in PARTS}
    n_values = len(data.hidden_classes[hidden])
    chosen, validation = None, {}
    for index, attack in enumerate(attacks):
        if progress:
            progress(index, len(attacks), f"{attack.name} on the {what}")
        guess = attack.fit(views["train"], secrets["train"], views["val"], secrets["val"], n_values=n_values, seed=seed)
        correct = guess(views["val"]).argmax(1) == secrets["val"]
        validation[attack.name] = float(correct.float().mean())
        if chosen is None or validation[attack.name] > validation[chosen[0]]:
            chosen = (attack.name, guess)
    if progress:
        progress(len(attacks), len(attacks), f"attacks on the {what}")
    assert chosen is not None
    return _score(*chosen, views["test"], secrets["test"], validation)


def _score(name: str, guess: Any, test: View, secret: Tensor, validation: dict[str, float]) -> AttackScore:
    log_probabilities = guess(test).double().numpy()
    if not np.isfinite(log_probabilities).all():
        raise AttackError(f"the attack {name!r} gave log-probabilities that are not finite; make it give finite ones")
    truth = secret.numpy()
    correct = log_probabilities.argmax(1) == truth
    boot = Bootstrap(len(truth))
    gained = entropy_bits(truth) + log_probabilities[np.arange(len(truth)), truth] / np.log(2)
    return AttackScore(
        best=name,
        accuracy=proportion(correct),
        balanced=boot.score(balanced_accuracy(correct, truth)),
        auc=boot.score(macro_auc(log_probabilities, truth)),
        bits=boot.mean(gained),
        correct=correct,
        validation=validation,
    )


def _check(data: Dataset, hidden: str, attacks: Sequence[Attack]) -> None:
    if hidden not in data.hidden_classes:
        known = ", ".join(data.hidden_classes) or "none"
        raise AttackError(f"{data.name} has no hidden attribute {hidden!r}; it has: {known}")
    if not attacks:
        raise AttackError("no attack was given; without an adversary nothing is measured")
    for name in PARTS:
        if len(torch.unique(data.parts[name].hidden[hidden])) < 2:
            raise AttackError(f"the hidden attribute {hidden!r} is constant in the {name} part, so there is no secret")


def _majority_correct(data: Dataset, hidden: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    majority = torch.bincount(data.train.hidden[hidden]).argmax()
    return np.asarray((data.test.hidden[hidden] == majority).numpy())


def _whole(sent: Tensor, public: Public) -> View:
    return View(sent, torch.full((len(sent),), sent.shape[1]), public)


@torch.no_grad()
def _server_logits(split: SplitModel, features: Tensor) -> Tensor:
    return torch.cat([split.server(z.to(split.device)).cpu() for z in torch.split(features, 512)])


def _difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(np.subtract(a, b, dtype=np.float64))


def _plain(value: Any) -> Any:
    return value.as_row() if isinstance(value, Estimate) else value

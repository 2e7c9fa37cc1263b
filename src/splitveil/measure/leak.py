"""Leakage of one obfuscator or of many, beside the reference lines."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from splitveil.attack import ATTACKS, Attack, View
from splitveil.data import Dataset
from splitveil.measure.features import RawFeatures
from splitveil.measure.references import References, majority_correct, references_of
from splitveil.measure.scores import AttackScore, Right
from splitveil.measure.secrets import Secret
from splitveil.measure.suite import PARTS, Question, best_attacks
from splitveil.measure.transmission import view
from splitveil.message import Obfuscator
from splitveil.soundness import check_model
from splitveil.split import SplitModel
from splitveil.statistics import Bootstrap, Estimate, proportion
from splitveil.train import Progress

DRAWS = 2
"""Messages of each of its own samples that an adversary trains on, where the obfuscator draws noise."""
TOGETHER = 64
"""Messages of up to so many numbers are attacked together; of wider ones one at a time is in memory."""


@dataclass(frozen=True, eq=False)
class Leakage:
    """What one obfuscator leaks of one hidden attribute, beside its reference lines; numbers are shares of 1.

    Attributes:
        attack: test accuracy of the strongest attack.
        best: that attack's name, chosen on validation.
        best_by: the names of those that did best there by the other scores; see `AttackScore`.
        prior, label, logits, raw: reference lines, see `References`.
        excess: attack − logits, with a paired interval; may be negative.
        excess_over_label: attack − label, with a paired interval.
        advantage: attack − prior, with a paired interval.
        balanced, auc, bits: see `AttackScore`.
        target: accuracy of the answer from the messages.
        undefended: accuracy of the model without obfuscation.
        message_bytes: mean bytes of one frame on the test part.
        validation: accuracy of each attack on validation.
        target_validation: accuracy of the answer from the messages of the validation part.
        several: see `AttackScore`.
        correct: which test secrets the attack guessed, (N,); of those whose value occurs in training, see `Secret`.
        answered: which test targets the answer from the messages got right, (N,).
    """

    attack: Estimate
    best: str
    best_by: dict[str, str]
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
    target_validation: Estimate
    several: dict[int, Estimate] = field(default_factory=dict)
    correct: Right = field(default_factory=lambda: np.zeros(0, bool), repr=False)
    answered: Right = field(default_factory=lambda: np.zeros(0, bool), repr=False)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the attack's accuracy."""
        return self.attack.interval

    def as_row(self) -> dict[str, Any]:
        """For JSON; estimates become value, low, high; what is known of each sample is left out."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: _plain(value) for name, value in named.items() if not isinstance(value, np.ndarray)}


def leakage(
    split: SplitModel,
    veil: Obfuscator,
    data: Dataset,
    *,
    hidden: str,
    attacks: Sequence[Attack] = ATTACKS,
    seed: int = 0,
    references: References | None = None,
    several: Sequence[int] = (),
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
        attacks: the suite; finite messages meet those of `splitveil.attack.FINITE`, too.
        seed: of the attacks.
        references: from `reference_lines` with the same arguments; computed here where not given.
        several: also score groups of so many messages of one subject, where the attribute is the subject.
        progress: called as (attacks done, attacks in all, text).

    Raises:
        AttackError: the data has no such attribute, no adversary could learn it, or no attack was given.
        ModelError: an answer depends on other images or on chance, or is not of float32.
        SplitError: the halves do not answer the images as the model does.

    Warns:
        PrivacyWarning: test samples were left out because their value does not occur in training, values are rare
            there, or the secret follows from the target.
    """
    check_model(split, data.test)
    view(split, veil, data.test, rows=slice(0, 1))  # what does not fit together shows before the long work
    Secret.of(data, hidden)
    same: dict[str, Any] = {
        "attacks": attacks, "seed": seed, "several": several, "progress": progress, "features": RawFeatures(data),
    }  # fmt: skip
    known = {hidden: references} if references else references_of(split, data, hidden=[hidden], **same)
    return leakages([(split, veil)], data, hidden=[hidden], references=known, **same)[0][hidden]


def leakages(
    defended: Sequence[tuple[SplitModel, Obfuscator]],
    data: Dataset,
    *,
    hidden: Sequence[str],
    references: dict[str, References],
    attacks: Sequence[Attack] = ATTACKS,
    seed: int = 0,
    several: Sequence[int] = (),
    progress: Progress | None = None,
    features: RawFeatures | None = None,
) -> list[dict[str, Leakage]]:
    """`leakage` of many obfuscators and of many attributes; small attacks are trained together.

    Args:
        defended: each obfuscator with the model whose feature it obfuscates.
        data, attacks, seed, several, progress: see `leakage`.
        hidden: the attributes to guess.
        references: by attribute.
        features: of the data, where some are known already.

    Returns:
        For each obfuscator what it leaks, by attribute.
    """
    narrow = [index for index, (_, veil) in enumerate(defended) if _numbers(veil) <= TOGETHER]
    groups = [narrow, *([index] for index in range(len(defended)) if index not in narrow)]
    found: dict[int, dict[str, Leakage]] = {}
    features = features or RawFeatures(data)
    for group in filter(None, groups):
        sent = [_sent(*defended[index], data, features) for index in group]
        questions = [Question.about(name, each.views, data, seed, several) for each in sent for name in hidden]
        scores = iter(best_attacks(questions, attacks=attacks, progress=progress))
        for index, each in zip(group, sent, strict=True):
            found[index] = {name: _leak(next(scores), each, data, name, references[name]) for name in hidden}
    return [found[index] for index in range(len(defended))]


@dataclass(frozen=True, eq=False)
class _Sent:
    views: dict[str, View]
    answered: dict[str, Right]
    bytes: float


def _sent(split: SplitModel, veil: Obfuscator, data: Dataset, features: RawFeatures) -> _Sent:
    """Messages of every part, and which answers from them are right."""
    views, answered, size = {}, {}, 0.0
    for seed, name in enumerate(PARTS):
        draws = DRAWS if veil.message.random and name == "train" else 1
        seen, logits, sizes = view(
            split, veil, data.parts[name], features=features.of(split, name), own=name != "test", draws=draws, seed=seed
        )
        views[name], size = seen, float(sizes.float().mean())
        if name != "train":
            answered[name] = (logits.argmax(1) == data.parts[name].y).numpy()
    return _Sent(views, answered, size)


def _leak(score: AttackScore, sent: _Sent, data: Dataset, hidden: str, references: References) -> Leakage:
    boot = Bootstrap(len(score.correct))
    return Leakage(
        attack=score.accuracy, best=score.best, best_by=score.best_by,
        prior=references.prior, label=references.label.accuracy, logits=references.logits.accuracy,
        raw=references.raw.accuracy,
        excess=boot.mean(_difference(score.correct, references.logits.correct)),
        excess_over_label=boot.mean(_difference(score.correct, references.label.correct)),
        advantage=boot.mean(_difference(score.correct, majority_correct(data, hidden))),
        balanced=score.balanced, auc=score.auc, bits=score.bits,
        target=proportion(sent.answered["test"]), undefended=references.undefended,
        message_bytes=sent.bytes, validation=score.validation,
        target_validation=proportion(sent.answered["val"]), several=score.several,
        correct=score.correct, answered=sent.answered["test"],
    )  # fmt: skip


def _numbers(veil: Obfuscator) -> int:
    return int(np.prod(veil.message.shape))


def _difference(a: Right, b: Right) -> np.ndarray[Any, Any]:
    return np.asarray(np.subtract(a, b, dtype=np.float64))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value.as_row() if isinstance(value, Estimate) else value

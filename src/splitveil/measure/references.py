"""The reference lines that stand beside every attack: the same suite on the label, the logits and the raw feature."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splitveil.attack import ATTACKS, Attack, Public, View
from splitveil.data import Dataset
from splitveil.measure.features import RawFeatures
from splitveil.measure.scores import AttackScore, Right
from splitveil.measure.secrets import Secret, warn_of_secret
from splitveil.measure.suite import PARTS, Question, best_attacks
from splitveil.obfuscate import Identity
from splitveil.split import SplitModel
from splitveil.statistics import Estimate, proportion
from splitveil.train import Progress


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


def reference_lines(
    split: SplitModel,
    data: Dataset,
    *,
    hidden: str,
    attacks: Sequence[Attack] = ATTACKS,
    seed: int = 0,
    several: Sequence[int] = (),
    progress: Progress | None = None,
) -> References:
    """The reference lines of one cut and one secret; the same for every obfuscator there. See `leakage`."""
    same: dict[str, Any] = {"attacks": attacks, "seed": seed, "several": several, "progress": progress}
    return references_of(split, data, hidden=[hidden], **same)[hidden]


def references_of(
    split: SplitModel,
    data: Dataset,
    *,
    hidden: Sequence[str],
    attacks: Sequence[Attack] = ATTACKS,
    seed: int = 0,
    several: Sequence[int] = (),
    progress: Progress | None = None,
    features: RawFeatures | None = None,
) -> dict[str, References]:
    """`reference_lines` of many attributes, with the features that are known; small attacks are trained together."""
    for name in hidden:
        warn_of_secret(data, name)
    features = features or RawFeatures(data)
    z = {name: features.of(split, name) for name in PARTS}
    logits = {name: _server_logits(split, each) for name, each in z.items()}
    labels = {name: torch.nn.functional.one_hot(y.argmax(1), y.shape[1]).float() for name, y in logits.items()}
    raw = Public(split, Identity(tuple(z["train"].shape[1:])))
    answer = Public(split, None)

    def attacked(what: str, sent: dict[str, Tensor], public: Public) -> list[AttackScore]:
        own = {name: z[name] if public is raw and name != "test" else None for name in PARTS}
        views = {name: _whole(x, public, own[name]) for name, x in sent.items()}
        questions = [Question.about(name, views, data, seed, several) for name in hidden]
        stage = ("predicted label", "logits", "raw feature").index(what)
        later = progress and (lambda done, total, text: progress(done + stage * total, 3 * total, text))
        return best_attacks(questions, attacks=attacks, progress=later, what=what)

    by_label = attacked("predicted label", labels, answer)
    by_logits = attacked("logits", logits, answer)
    by_feature = attacked("raw feature", z, raw)
    undefended = proportion((logits["test"].argmax(1) == data.test.y).numpy())
    return {
        name: References(proportion(majority_correct(data, name)), label, logit, feature, undefended)
        for name, label, logit, feature in zip(hidden, by_label, by_logits, by_feature, strict=True)
    }


def majority_correct(data: Dataset, hidden: str) -> Right:
    """Which test secrets the most frequent value of the training part gets right, (samples that count,)."""
    values = Secret.of(data, hidden).values
    return np.asarray((values["test"] == torch.bincount(values["train"]).argmax()).numpy())


def _whole(sent: Tensor, public: Public, features: Tensor | None) -> View:
    return View(sent, torch.full((len(sent),), sent.shape[1]), public, features)


@torch.no_grad()
def _server_logits(split: SplitModel, features: Tensor) -> Tensor:
    return torch.cat([split.server(z.to(split.device)).cpu() for z in torch.split(features, 512)])

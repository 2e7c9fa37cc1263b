"""One defence at one cut, at all its settings: what its answers are worth, and what each message leaks."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from splitveil.attack import ATTACKS, Attack
from splitveil.baselines import BASELINES, Defended, Undefended
from splitveil.certificate import Certificate
from splitveil.cost import edge_cost
from splitveil.data import Dataset, Part, load_data
from splitveil.errors import BaselineError, DistortionError, ExperimentError
from splitveil.experiments.accuracy import Numbers
from splitveil.experiments.cells import Place, Report, Result
from splitveil.experiments.lines import ON_MAPS, kept_lines
from splitveil.experiments.ours import OURS, Fitted, fit_ours
from splitveil.experiments.training import trained, within
from splitveil.measure import Leakage, RawFeatures, References, leakages, view
from splitveil.measure.scores import pack
from splitveil.split import SplitModel
from splitveil.statistics import proportion
from splitveil.train import Recipe, accuracy, predict

SUBJECTS = ("writer", "identity")  # attributes of which one value is one person, who may send several messages
SEVERAL = (1, 5, 15)
CONNECTED = 4
"""The first cut at a fully connected layer."""
_FOLDERS = {"plain": "plain", "paper": "all"}  # what the ablation calls the two recipes


@dataclass(frozen=True)
class PointsCell:
    """One defence on one model.

    Attributes:
        data: the data set.
        training: recipe of the model that is defended, "plain" or "paper".
        seed, epochs, precision: of the training, see `Recipe`; the seed is the attacks' too.
        cut: where the model is cut.
        operator: of "top", "free" and "bounded" at convolutions.
        defence: a name of `OURS` or of `BASELINES`.
        settings: of the defence, each a mapping.
        drop: attack only the setting of least accuracy whose drop on validation is at most this share; where
            None, all are attacked. The drop is measured against the best on validation of the plainly trained models.
        plain_seeds: of these models.
        hidden: attributes to guess; a supervised defence is told the first.
        attacks: names of the adversaries that messages meet. Where they are more than `ON_MAPS` at a convolution, the
            raw feature meets those of `ON_MAPS` alone.
        tuning: revision of the tuning, of defences that are tuned on the server's answers, and of baselines that have
            changed; None of others.
    """

    data: str
    training: str
    seed: int
    epochs: int
    precision: str
    cut: int
    operator: str
    defence: str
    settings: tuple[dict[str, Any], ...]
    drop: float | None
    plain_seeds: tuple[int, ...]
    hidden: tuple[str, ...]
    attacks: tuple[str, ...]
    tuning: int | None

    @property
    def label(self) -> str:
        """What a person tells it by."""
        only = "".join(f"-{value:g}" for value in self.settings[0].values()) if len(self.settings) == 1 else ""
        return f"{self.data}-{self.training}-{self.defence}{only}-cut{self.cut}-{self.operator}-{self.seed}"

    def recipe(self, training: str, seed: int) -> Recipe:
        """How a model is trained."""
        settings = {"epochs": self.epochs, "seed": seed, "precision": self.precision}
        return Recipe.paper(**settings) if training == "paper" else Recipe.from_mapping(settings)


def compute(cell: PointsCell, place: Place, report: Report) -> Result:
    """Train or load, fit the defence, choose or take its settings, attack; the test part is scored once."""
    start = time.perf_counter()
    data = load_data(cell.data, root=place.data_root)
    model = _model(cell, cell.training, cell.seed, data, place, report)
    split, features = SplitModel(model, at=cell.cut), RawFeatures(data)
    trained_at = time.perf_counter()
    fitted, left_out = _fit(cell, split, data, features, within(report, 0.2, 0.6))
    chosen, targets = _chosen(cell, fitted, data, features, place, report)
    fitted_at = time.perf_counter()
    attacks = _named(cell.attacks)
    same: dict[str, Any] = {
        "hidden": cell.hidden, "attacks": attacks, "seed": cell.seed,
        "several": SEVERAL if set(cell.hidden) & set(SUBJECTS) else (),
    }  # fmt: skip
    lines = _references(cell, split, data, features, place, report, same)
    pairs = [(fitted[index][1].split, fitted[index][1].veil) for index in chosen]
    leaks = leakages(pairs, data, references=lines, features=features, progress=within(report, 0.8, 1.0), **same)
    numbers = {
        "n_test": len(data.test),
        "prior": {name: its.prior.as_row() for name, its in lines.items()},
        "lines": {name: _lines(its) for name, its in lines.items()},
        "undefended": _targets(predict(model, data.val), predict(model, data.test), data),
        "points": [_point(*fitted[index], leak, data) for index, leak in zip(chosen, leaks, strict=True)],
        "targets": targets,
        "left_out": left_out,
    }  # fmt: skip
    seconds = {
        "train": trained_at - start, "fit": fitted_at - trained_at, "attack": time.perf_counter() - fitted_at,
    }  # fmt: skip
    return Result(data.digest, numbers, seconds)


def _named(names: Sequence[str]) -> list[Attack]:
    """The adversaries of these names, each of which must exist: one that is left out unnoticed looks like privacy."""
    known = {attack.name: attack for attack in ATTACKS}
    if unknown := [name for name in names if name not in known]:
        raise ExperimentError(f"there is no attack {unknown[0]!r}; choose from {', '.join(known)}")
    return [attack for name, attack in known.items() if name in names]


def _model(cell: PointsCell, training: str, seed: int, data: Dataset, place: Place, report: Report) -> nn.Module:
    label, recipe = f"{cell.data}-{_FOLDERS[training]}-{seed}", cell.recipe(training, seed)
    return trained("models", label, recipe, cell.data, data, place, within(report, 0.0, 0.2))[0]


def _fit(
    cell: PointsCell, split: SplitModel, data: Dataset, features: RawFeatures, progress: Any
) -> tuple[Fitted, list[Numbers]]:
    """The defence at each setting, and the settings that are not possible here with the reason."""
    if cell.defence in OURS:
        same: dict[str, Any] = {"operator": cell.operator, "seed": cell.seed, "progress": progress}
        return fit_ours(cell.defence, cell.settings, split, data, features, **same)
    kind: Any = type(BASELINES[cell.defence][0])
    fitted: Fitted = []
    left_out: list[Numbers] = []
    for index, setting in enumerate(cell.settings):
        progress(index, len(cell.settings), f"{cell.defence} {setting}")
        recipe = cell.recipe(cell.training, cell.seed)
        undefended = Undefended(split.model, cell.cut, data, recipe, cell.hidden[0], None)
        try:
            fitted.append((setting, kind(**setting).fit(undefended)))
        except BaselineError as error:
            left_out.append({"setting": setting, "why": str(error)})
    if not fitted:
        raise ExperimentError(f"{cell.defence} can be fitted at no setting here: {left_out[0]['why']}")
    return fitted, left_out


def _references(
    cell: PointsCell, split: SplitModel, data: Dataset, features: RawFeatures, place: Place, report: Report,
    same: dict[str, Any],
) -> dict[str, References]:  # fmt: skip
    """The reference lines; those of labels and logits are the model's, whatever the cut."""
    kept: Any = partial(kept_lines, f"{cell.data}-{cell.training}-{cell.seed}", data=data, place=place)
    if cell.cut >= CONNECTED or set(cell.attacks) <= set(ON_MAPS):
        return kept(split=split, features=features, progress=within(report, 0.6, 0.8), **same)  # type: ignore[no-any-return]
    of_maps = _named(ON_MAPS)
    on_raw = kept(split=split, features=features, progress=within(report, 0.6, 0.7), **{**same, "attacks": of_maps})
    connected = SplitModel(split.model, at=CONNECTED)
    known = kept(split=connected, progress=within(report, 0.7, 0.8), **{**same, "attacks": ATTACKS})
    return {name: replace(its, raw=on_raw[name].raw) for name, its in known.items()}


def settings_of(name: str) -> tuple[dict[str, Any], ...]:
    """The grid of a baseline, as JSON values."""
    return tuple(asdict(defence) for defence in BASELINES[name])  # type: ignore[call-overload]


def _chosen(
    cell: PointsCell, fitted: Fitted, data: Dataset, features: RawFeatures, place: Place, report: Report
) -> tuple[list[int], list[Numbers]]:
    """Which settings are attacked, and the validation accuracy of all where that decides."""
    if cell.drop is None:
        return list(range(len(fitted))), []
    plain = [_model(cell, "plain", seed, data, place, report) for seed in cell.plain_seeds]
    best = max(accuracy(model, data.val) for model in plain)
    targets: list[Numbers] = []
    for index, (setting, defended) in enumerate(fitted):
        report(0.6, f"validation accuracy of {setting}")
        try:
            known = features.of(defended.split, "val")
            answers = view(defended.split, defended.veil, data.val, features=known)[1]
        except DistortionError as error:
            targets.append({"setting": setting, "index": index, "why": str(error)})
            continue
        targets.append({"setting": setting, "index": index, "val": _right(answers, data.val)})
    while taken := _taken(targets, best - cell.drop):
        try:
            _encode_all(fitted[taken["index"]][1], features)
            break
        except DistortionError as error:  # a training image needs more factors than there are
            del taken["val"]
            taken["why"] = str(error)
    for one in targets:
        one["drop"] = best - one["val"]["value"] if "val" in one else None
        one["taken"] = one is taken
    return [taken["index"]] if taken else [], targets


def _taken(targets: Sequence[Numbers], least: float) -> Numbers | None:
    """Settings come from the weakest to the strongest; where none is good enough, the least bad one is shown."""
    possible = [one for one in targets if "val" in one]
    good = [one for one in possible if one["val"]["value"] >= least]
    return good[-1] if good else max(possible, key=lambda one: one["val"]["value"], default=None)


@torch.no_grad()
def _encode_all(defended: Defended, features: RawFeatures) -> None:
    """Raises `DistortionError` where an image has no message; test images choose nothing."""
    for name in ("train", "val"):
        for z in torch.split(features.of(defended.split, name), 512):
            defended.veil.encode(z.to(defended.split.device))


def _right(logits: torch.Tensor, part: Part) -> Numbers:
    return proportion((logits.argmax(1) == part.y).numpy()).as_row()


def _targets(val: torch.Tensor, test: torch.Tensor, data: Dataset) -> Numbers:
    right = pack((test.argmax(1) == data.test.y).numpy())
    return {"val": _right(val, data.val), "test": _right(test, data.test), "right": right}


def _lines(lines: References) -> Numbers:
    return {name: getattr(lines, name).as_row() for name in ("label", "logits", "raw")}


def _point(setting: dict[str, Any], defended: Defended, leaks: dict[str, Leakage], data: Dataset) -> Numbers:
    first = next(iter(leaks.values()))
    cost = edge_cost(defended.split, defended.veil, data.test.images(slice(0, 1)).to(defended.split.device))
    message = defended.veil.message
    return {
        "setting": setting, "facts": defended.facts, "components": message.shape[0] if message.shape else None,
        "message_shape": list(message.shape), "fixed_length": message.fixed_length,
        "message_bytes": first.message_bytes, "edge_macs": cost.client_macs + cost.encoder_macs,
        "target": {
            "val": first.target_validation.as_row(), "test": first.target.as_row(), "right": pack(first.answered),
        },
        "leaks": {name: _leak(leak) for name, leak in leaks.items()}, **_certified(defended, leaks, data),
    }  # fmt: skip


def _certified(defended: Defended, hidden: Iterable[str], data: Dataset) -> Numbers:
    """Of finite messages how many there are, and the bound on every adversary's accuracy on the test part."""
    if (messages := defended.veil.message.distinct) is None:
        return {}
    certificate = Certificate(messages=messages)
    shares = {name: torch.bincount(data.test.hidden[name]).double() / len(data.test) for name in hidden}
    bounds = {name: certificate.guess_bound(priors=share.tolist()) for name, share in shares.items()}
    return {"messages": messages, "bits": certificate.bits, "guess_bound": bounds}


def _leak(leak: Leakage) -> Numbers:
    names = ("balanced", "auc", "bits", "excess", "excess_over_label", "advantage")
    return {
        "best": leak.best, "best_by": leak.best_by, "validation": leak.validation, "accuracy": leak.attack.as_row(),
        **{name: getattr(leak, name).as_row() for name in names}, "right": pack(leak.correct),
        "several": {str(count): found.as_row() for count, found in leak.several.items()},
    }  # fmt: skip


def only(cell: PointsCell, settings: Sequence[dict[str, Any]]) -> list[PointsCell]:
    """A cell for each setting alone: for defences that train a network, so that one that is killed costs one."""
    return [replace(cell, settings=(setting,)) for setting in settings]

"""Does each ingredient of the paper's recipe earn its place? Accuracy at every cut, and the attack at one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from splitveil.attack import ATTACKS
from splitveil.data import Dataset, load_data
from splitveil.experiments.accuracy import Numbers, from_components, undefended
from splitveil.experiments.cells import Place, Report, Result
from splitveil.experiments.training import CUTS, HIDDEN, KEPT, Settings, TrainedCell, data_names, trained, within
from splitveil.linear import factorise
from splitveil.measure import AttackScore, leakage, reference_lines
from splitveil.obfuscate import TopComponents
from splitveil.split import SplitModel
from splitveil.train import Progress, Recipe, predict

DATA = ("utkface", "celeba", "qmnist")
VARIANTS = ("plain", "removal", "decov", "variational", "all")
SEVERAL_SEEDS = ("plain", "all")
SEEDS = (0, 1, 2)
EPOCHS = 20
ATTACKED = 4
ATTACKED_BY = ("server-architecture", "perceptron", "linear")  # the suite of that time; a longer one is another cell


@dataclass(frozen=True)
class AblationCell(TrainedCell):
    """One model of the ablation.

    Attributes:
        variant: which ingredients are on, in a word.
        attacked: the cut that is attacked.
        hidden: the attribute to guess.
        attacks: names of the adversaries.
    """

    variant: str
    attacked: int
    hidden: str
    attacks: tuple[str, ...]

    @property
    def label(self) -> str:
        """Data set, variant and seed."""
        return f"{self.data}-{self.variant}-{self.seed}"


def cells(settings: Settings) -> list[AblationCell]:
    """Seed 0 of every data set and variant first, then the further seeds.

    Raises:
        ExperimentError: a data set has no attribute to guess here.
    """
    names = data_names(settings, DATA)
    if settings.quick:
        return [_cell(name, variant, 0, settings) for name in names for variant in SEVERAL_SEEDS]
    return [
        _cell(name, variant, seed, settings)
        for seed in SEEDS
        for name in names
        for variant in (VARIANTS if seed == SEEDS[0] else SEVERAL_SEEDS)
    ]


def _cell(name: str, variant: str, seed: int, settings: Settings) -> AblationCell:
    quick, paper = settings.quick, Recipe.paper()
    weights = {
        each: getattr(paper, each) if variant in (each, "all") else 0.0 for each in ("removal", "decov", "variational")
    }
    return AblationCell(
        data=name, variant=variant, seed=seed, epochs=settings.epochs or (2 if quick else EPOCHS), **weights,
        precision=settings.precision, cuts=(3, 4) if quick else CUTS, kept=(8, 2) if quick else KEPT,
        attacked=ATTACKED, hidden=HIDDEN[name],
        attacks=("linear",) if quick else ATTACKED_BY,
    )  # fmt: skip


def compute(cell: AblationCell, place: Place, report: Report) -> Result:
    """Train, answer from components at every cut, attack at one; hidden labels are read by the attack alone."""
    data = load_data(cell.data, root=place.data_root)
    start = time.perf_counter()
    progress = within(report, 0.0, 0.6)
    model, history, per_epoch = trained("models", cell.label, cell.recipe, cell.data, data, place, progress)
    trained_at = time.perf_counter()
    parts = ("val", "test")
    report(0.6, "accuracy at every cut")
    numbers = {
        "undefended": undefended(model, data, parts),
        "kept": from_components(model, data, cell.cuts, cell.kept, parts),
        "history": history,
    }
    answered_at = time.perf_counter()
    numbers["attack"] = _attacked(model, data, cell, within(report, 0.7, 1.0))
    seconds = {
        "train": trained_at - start, "per_epoch": per_epoch, "accuracy": answered_at - trained_at,
        "attack": time.perf_counter() - answered_at,
    }  # fmt: skip
    return Result(data.digest, numbers, seconds)


def _attacked(model: nn.Module, data: Dataset, cell: AblationCell, progress: Progress) -> Numbers:
    split = SplitModel(model, at=cell.attacked)
    factors = factorise(split.server_layer, feature_shape=predict(split.client, data.test).shape[1:])
    chosen = [attack for attack in ATTACKS if attack.name in cell.attacks]
    same: dict[str, Any] = {"hidden": cell.hidden, "attacks": chosen, "seed": cell.seed}
    kept = [m for m in cell.kept if m <= len(factors.s)]
    progress(0, len(kept) + 2, "attacks on the reference lines")
    lines = reference_lines(split, data, **same)
    rows = []
    for index, m in enumerate(kept):
        progress(index + 2, len(kept) + 2, f"attacks on m'={m}")
        rows.append({"m": m, **leakage(split, TopComponents(factors, m=m), data, references=lines, **same).as_row()})
    return {
        "cut": cell.attacked, "operator": factors.operator, "hidden": cell.hidden, "prior": lines.prior.as_row(),
        **{name: _score(getattr(lines, name)) for name in ("label", "logits", "raw")}, "kept": rows,
    }  # fmt: skip


def _score(score: AttackScore) -> Numbers:
    names = ("accuracy", "balanced", "auc", "bits")
    return {"best": score.best, **{name: getattr(score, name).as_row() for name in names}}


def variants_of(rows: Sequence[Any], data: str) -> dict[str, list[Any]]:
    """Rows of a data set by variant, in the order of `VARIANTS`; each has one row per seed."""
    found = {v: [row for row in rows if row.config["data"] == data and row.config["variant"] == v] for v in VARIANTS}
    return {variant: its for variant, its in found.items() if its}

"""Does each ingredient of the paper's recipe earn its place? Accuracy at every cut, and the attack at one."""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from splitveil.attack import ATTACKS
from splitveil.data import Dataset, load_data
from splitveil.errors import ExperimentError
from splitveil.experiments.accuracy import Numbers, from_components, undefended
from splitveil.experiments.cells import Place, Report, Result, config_digest
from splitveil.linear import factorise
from splitveil.measure import AttackScore, leakage, reference_lines
from splitveil.obfuscate import TopComponents
from splitveil.runs import Run, train_run
from splitveil.split import SplitModel
from splitveil.train import Progress, Recipe, predict

DATA = ("utkface", "celeba", "qmnist")
HIDDEN = {"utkface": "race", "celeba": "Male", "qmnist": "writer", "digit-pairs": "digit"}
VARIANTS = ("plain", "removal", "decov", "variational", "all")
SEVERAL_SEEDS = ("plain", "all")
SEEDS = (0, 1, 2)
EPOCHS = 20
CUTS = (2, 3, 4, 5, 6)
KEPT = (32, 8, 4, 2, 1)
ATTACKED = 4


@dataclass(frozen=True)
class Settings:
    """What may be asked of an experiment.

    Attributes:
        data: data sets; the experiment's own where empty.
        epochs: of training; the experiment's own where None.
        precision: of training, see `Recipe`.
        quick: whether to run a small version that shows that everything works, and nothing else.
    """

    data: tuple[str, ...] = ()
    epochs: int | None = None
    precision: str = "float32"
    quick: bool = False


@dataclass(frozen=True)
class AblationCell:
    """One model: how it is trained, and what is measured of it.

    Attributes:
        data: the data set.
        variant: which ingredients are on, in a word.
        seed: of training and attacks.
        epochs, removal, decov, variational, precision: see `Recipe`.
        cuts: where accuracy is measured.
        kept: numbers m' of components.
        attacked: the cut that is attacked.
        hidden: the attribute to guess.
        attacks: names of the adversaries.
    """

    data: str
    variant: str
    seed: int
    epochs: int
    removal: float
    decov: float
    variational: float
    precision: str
    cuts: tuple[int, ...]
    kept: tuple[int, ...]
    attacked: int
    hidden: str
    attacks: tuple[str, ...]

    @property
    def label(self) -> str:
        """Data set, variant and seed."""
        return f"{self.data}-{self.variant}-{self.seed}"

    @property
    def recipe(self) -> Recipe:
        """How to train."""
        names = ("seed", "epochs", "removal", "decov", "variational", "precision")
        return Recipe.from_mapping({name: getattr(self, name) for name in names})


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


def data_names(settings: Settings, own: Sequence[str]) -> list[str]:
    """The data sets that the settings ask for, each once; raises `ExperimentError` where one has no secret here."""
    names = settings.data or (("digit-pairs",) if settings.quick else own)
    if unknown := [name for name in names if name not in HIDDEN]:
        raise ExperimentError(f"this experiment has no data set {unknown[0]!r}; choose {', '.join(HIDDEN)}")
    return list(dict.fromkeys(names))


def _cell(name: str, variant: str, seed: int, settings: Settings) -> AblationCell:
    quick, paper = settings.quick, Recipe.paper()
    weights = {
        each: getattr(paper, each) if variant in (each, "all") else 0.0 for each in ("removal", "decov", "variational")
    }
    return AblationCell(
        data=name, variant=variant, seed=seed, epochs=settings.epochs or (2 if quick else EPOCHS), **weights,
        precision=settings.precision, cuts=(3, 4) if quick else CUTS, kept=(8, 2) if quick else KEPT,
        attacked=ATTACKED, hidden=HIDDEN[name],
        attacks=("linear",) if quick else tuple(attack.name for attack in ATTACKS),
    )  # fmt: skip


def compute(cell: AblationCell, place: Place, report: Report) -> Result:
    """Train, answer from components at every cut, attack at one; hidden labels are read by the attack alone."""
    data = load_data(cell.data, root=place.data_root)
    start = time.perf_counter()
    model, history, per_epoch = trained("ablation", cell, data, place, within(report, 0.0, 0.6))
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


def within(report: Report, low: float, high: float) -> Progress:
    """Progress in steps, as a part of a cell's."""
    return lambda done, total, text: report(low + (high - low) * done / total, text)


def trained(
    experiment: str, cell: Any, data: Dataset, place: Place, progress: Progress
) -> tuple[nn.Module, list[Numbers], float | None]:
    """The cell's model, its training's history, and the median of the seconds per epoch (None: trained before).

    The run's folder has the cell's label and the recipe's digest as its name, so that what is measured may change
    without training again.
    """
    ends = [time.perf_counter()]

    def timed(done: int, total: int, text: str) -> None:
        ends.append(time.perf_counter())
        progress(done, total, f"epoch {done} of {total}, {text}")

    recipe: Recipe = cell.recipe
    folder = place.runs / experiment / f"{cell.label}-{config_digest(asdict(recipe))}"
    history = train_run(folder, data, recipe, source=cell.data, device=place.device, progress=timed)
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    # Channels last, as in training: a quarter faster.
    model = Run(folder).model().to(place.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, [asdict(epoch) for epoch in history], statistics.median(seconds) if seconds else None


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

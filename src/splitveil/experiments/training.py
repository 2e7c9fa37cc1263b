"""What experiments that train have in common: their settings, how a cell is trained, and where its model is kept."""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from splitveil.data import Dataset
from splitveil.errors import ExperimentError
from splitveil.experiments.accuracy import Numbers
from splitveil.experiments.cells import Place, Report, config_digest
from splitveil.runs import Run, train_run
from splitveil.train import Progress, Recipe

HIDDEN = {"utkface": "race", "celeba": "Male", "qmnist": "writer", "pins": "identity", "digit-pairs": "digit"}
CUTS = (2, 3, 4, 5, 6)
KEPT = (32, 8, 4, 2, 1)


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
class TrainedCell:
    """One model: how it is trained, and where its accuracy is measured.

    Attributes:
        data: the data set.
        seed, epochs, removal, decov, variational, precision: see `Recipe`.
        cuts: where accuracy is measured.
        kept: numbers m' of components.
    """

    data: str
    seed: int
    epochs: int
    removal: float
    decov: float
    variational: float
    precision: str
    cuts: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def label(self) -> str:
        """Data set and weights."""
        return f"{self.data}-{self.removal:g}-{self.decov:g}-{self.variational:g}"

    @property
    def recipe(self) -> Recipe:
        """How to train."""
        names = ("seed", "epochs", "removal", "decov", "variational", "precision")
        return Recipe.from_mapping({name: getattr(self, name) for name in names})


def data_names(settings: Settings, own: Sequence[str]) -> list[str]:
    """The data sets that the settings ask for, each once; raises `ExperimentError` where one has no secret here."""
    names = settings.data or (("digit-pairs",) if settings.quick else own)
    if unknown := [name for name in names if name not in HIDDEN]:
        raise ExperimentError(f"this experiment has no data set {unknown[0]!r}; choose {', '.join(HIDDEN)}")
    return list(dict.fromkeys(names))


def within(report: Report, low: float, high: float) -> Progress:
    """Progress in steps, as a part of a cell's."""
    return lambda done, total, text: report(low + (high - low) * done / total, text)


def trained(
    group: str, label: str, recipe: Recipe, source: str, data: Dataset, place: Place, progress: Progress
) -> tuple[nn.Module, list[Numbers], float | None]:
    """A model, its training's history, and the median of the seconds per epoch (None: trained before).

    The run's folder has the group and the label, and the recipe's digest, as its name, so that what is measured may
    change without training again, and experiments share their models.
    """
    ends = [time.perf_counter()]

    def timed(done: int, total: int, text: str) -> None:
        ends.append(time.perf_counter())
        progress(done, total, f"epoch {done} of {total}, {text}")

    folder = place.runs / group / f"{label}-{config_digest(asdict(recipe))}"
    history = train_run(folder, data, recipe, source=source, device=place.device, progress=timed)
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    # Channels last, as in training: a quarter faster.
    model = Run(folder).model().to(place.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, [asdict(epoch) for epoch in history], statistics.median(seconds) if seconds else None

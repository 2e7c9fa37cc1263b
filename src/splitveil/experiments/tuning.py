"""What each choice in the tuning buys, on validation data alone: how many answers stay what they were."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from splitveil.counting import multiply_accumulates
from splitveil.data import Progress, load_data
from splitveil.experiments.cells import Place, Report, Result, Row
from splitveil.experiments.comparisons import in_percent, shown
from splitveil.experiments.drawing import COLOURS, MARKERS, bars, legend
from splitveil.experiments.ours import TUNED
from splitveil.experiments.tables import Estimate, markdown, percent
from splitveil.experiments.training import Settings, data_names, trained, within
from splitveil.message import Obfuscator
from splitveil.obfuscate import Codebook, Distilled, Features, ServerAware
from splitveil.split import SplitModel
from splitveil.statistics import proportion
from splitveil.train import Recipe, predict

DATA = ("utkface", "qmnist")
SEED, EPOCHS = 2, 20
CUTS = (4, 3)
KEPT = (16, 4, 1)
MESSAGES = {"utkface": (16, 2), "qmnist": (16, 10), "digit-pairs": (16, 10)}
_DISTILLED: Mapping[str, Callable[..., Any]] = {
    "distilled": Distilled.fit,
    "without mixing": partial(Distilled.fit, mixing=0.0),
    "mixing evenly": partial(Distilled.fit, mixing=1.0),
    "without bottleneck": partial(Distilled.fit, bottleneck=0.0),
    "bottleneck 0.1": partial(Distilled.fit, bottleneck=0.1),
    "temperature 1": partial(Distilled.fit, temperature=1.0),
    "temperature 4": partial(Distilled.fit, temperature=4.0),
    "all prefixes evenly": partial(Distilled.fit, whole=0.2),
    "no shorter prefixes": partial(Distilled.fit, whole=1.0),
    "without a hidden layer": partial(Distilled.fit, width=0),
    "server tuned along": Distilled.fit_with_server,
    "server-aware": ServerAware.fit,
    "active subspaces": partial(ServerAware.fit, isotropic=True),
}
_CODEBOOK: Mapping[str, Callable[..., Codebook]] = {
    "codebook": Codebook.fit,
    "codebook without mixing": partial(Codebook.fit, mixing=0.0),
}
_LINEAR = ("server-aware", "active subspaces")
_QUICK = ("distilled", "without mixing", "codebook")
VARIANTS = (*_DISTILLED, *_CODEBOOK)


@dataclass(frozen=True)
class TuningCell:
    """One way to tune, on one model.

    Attributes:
        data: the data set.
        seed, epochs, precision: of the plain training, see `Recipe`; the seed is the tuning's too.
        cut: where the model is cut.
        variant: of `VARIANTS`.
        sizes: coefficients, or messages of a codebook.
        tuning: revision of the tuning, of variants that are tuned; None of others.
    """

    data: str
    seed: int
    epochs: int
    precision: str
    cut: int
    variant: str
    sizes: tuple[int, ...]
    tuning: int | None

    @property
    def label(self) -> str:
        """What a person tells it by."""
        return f"{self.data}-cut{self.cut}-{self.variant.replace(' ', '-')}-{self.seed}"


def cells(settings: Settings) -> list[TuningCell]:
    """Every variant at every cut of each data set.

    Raises:
        ExperimentError: there is no such data set here.
    """
    quick = settings.quick
    return [
        TuningCell(
            data=name, seed=0 if quick else SEED, epochs=settings.epochs or (2 if quick else EPOCHS),
            precision=settings.precision, cut=cut, variant=variant,
            sizes=MESSAGES.get(name, MESSAGES["utkface"]) if variant in _CODEBOOK else KEPT,
            tuning=None if variant in _LINEAR else TUNED["codebook" if variant in _CODEBOOK else "distilled"],
        )
        for cut in (CUTS[:1] if quick else CUTS)
        for name in data_names(settings, DATA)
        for variant in (_QUICK if quick else VARIANTS)
    ]  # fmt: skip


def compute(cell: TuningCell, place: Place, report: Report) -> Result:
    """Train or load, fit to the training part, and answer the validation part; the test part is not touched."""
    start = time.perf_counter()
    data = load_data(cell.data, root=place.data_root)
    recipe = Recipe(epochs=cell.epochs, seed=cell.seed, precision=cell.precision)  # type: ignore[arg-type]
    label, progress = f"{cell.data}-plain-{cell.seed}", within(report, 0.0, 0.3)
    split = SplitModel(trained("models", label, recipe, cell.data, data, place, progress)[0], at=cell.cut)
    macs = multiply_accumulates(split.client, data.train.images(slice(0, 1)).to(split.device))
    features = Features.known(predict(split.client, data.train), client_macs=macs)
    trained_at = time.perf_counter()
    fitted = _fitted(cell, split, features, within(report, 0.3, 1.0))
    fitted_at = time.perf_counter()
    z, y = predict(split.client, data.val), data.val.y
    whole = predict(split.model, data.val).argmax(1)
    sizes = []
    for size, (its, veil) in zip(cell.sizes, fitted, strict=True):
        answers = _answers(its, veil, z)
        sizes.append({"size": size, "val": _share(answers == y), "agreement": _share(answers == whole)})
    numbers = {"undefended": _share(whole == y), "sizes": sizes}
    return Result(data.digest, numbers, {"train": trained_at - start, "fit": fitted_at - trained_at})


def _fitted(
    cell: TuningCell, split: SplitModel, features: Features, progress: Progress
) -> list[tuple[SplitModel, Obfuscator]]:
    """An obfuscator for each size; of the coefficients one fit serves all."""
    if cell.variant in _CODEBOOK:
        start = Codebook.directions(split, features, cell.seed)
        fit = partial(_CODEBOOK[cell.variant], split, features, start=start, seed=cell.seed, progress=progress)
        return [(split, fit(messages=size)) for size in cell.sizes]
    more = {} if cell.variant in _LINEAR else {"progress": progress}
    found = _DISTILLED[cell.variant](split, features, m=max(cell.sizes), seed=cell.seed, **more)
    its, veil = found if isinstance(found, tuple) else (split, found)
    return [(its, veil.keep(size)) for size in cell.sizes]


@torch.no_grad()
def _answers(split: SplitModel, veil: Obfuscator, z: Tensor) -> Tensor:
    batches = (rows.to(split.device) for rows in torch.split(z, 512))
    return torch.cat([split.answer(veil, veil.encode(rows)).argmax(1).cpu() for rows in batches])


def _share(true: Tensor) -> Estimate:
    return proportion(true.numpy()).as_row()


def table(rows: Sequence[Row]) -> str:
    """Agreement with the whole network and accuracy, by data set, cut and variant."""
    pages = ["# What each choice in the tuning buys", _HEAD]
    for data, cut in dict.fromkeys((row.config["data"], row.config["cut"]) for row in rows):
        its = [row for row in rows if (row.config["data"], row.config["cut"]) == (data, cut)]
        pages.append(f"## {data}, cut {cut}: the whole network {percent(its[0].numbers['undefended']['value'])}")
        for names, what in ((tuple(_DISTILLED), "m'"), (tuple(_CODEBOOK), "M")):
            some = {row.config["variant"]: row for row in its if row.config["variant"] in names}
            if some:
                pages.append(_lines([some[name] for name in names if name in some], what))
    return "\n\n".join(pages) + "\n"


_HEAD = (
    "On the validation part, in %: how often the answer from the message is the whole network's own, with its 95 % "
    "interval, and after the stroke how often it is right. One plainly trained model for each data set, one fit; "
    "`distilled` and `codebook` are the defaults, all others differ from them in what their name says: *evenly*: "
    "shares of the mixtures are uniform; `server-aware` is what tuning begins with, *active subspaces* the same "
    "without the features' covariance. Settings may be chosen by these images; the test part is not touched."
)


def _lines(rows: Sequence[Row], what: str) -> str:
    lines = [
        [
            row.config["variant"],
            *(
                f"{shown(in_percent(one['agreement']))} / {percent(one['val']['value'])}"
                for one in row.numbers["sizes"]
            ),
        ]
        for row in rows
    ]
    return markdown(["", *(f"{what}={size}" for size in rows[0].config["sizes"])], lines)


def plot(rows: Sequence[Row]) -> Figure:
    """A panel per data set and cut: how many answers change, by variant of `Distilled` and coefficients."""
    pairs = list(dict.fromkeys((row.config["data"], row.config["cut"]) for row in rows))
    figure = Figure(figsize=(3 * len(pairs) + 2.5, 4.5), layout="constrained")
    panels = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    names = [name for name in _DISTILLED if any(row.config["variant"] == name for row in rows)]
    for axes, (data, cut) in zip(panels, pairs, strict=True):
        its = [row for row in rows if (row.config["data"], row.config["cut"]) == (data, cut)]
        for index, size in enumerate(KEPT):
            found = {
                names.index(row.config["variant"]) + (index - 1) / 5: in_percent(one["agreement"])
                for row in its
                if row.config["variant"] in names
                for one in row.numbers["sizes"]
                if one["size"] == size
            }
            below, above = bars(list(found.values()))
            axes.errorbar(
                [100 - one["value"] for one in found.values()], list(found), xerr=[above, below], linestyle="none",
                color=COLOURS[index], marker=MARKERS[index], markersize=4, elinewidth=0.8, label=f"m'={size}",
            )  # fmt: skip
        axes.set_title(f"{data}, cut {cut}", fontsize=10)
        axes.set_xlabel("answers that change, %")
        axes.set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return legend(figure, panels)

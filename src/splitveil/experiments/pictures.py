"""What a trained decoder recovers of the image, scored and shown: the raw feature, our messages, and the mean image."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from splitveil.attack import mean_image, reconstruct, similarity
from splitveil.data import load_data
from splitveil.experiments.accuracy import Numbers
from splitveil.experiments.cells import Place, Report, Result, Row, slug
from splitveil.experiments.drawing import bars
from splitveil.experiments.tables import markdown
from splitveil.experiments.training import Settings, TrainedCell, data_names, trained, within
from splitveil.files import write_with
from splitveil.linear import factorise
from splitveil.measure import view
from splitveil.message import Obfuscator
from splitveil.obfuscate import DistortionFree, Identity, TopComponents
from splitveil.report import strips
from splitveil.split import SplitModel
from splitveil.statistics import Bootstrap
from splitveil.train import Recipe, predict

DATA = ("utkface", "celeba", "qmnist", "pins")
EPOCHS = 20
CUT = 4
KEPT = (32, 8, 2)
SHOWN = 10


@dataclass(frozen=True)
class PicturesCell(TrainedCell):
    """One model whose messages are inverted; ``cuts`` holds one cut."""

    shown: int

    @property
    def label(self) -> str:
        """Data set and seed."""
        return f"{self.data}-{self.seed}"


def cells(settings: Settings) -> list[PicturesCell]:
    """One model of the paper's recipe per data set."""
    quick, paper = settings.quick, Recipe.paper()
    return [
        PicturesCell(
            data=name, seed=0, epochs=settings.epochs or (2 if quick else EPOCHS), removal=paper.removal,
            decov=paper.decov, variational=paper.variational, precision=settings.precision, cuts=(CUT,),
            kept=KEPT[1:2] if quick else KEPT, shown=SHOWN,
        )
        for name in data_names(settings, DATA)
    ]  # fmt: skip


def compute(cell: PicturesCell, place: Place, report: Report) -> Result:
    """Train decoders on messages of the training part, choose on validation, score on test.

    The pictures go to ``place.runs``, since they show images of the data set; the row holds their file's name.
    """
    start = time.perf_counter()
    data = load_data(cell.data, root=place.data_root)
    label = f"{cell.data}-all-{cell.seed}"
    model = trained("models", label, cell.recipe, cell.data, data, place, within(report, 0.0, 0.2))[0]
    split = SplitModel(model, at=cell.cuts[0])
    shape = tuple(predict(split.client, data.test).shape[1:])
    factors = factorise(split.server_layer, feature_shape=shape)
    veils: dict[str, Obfuscator] = {"raw feature": Identity(shape), "distortion-free": DistortionFree(factors)}
    veils |= {f"m'={m}": TopComponents(factors, m=m) for m in cell.kept}
    truth, shown = data.test.x, {"images": data.test.images(slice(0, cell.shown))}
    found: Numbers = {}
    for index, (name, veil) in enumerate(veils.items()):
        report(0.2 + 0.8 * index / len(veils), f"decoder of the {name}")
        train, val, test = (view(split, veil, part)[0] for part in (data.train, data.val, data.test))
        recovered = reconstruct(train, data.train.x, val, data.val.x, test, seed=cell.seed)
        found[name], shown[name] = _scores(recovered, truth), recovered[: cell.shown]
    found["mean image"] = _scores(mean_image(data.train.x, len(truth)), truth)
    picture = f"{slug(cell)}.png"
    _write(place.runs / "pictures" / picture, shown)
    return Result(data.digest, {"messages": found, "picture": picture}, {"all": time.perf_counter() - start})


def _scores(recovered: Tensor, truth: Tensor) -> Numbers:
    alike, boot = similarity(recovered, truth), Bootstrap(len(truth))
    return {name: boot.mean(np.asarray(getattr(alike, name).numpy())).as_row() for name in ("ssim", "psnr")}


def _write(path: Path, shown: dict[str, Tensor]) -> None:
    figure = strips(shown)
    write_with(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def table(rows: Sequence[Row]) -> str:
    """SSIM and PSNR of what is recovered, mean over the test images with its interval."""
    pages = []
    for row in rows:
        lines = [
            [
                name,
                *(_shown(row.numbers["messages"][name][each], digits) for each, digits in (("ssim", 3), ("psnr", 2))),
            ]
            for name in ordered(row.numbers["messages"])
        ]
        pages.append(f"## {row.config['data']}\n\n{markdown(['decoded from', 'SSIM', 'PSNR, dB'], lines)}")
    return (
        "# Images recovered from messages\n\nThe paper's recipe, cut 4. The better of a linear and a non-linear "
        "decoder, chosen on validation; data range 1. The mean training image is the floor: a message that says "
        "nothing gives it.\n\n" + "\n\n".join(pages) + "\n"
    )


def _shown(estimate: Numbers, digits: int) -> str:
    value, low, high = (f"{estimate[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def plot(rows: Sequence[Row]) -> Figure:
    """SSIM and PSNR of each message, data sets side by side; the last message says nothing, so it is the floor."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    grid = figure.subplots(1, 2)
    names = ordered({name for row in rows for name in row.numbers["messages"]})
    for axes, score, label in zip(grid, ("ssim", "psnr"), ("SSIM", "PSNR, dB"), strict=True):
        _panel(axes, rows, names, score)
        axes.set_ylabel(label)
    grid[-1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def ordered(messages: Iterable[str]) -> list[str]:
    """Messages by how much they hold: all of the feature first, then fewer and fewer coefficients, then nothing."""
    whole, nothing = ("raw feature", "distortion-free"), "mean image"

    def place(name: str) -> tuple[int, int]:
        if name in whole:
            return 0, whole.index(name)
        return (2, 0) if name == nothing else (1, -int(name.removeprefix("m'=")))

    return sorted(messages, key=place)


def _panel(axes: Axes, rows: Sequence[Row], names: Sequence[str], score: str) -> None:
    for index, (row, (colour, marker)) in enumerate(zip(rows, _STYLES, strict=False)):
        scores = {name: each[score] for name, each in row.numbers["messages"].items()}
        aside = 0.15 * (index - (len(rows) - 1) / 2)  # so that intervals do not hide each other
        there = [place for place, name in enumerate(names) if name in scores]
        # No line: the messages are kinds, not numbers.
        axes.errorbar(
            [place + aside for place in there], [scores[names[place]]["value"] for place in there],
            yerr=bars([scores[names[place]] for place in there]), label=row.config["data"], color=colour,
            marker=marker, linestyle="none", capsize=3,
        )  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", labelrotation=30, labelsize=9)


_STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#57606a", "v"))

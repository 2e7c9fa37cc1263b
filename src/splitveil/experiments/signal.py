"""How much of each layer's input passes on: the cumulative signal content (paper section 5.2, figure 2)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from splitveil.data import Dataset, load_data
from splitveil.errors import ExperimentError
from splitveil.experiments.ablation import EPOCHS, SEEDS
from splitveil.experiments.accuracy import Numbers
from splitveil.experiments.cells import Place, Report, Result, Row
from splitveil.experiments.tables import Estimate, markdown, summary
from splitveil.experiments.training import Settings, TrainedCell, data_names, trained, within
from splitveil.linear import Factors, Operator, factorise
from splitveil.split import SplitModel
from splitveil.statistics import Bootstrap
from splitveil.train import Progress, Recipe, predict

DATA = ("qmnist", "utkface", "celeba", "pins")
VARIANTS = ("plain", "all")
CUTS = (1, 2, 3, 4, 5, 6)
OPERATORS: tuple[Operator, ...] = ("patch", "dense")
_COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#57606a")
_DASHES = {"plain": "--", "all": "-"}


@dataclass(frozen=True)
class SignalCell(TrainedCell):
    """One model; ``cuts`` are the layers whose input is measured, and no components are kept.

    Attributes:
        variant: "plain", or "all" of the paper's ingredients.
        operators: of convolutions.
    """

    variant: str
    operators: tuple[Operator, ...]

    @property
    def label(self) -> str:
        """Data set, variant and seed, as the ablation names them: both share their models."""
        return f"{self.data}-{self.variant}-{self.seed}"


def cells(settings: Settings) -> list[SignalCell]:
    """Both ways of training on every data set, seed after seed; quick: one seed, two epochs.

    Raises:
        ExperimentError: there is no such data set here.
    """
    names, quick, paper = data_names(settings, DATA), settings.quick, Recipe.paper()
    ingredients = ("removal", "decov", "variational")
    weights = {"plain": dict.fromkeys(ingredients, 0.0), "all": {each: getattr(paper, each) for each in ingredients}}
    return [
        SignalCell(
            data=name, variant=variant, seed=seed, epochs=settings.epochs or (2 if quick else EPOCHS),
            **weights[variant], precision=settings.precision, cuts=CUTS, kept=(), operators=OPERATORS,
        )
        for seed in (SEEDS[:1] if quick else SEEDS)
        for name in names
        for variant in VARIANTS
    ]  # fmt: skip


def compute(cell: SignalCell, place: Place, report: Report) -> Result:
    """Train (or take the trained model), and measure the signal content of the test images at every layer."""
    data = load_data(cell.data, root=place.data_root)
    start = time.perf_counter()
    model, _, _ = trained("models", cell.label, cell.recipe, cell.data, data, place, within(report, 0.0, 0.7))
    trained_at = time.perf_counter()
    numbers = {"content": signal_content(model, data, cell.cuts, cell.operators, within(report, 0.7, 1.0))}
    return Result(data.digest, numbers, {"train": trained_at - start, "content": time.perf_counter() - trained_at})


@torch.no_grad()
def signal_content(
    model: nn.Module, data: Dataset, cuts: Sequence[int], operators: Sequence[Operator], progress: Progress
) -> list[Numbers]:
    """Mean of C_S over the test images, at each layer and summed over the layers so far.

    Both are means of each image's own logarithm, with bootstrapped intervals over the same resamples. A fully
    connected layer has one operator, so its content counts in the sums of both.

    Returns:
        One row per operator and cut: operator, cut, and layer and cumulative, each with value, low, high.
    """
    resamples = Bootstrap(len(data.test))
    sums = {operator: torch.zeros(len(data.test), dtype=torch.float64) for operator in operators}
    rows = []
    for index, cut in enumerate(cuts):
        progress(index, len(cuts), f"signal content at layer {cut}")
        split = SplitModel(model, at=cut)
        for operator in operators:
            content = _content_at(split, data, operator)
            sums[operator] += content
            layer, cumulative = resamples.mean(content.numpy()), resamples.mean(sums[operator].numpy())
            rows.append(
                {"operator": operator, "cut": cut, "layer": layer.as_row(), "cumulative": cumulative.as_row()}
            )  # fmt: skip
    return rows


def _content_at(split: SplitModel, data: Dataset, operator: Operator) -> Tensor:
    shape = tuple(split.client(data.test.images(slice(0, 1)).to(split.device)).shape[1:])
    factors = _factors(split, shape, operator)
    return predict(lambda x: log_content(factors, split.client(x.to(split.device))), data.test)


def _factors(split: SplitModel, shape: tuple[int, ...], operator: Operator) -> Factors:
    """Factors that tell the signal content: all, or one where there is known to be no null space."""
    layer = split.server_layer
    if operator == "patch" or isinstance(layer, nn.Linear):
        return factorise(layer, feature_shape=shape, operator=operator)
    first = factorise(layer, feature_shape=shape, rank=1)
    if first.null_dimension == 0:
        return first
    # All factors of a dense convolution take minutes; a layer with a dead channel is rare enough.
    return factorise(layer, feature_shape=shape, rank=min(first.in_features, first.out_features))


def log_content(factors: Factors, z: Tensor) -> Tensor:
    """C_S(z) = log(‖z_S‖² / ‖z‖²) of each feature (paper section 5.2), as natural logarithms, which it does not say.

    On the patch operator both norms run over all patches as the layer sees them, padding included: a number counts
    as often as patches hold it, and z_S is each patch's part in the kernel's row space. Where the operator has no
    null space the content is 0, exactly, and nothing is computed. A feature of zeros has nothing to lose: 0.

    Args:
        factors: complete, or known to have no null space.
        z: ``(B, *feature_shape)``.

    Returns:
        ``(B,)`` in float64, at most 0.

    Raises:
        ExperimentError: the factors are truncated, or a feature lies in the null space as a whole.
    """
    if factors.null_dimension == 0:
        return torch.zeros(len(z), dtype=torch.float64, device=z.device)
    if not factors.complete:
        raise ExperimentError("the signal content needs all factors of the layer; call factorise with a larger rank")
    kept = _energy(factors.project(z, factors.rank))
    if factors.operator == "patch":
        ones = torch.ones(1, factors.vh.shape[1]).to(z)
        total = factors.map.parts[0].project(z.square(), ones).double().flatten(1).sum(1)
    else:
        total = _energy(z)
    share = torch.where(total > 0, kept / total, 1.0)
    if not bool((share > 0).all()):
        raise ExperimentError("a feature has no signal content at all, so its logarithm is not finite; train again")
    return share.clamp(max=1.0).log()  # a projection is never longer, but for rounding


def _energy(z: Tensor) -> Tensor:
    return z.double().square().flatten(1).sum(1)


def _curve(rows: Sequence[Row], data: str, variant: str, operator: str, what: str) -> dict[int, Estimate]:
    """By cut: one seed's estimate, or several seeds' mean with the smallest and the largest."""
    found: dict[int, list[Estimate]] = {}
    for row in rows:
        if (row.config["data"], row.config["variant"]) == (data, variant):
            for one in row.numbers["content"]:
                if one["operator"] == operator:
                    found.setdefault(one["cut"], []).append(one[what])
    return {cut: summary(its) for cut, its in found.items()}


def _names(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row.config[key] for row in rows))


def _operators(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(operator for row in rows for operator in row.config["operators"]))


def table(rows: Sequence[Row]) -> str:
    """Content of each layer and cumulated, per data set, operator and training."""
    pages = []
    for name in _names(rows, "data"):
        lines, cuts = [], rows[0].config["cuts"]
        for operator in _operators(rows):
            for variant in _names(rows, "variant"):
                for what in ("layer", "cumulative"):
                    curve = _curve(rows, name, variant, operator, what)
                    if curve:
                        lines.append([operator, variant, what, *(_shown(curve[cut]) for cut in cuts)])
        heads = ["at convolutions", "training", "content", *(f"layer {cut}" for cut in cuts)]
        pages.append(f"## {name}\n\n{markdown(heads, lines)}")
    return (
        "# Cumulative signal content\n\n"
        "Natural logarithm of the share of a layer's input that the layer does not ignore, log(‖z_S‖²/‖z‖²), mean over "
        "the test images. One seed: with its 95 % interval. Several seeds: their mean, and the smallest and the "
        "largest. 0 at a convolution's dense operator: it has no null space.\n\n" + "\n\n".join(pages) + "\n"
    )


def _shown(estimate: Estimate) -> str:
    value, low, high = (f"{estimate[name] + 0.0:.3f}" for name in ("value", "low", "high"))
    return value if low == high else f"{value} [{low}, {high}]"


def plot(rows: Sequence[Row]) -> Figure:
    """Cumulative content against the layer: a panel per operator, a colour per data set, dashes for plain training."""
    operators = _operators(rows)
    figure = Figure(figsize=(4.6 * len(operators) + 2, 4.2), layout="constrained")
    panels = figure.subplots(1, len(operators), squeeze=False, sharey=True)[0]
    for axes, operator in zip(panels, operators, strict=True):
        for index, name in enumerate(_names(rows, "data")):
            for variant in _names(rows, "variant"):
                curve = _curve(rows, name, variant, operator, "cumulative")
                if curve:
                    _draw(axes, curve, f"{name}, {variant}", _COLOURS[index % len(_COLOURS)], _DASHES[variant])
        axes.set_title(f"{operator} operator at convolutions", fontsize=10)
        axes.set_xlabel("layer")
        axes.axhline(0, color="#57606a", linewidth=0.8)
    panels[0].set_ylabel("cumulative log of the signal content's share")
    panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _draw(axes: Axes, curve: dict[int, Estimate], label: str, colour: str, dashes: str) -> None:
    y = [one["value"] for one in curve.values()]
    below = [one["value"] - one["low"] for one in curve.values()]
    above = [one["high"] - one["value"] for one in curve.values()]
    axes.errorbar(
        list(curve), y, yerr=[below, above], label=label, color=colour, linestyle=dashes, marker="o", markersize=3,
        capsize=2, linewidth=1.2,
    )  # fmt: skip

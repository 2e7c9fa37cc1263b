"""What obfuscation costs and saves: section 4.3's m'/m and m'/n, counted and timed."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from splitveil.cost import edge_cost
from splitveil.counting import multiply_accumulates
from splitveil.data import load_data
from splitveil.experiments.accuracy import Numbers
from splitveil.experiments.cells import Place, Report, Result, Row
from splitveil.experiments.tables import markdown, percent
from splitveil.experiments.training import Settings, data_names
from splitveil.linear import Factors, Operator, factorise
from splitveil.models import Table1Net
from splitveil.obfuscate import TopComponents
from splitveil.split import SplitModel

DATA = ("qmnist", "utkface", "celeba", "pins")
CUTS = (1, 2, 3, 4, 5, 6)
KEPT = (1, 4, 8, 16, 32, 64)
OPERATORS: tuple[Operator, ...] = ("patch", "dense")
BATCHES = (32, 1)
_COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#57606a")
_MARKS = {"patch": "o", "dense": "s"}


@dataclass(frozen=True)
class CostCell:
    """One data set's shape: `Table1Net` for its images and classes, untrained, since no cost depends on the weights.

    Attributes:
        data: the data set.
        cuts: where to cut.
        operators: of convolutions.
        kept: numbers m' of components, where a cut has them.
        batches: images encoded at once, for the times.
        repeats: of each time; the median counts.
    """

    data: str
    cuts: tuple[int, ...]
    operators: tuple[Operator, ...]
    kept: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int

    @property
    def label(self) -> str:
        """The data set."""
        return self.data


def cells(settings: Settings) -> list[CostCell]:
    """One per data set; nothing is trained, so epochs and precision do not matter.

    Raises:
        ExperimentError: there is no such data set here.
    """
    repeats = 3 if settings.quick else 51
    return [CostCell(name, CUTS, OPERATORS, KEPT, BATCHES, repeats) for name in data_names(settings, DATA)]


@torch.no_grad()
def compute(cell: CostCell, place: Place, report: Report) -> Result:
    """Count and time every cut, operator and m', with one torch thread on the CPU, as on an edge device."""
    data = load_data(cell.data, root=place.data_root)
    start = time.perf_counter()
    torch.manual_seed(0)
    model = Table1Net(data.input_shape, len(data.classes)).eval()
    x = data.train.images(slice(0, max(cell.batches)))
    rows = []
    with _one_thread():
        for index, cut in enumerate(cell.cuts):
            report(index / len(cell.cuts), f"cut {cut}")
            rows += costs_at(SplitModel(model, at=cut), x, cell)
    shape = {"input_shape": list(data.input_shape), "classes": len(data.classes)}
    return Result(data.digest, {**shape, "costs": rows}, {"cost": time.perf_counter() - start})


def costs_at(split: SplitModel, x: Tensor, cell: CostCell) -> list[Numbers]:
    """The costs of one cut.

    Args:
        split: the model, cut at a layer that is read by one linear layer.
        x: images, as many as the largest batch.
        cell: which operators, m' and batches.

    Returns:
        One row per operator and m', of counts for one image: cut, operator, m, client_macs, encoder_macs, layer_macs
        (the server's first layer), macs_share (encoder / layer) beside the paper's m'/m, message_bytes, raw_bytes,
        coefficients_share (numbers sent / n) beside the paper's m'/n, and times: by batch the seconds of encoder and
        layer, and their ratio.
    """
    z, layer = split.client(x), split.server_layer
    assert not isinstance(layer, tuple), "Table 1 has no branches"
    layer_macs = multiply_accumulates(layer, z[:1])
    rows = []
    for factors in _factors(layer, tuple(z.shape[1:]), cell):
        for m in (m for m in cell.kept if m <= len(factors.s)):
            veil = TopComponents(factors, m=m)
            cost = edge_cost(split, veil, x[:1])
            rows.append({
                "cut": split.at, "operator": factors.operator, "m": m, "client_macs": cost.client_macs,
                "encoder_macs": cost.encoder_macs, "layer_macs": layer_macs,
                "macs_share": cost.encoder_macs / layer_macs, "m_share": m / factors.u.shape[0],
                "message_bytes": cost.message_bytes, "raw_bytes": cost.raw_bytes,
                "coefficients_share": prod(veil.message.shape) / factors.in_features,
                "n_share": m / factors.in_features,
                "times": {str(batch): _times(veil.encode, layer, z[:batch], cell.repeats) for batch in cell.batches},
            })  # fmt: skip
    return rows


def _factors(layer: nn.Module, shape: tuple[int, ...], cell: CostCell) -> Iterator[Factors]:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    if isinstance(layer, nn.Linear):
        yield factorise(layer, feature_shape=shape)
        return
    for operator in cell.operators:
        # All factors of a dense convolution would take minutes.
        rank = None if operator == "patch" else min(max(cell.kept), prod(shape))
        yield factorise(layer, feature_shape=shape, operator=operator, rank=rank)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _times(encode: Callable[[Tensor], Tensor], layer: nn.Module, z: Tensor, repeats: int) -> Numbers:
    """Medians of interleaved repeats, so that a busy moment slows both alike."""
    seconds: dict[str, list[float]] = {"encoder": [], "layer": []}
    for index in range(repeats + 1):
        for name, function in (("encoder", encode), ("layer", layer)):
            begin = time.perf_counter()
            function(z)
            if index:  # the first call warms up
                seconds[name].append(time.perf_counter() - begin)
    encoder, whole = (statistics.median(seconds[name]) for name in ("encoder", "layer"))
    return {"encoder": encoder, "layer": whole, "ratio": encoder / whole}


def table(rows: Sequence[Row]) -> str:
    """One line per data set, cut, operator and m'."""
    pages = []
    for row in rows:
        batches = [str(batch) for batch in row.config["batches"]]
        lines = [
            [
                str(one["cut"]), one["operator"], str(one["m"]),
                *(f"{one[name]:,}" for name in ("client_macs", "encoder_macs", "layer_macs")),
                percent(one["macs_share"]), percent(one["m_share"]),
                *(percent(one["times"][batch]["ratio"]) for batch in batches),
                f"{one['message_bytes']:,}", f"{one['raw_bytes']:,}",
                percent(one["coefficients_share"]), f"{100 * one['n_share']:.3g}",
            ]
            for one in row.numbers["costs"]
        ]  # fmt: skip
        heads = [
            "cut", "operator", "m'", "client", "encoder", "first server layer", "encoder / layer, %", "m'/m, %",
            *(f"time, batch {batch}, %" for batch in batches), "bytes", "raw bytes", "sent / n, %", "m'/n, %",
        ]  # fmt: skip
        shape = "×".join(map(str, row.numbers["input_shape"]))
        pages.append(f"## {row.config['data']}: {shape}, {row.numbers['classes']} classes\n\n{markdown(heads, lines)}")
    return (
        "# What obfuscation costs and saves\n\n"
        "Multiply-accumulates of one image; time of the encoder in % of the server's first layer's in the same run, "
        "one thread, medians. The paper's m'/m counts outputs: of a layer (fully connected, dense) or filters (patch). "
        "A patch component is a map, so it sends m'·H'·W' numbers, not m'. Table 1's network, untrained: no cost "
        "depends on the weights.\n\n" + "\n\n".join(pages) + "\n"
    )


def plot(rows: Sequence[Row]) -> Figure:
    """Encoder against the paper's m'/m, in arithmetic (left) and measured time (right); a row per data set."""
    figure = Figure(figsize=(11, 3.8 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False, sharex=True, sharey=True)
    for (counted, timed), row in zip(grid, rows, strict=True):
        batch = str(row.config["batches"][0])
        _panel(counted, row, lambda one: one["macs_share"])
        _panel(timed, row, lambda one, batch=batch: one["times"][batch]["ratio"])  # type: ignore[misc]
        counted.set_title(f"{row.config['data']}: multiply-accumulates", fontsize=10)
        timed.set_title(f"{row.config['data']}: time, batches of {batch}", fontsize=10)
        counted.set_ylabel("encoder / server's first layer")
        timed.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in grid[-1]:
        axes.set_xlabel("m'/m")
    return figure


def _panel(axes: Axes, row: Row, share: Callable[[Numbers], float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axline((0.01, 0.01), (1, 1), color="#57606a", linewidth=0.8, linestyle="--", label="the paper's m'/m")
    found: dict[tuple[int, str], list[Numbers]] = {}
    for one in row.numbers["costs"]:
        found.setdefault((one["cut"], one["operator"]), []).append(one)
    for (cut, operator), its in found.items():
        axes.plot(
            [one["m_share"] for one in its], [share(one) for one in its], label=f"cut {cut}, {operator}",
            color=_COLOURS[(cut - 1) % len(_COLOURS)], marker=_MARKS[operator], markersize=4, linewidth=1,
        )  # fmt: skip

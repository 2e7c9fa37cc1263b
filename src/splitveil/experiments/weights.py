"""The search for the default weights of the recipe's ingredients, on validation data alone."""

import time
from collections.abc import Sequence

from splitveil.data import load_data
from splitveil.experiments.accuracy import from_components, undefended
from splitveil.experiments.cells import Place, Report, Result, Row
from splitveil.experiments.tables import markdown, over_cuts, percent
from splitveil.experiments.training import CUTS, KEPT, Settings, TrainedCell, data_names, trained, within

DATA = ("utkface", "qmnist")
EPOCHS = 10
# (removal, decov, variational): each alone over two orders of magnitude, then together.
TRIPLES = (
    (0.0, 0.0, 0.0),
    (0.25, 0.0, 0.0), (0.5, 0.0, 0.0), (1.0, 0.0, 0.0),
    (0.0, 0.001, 0.0), (0.0, 0.01, 0.0), (0.0, 0.1, 0.0),
    (0.0, 0.0, 0.1), (0.0, 0.0, 1.0),
    (0.5, 0.001, 0.0), (0.5, 0.01, 0.0), (0.5, 0.0, 0.1), (0.5, 0.0, 1.0),
    (0.5, 0.001, 0.1), (0.5, 0.001, 1.0), (0.5, 0.01, 0.1), (0.5, 0.1, 0.1),
)  # fmt: skip


def cells(settings: Settings) -> list[TrainedCell]:
    """All triples of weights on each data set.

    Raises:
        ExperimentError: there is no such data set here.
    """
    names = data_names(settings, DATA)
    quick = settings.quick
    return [
        TrainedCell(
            data=name, seed=0, epochs=settings.epochs or (2 if quick else EPOCHS),
            removal=removal, decov=decov, variational=variational, precision=settings.precision,
            cuts=(3, 4) if quick else CUTS, kept=(8, 2) if quick else KEPT,
        )
        for removal, decov, variational in (TRIPLES[:2] if quick else TRIPLES)
        for name in names
    ]  # fmt: skip


def compute(cell: TrainedCell, place: Place, report: Report) -> Result:
    """Train, and answer the validation part from components at every cut; the test part is not touched."""
    data = load_data(cell.data, root=place.data_root)
    start = time.perf_counter()
    progress = within(report, 0.0, 0.8)
    model, history, per_epoch = trained("weights", cell.label, cell.recipe, cell.data, data, place, progress)
    trained_at = time.perf_counter()
    report(0.8, "accuracy at every cut")
    numbers = {
        "undefended": undefended(model, data, ("val",)),
        "kept": from_components(model, data, cell.cuts, cell.kept, ("val",), operators=("patch",)),
        "history": history,
    }
    seconds = {
        "train": trained_at - start, "per_epoch": per_epoch, "accuracy": time.perf_counter() - trained_at,
    }  # fmt: skip
    return Result(data.digest, numbers, seconds)


def table(rows: Sequence[Row]) -> str:
    """Validation accuracy per data set and triple: undefended, and from m' components as a mean over the cuts."""
    pages = []
    for name in dict.fromkeys(row.config["data"] for row in rows):
        its = [row for row in rows if row.config["data"] == name]
        kept = its[0].config["kept"]
        lines = []
        for row in its:
            means = [over_cuts(row, m) for m in kept]
            weights = [f"{row.config[each]:g}" for each in ("removal", "decov", "variational")]
            shown = [row.numbers["undefended"]["val"]["value"], *means, sum(means) / len(means)]
            lines.append([*weights, *(percent(value) for value in shown)])
        heads = ["removal", "DeCov", "variational", "undefended", *(f"m'={m}" for m in kept), "mean"]
        pages.append(f"## {name}\n\n{markdown(heads, lines)}")
    title = "# Weights of the recipe's ingredients\n\nValidation accuracy in %; from m' components: the mean over the "
    return title + "cuts (patch operator at convolutions).\n\n" + "\n\n".join(pages) + "\n"

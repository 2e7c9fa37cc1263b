"""``splitveil inspect``: where a model can be cut, and what each cut costs."""

import warnings
from typing import Annotated, Any

import typer

from splitveil.cli.options import AsJson, Operator, Quiet, RunFolder, Trust
from splitveil.cli.output import print_json, print_table, progress_bar


def inspect(
    run: RunFolder,
    m: Annotated[int, typer.Option("--m", min=1, help="Components sent, at most, for the obfuscated size.")] = 8,
    operator: Annotated[Operator, typer.Option("--operator", help="Of convolutions.")] = "dense",
    trust: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cut points of a run's model: feature, rank, null space, edge cost, bytes per query."""
    from splitveil.errors import ModelError
    from splitveil.obfuscate import PrivacyWarning
    from splitveil.runs import Run

    opened = Run(run, trust=trust)
    model, rows = opened.model(), []
    points = getattr(model, "cut_points", ())
    if not points:
        raise ModelError(
            f"the model of {run} has no numbered cuts to list; 'splitveil profile {run}' measures the cut of its "
            "obfuscator"
        )
    with progress_bar(quiet) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)
        for at, name in enumerate(points, start=1):
            rows.append(_row(model, at, opened.manifest.model.input_shape, m, operator))
            if progress:
                progress(at, len(points), name)
    if as_json:
        print_json({"run": str(run), "m": m, "cuts": rows})
    else:
        heads = [key.replace("_", " ") for key in rows[0]]  # so that they wrap
        print_table(f"cuts of {run}", heads, [[_cell(cell) for cell in row.values()] for row in rows])


def _row(model: Any, at: int, input_shape: tuple[int, ...], m: int, operator: Operator) -> dict[str, Any]:
    import torch

    from splitveil.cost import edge_cost
    from splitveil.linear import factorise
    from splitveil.obfuscate import TopComponents
    from splitveil.split import SplitModel

    x = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0))
    split = SplitModel(model, at=at)
    with torch.no_grad():
        shape = tuple(split.client(x).shape[1:])
    factors = factorise(split.server_layer, feature_shape=shape, operator=operator)
    cost = edge_cost(split, TopComponents(factors, m=min(m, len(factors.s))), x)
    null = factors.null_dimension
    return {
        "cut": at, "layer": split.layer_name, "operator": factors.operator, "feature": list(shape),
        "n": factors.in_features, "m": factors.out_features, "rank": factors.rank,
        "null_share": None if null is None else null / factors.vh.shape[1],
        "client_macs": cost.client_macs, "encoder_macs": cost.encoder_macs, "client_parameters": cost.parameters,
        "raw_bytes": cost.raw_bytes, "message_bytes": cost.message_bytes,
    }  # fmt: skip


def _cell(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.1%}" if isinstance(value, float) else str(value)

"""``splitveil inspect``: where a model can be cut, and what each cut costs."""

import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from splitveil.cli.fitted import say_probabilities
from splitveil.cli.options import AsJson, ModelName, Operator, Quiet, Size, Trust, read_size
from splitveil.cli.output import print_json, progress_bar


def inspect(
    model: ModelName,
    m: Annotated[int, typer.Option("--m", min=1, help="Components sent, at most, for the obfuscated size.")] = 8,
    operator: Annotated[
        Operator,
        typer.Option("--operator", help="Of convolutions, where cuts are numbered: no other has factors listed."),
    ] = "dense",
    size: Size = None,
    trust: Trust = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Where a model can be cut: feature, edge cost and bytes of each cut; of numbered cuts rank and null space too."""
    from splitveil.errors import SplitError
    from splitveil.obfuscate import PrivacyWarning
    from splitveil.runs import find_model
    from splitveil.split import possible_cuts

    named = find_model(model, size=read_size(size), trust=trust)
    say_probabilities(named.model, named.source.input_shape)
    points, shape = getattr(named.model, "cut_points", ()), named.source.input_shape
    rows = []
    with progress_bar(quiet) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)
        cuts: Sequence[Any] = range(1, len(points) + 1) if points else possible_cuts(named.model)
        if not cuts:
            raise SplitError(f"{model} cannot be cut: at no module's input does one tensor cross alone")
        row: Callable[..., dict[str, Any]] = _numbered if points else _named
        for done, at in enumerate(cuts, start=1):
            rows.append(row(named.model, at, shape, m, operator))
            if progress:
                progress(done, len(cuts), str(at))
    if as_json:
        print_json({"run": model, "m": m, "cuts": rows})
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        typer.echo(_listing(f"cuts of {model}", rows, width))


def _numbered(model: Any, at: int, input_shape: tuple[int, ...], m: int, operator: Operator) -> dict[str, Any]:
    from splitveil.cost import edge_cost
    from splitveil.linear import factorise
    from splitveil.obfuscate import TopComponents

    split, x, shape = _cut(model, at, input_shape)
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


def _named(model: Any, at: str, input_shape: tuple[int, ...], m: int, operator: Operator) -> dict[str, Any]:  # noqa: ARG001
    """A cut of a model of the user's own, at which a message of m numbers is fitted."""
    import math

    from splitveil.cost import edge_cost
    from splitveil.counting import multiply_accumulates
    from splitveil.errors import NoLinearLayerError
    from splitveil.obfuscate import Identity
    from splitveil.wire import HEADER_BYTES

    split, x, shape = _cut(model, at, input_shape)
    cost = edge_cost(split, Identity(shape), x)
    try:
        linear = bool(split.server_layer)
    except NoLinearLayerError:
        linear = False
    return {
        "cut": at, "feature": list(shape), "n": math.prod(shape), "linear_next": "yes" if linear else "no",
        "client_macs": cost.client_macs, "edge_share": cost.client_macs / max(1, multiply_accumulates(model, x)),
        "client_parameters": cost.parameters, "raw_bytes": cost.raw_bytes,
        "message_bytes": HEADER_BYTES + 4 * min(m, math.prod(shape)),
    }  # fmt: skip


def _cut(model: Any, at: int | str, input_shape: tuple[int, ...]) -> tuple[Any, Any, tuple[int, ...]]:
    """The model in two, an image, and the shape of its feature."""
    import torch

    from splitveil.split import SplitModel

    x = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0))
    # Fitting and export check the halves; here they are counted, and a check at every cut would take minutes.
    split = SplitModel(model, at=at, verify=False)
    with torch.no_grad():
        return split, x, tuple(split.client(x).shape[1:])


def _listing(title: str, rows: Sequence[dict[str, Any]], width: int | None) -> str:
    """Rows as a table where that fits into the width, in characters, else as a paragraph each; no cell is cut."""
    heads = [key.split("_") for key in rows[0]]
    tall = max(map(len, heads))
    lines = [[head[index] if index < len(head) else "" for head in heads] for index in range(tall)]
    lines += [[_cell(cell) for cell in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    table.insert(tall, "  ".join("-" * column for column in widths))
    if width is None or max(map(len, table)) <= width:
        return "\n".join([title, "", *table])
    return "\n\n".join([title, *(_paragraph(row, width) for row in rows)])


def _paragraph(row: dict[str, Any], width: int) -> str:
    """One cut, broken between facts and never inside one."""
    blank = "\N{NO-BREAK SPACE}"
    first, *others = row.items()
    facts = [f"{first[0]} {_cell(first[1])}", *(f"{key.replace('_', ' ')} {_cell(cell)}" for key, cell in others)]
    text = textwrap.fill(
        ", ".join(fact.replace(" ", blank) for fact in facts),
        width,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return text.replace(blank, " ")


def _cell(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.1%}" if isinstance(value, float) else str(value)
